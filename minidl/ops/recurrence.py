"""LSTM, GRU and simple recurrent net over time, fused, with their derivatives by hand.

The definition of all this, step by step, is in `minidl.functional.recurrent`, and shares no code
with this file. Arguments: x (batch, time, inputs); with an axis of directions in front, kernel
(directions, inputs, gates * units), recurrent_kernel and bias; state (states, directions, batch,
units) or None; mask (batch, time) or None; reverse, a boolean for each direction.

What makes it fast:
* In the loop, arrays are (time, gates, units, batch), time counted from where the direction begins.
  With the batch innermost, a gate of a step is one run of memory.
* What the steps take from x is one product before the loop. The bias is the weight of one more
  input, which is always 1: adding it, and its gradient, are then parts of products.
* sigmoid(z) = tanh(z / 2) / 2 + 1 / 2, with the inner half in the weights: one tanh a step.
* On the way back a step multiplies what comes from the step after by factors that depend on the way
  up alone. They are computed for all steps before the loop, which is then a few multiplications and
  one product a step. The weights' gradients are products over all steps, after it.
* The work of a step is too small to be split over two threads. But while the one goes through the
  steps of one direction, the other does the large products of the other direction.

Masked steps. A gate at infinity carries the state exactly, and its derivatives are then right by
themselves: c' = 1 c + 0 g in the LSTM, h' = 1 h + 0 n in the GRU. Only the h of the LSTM and of the
simple net has to be copied where the mask says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from minidl.autodiff import primitive
from minidl.backend import Array, in_two, namespace
from minidl.ops.products import SPLIT

__all__: list[str] = []  # internal: the public functions are in minidl.functional.recurrent


class Scan:
    """One direction of a recurrent net: `prepare` and `loop` up, `loop_back` and the products back.

    A subclass has the two loops, and says how the gates lie: in the rows of the weights of x and of
    h the last gate of Keras's order may come first (`rolled_x`, `rolled_h`), so that gates treated
    alike lie side by side; `sigmoids_x` and `sigmoids_h` are those whose weights are halved on the
    way up. x is (time, batch, inputs), with a last input of 1 if there is a bias.

    On the way up `h` (time + 1, units, batch) and `last`, the last state, are set; on the way back
    the gradients of the gates, as rows (time, rows, batch) of the weights of x and of h, and those
    of the first state.
    """

    states = 1
    rolled_x = rolled_h = bias_of_h = False
    sigmoids_x = sigmoids_h = (0, 0)
    h: Array
    last: list[Array]
    first: list[Array]
    rows: tuple[Array, Array]

    def __init__(
        self,
        x: Array,
        kernel: Array,
        recurrent_kernel: Array,
        bias: Array | None,
        state: Array | None,
        off: Array | None,
        backwards: bool,
    ) -> None:
        self.xp = xp = namespace(x)
        self.x, self.backwards = x, backwards
        self.time, self.batch, _ = x.shape
        self.inputs, self.units = kernel.shape[0], recurrent_kernel.shape[0]
        of_x, of_h = bias, None
        if bias is not None and self.bias_of_h:
            of_x, of_h = bias[0], bias[1]
        self.biased_x, self.biased_h = of_x is not None, of_h is not None
        self.kernel = self._rows(kernel, of_x, self.rolled_x)
        self.recurrent_kernel = self._rows(recurrent_kernel, of_h, self.rolled_h)
        self.start = self.columns([None] * self.states if state is None else state)
        self.off: Any = None  # (time, 1, batch): where a step is masked, and where it is not
        self.on: Any = None
        self.any_off = [False] * self.time
        if off is not None:
            self.off = self.in_time(off)[:, None]
            self.on = xp.logical_not(self.off).astype(x.dtype)
            looked = xp is np  # elsewhere looking would be waiting
            self.any_off = self.off.any((1, 2)).tolist() if looked else [True] * self.time

    def _rows(self, kernel: Array, bias: Array | None, rolled: bool) -> Array:
        """(gates * units, inputs), or with one more input, for the bias."""
        xp = self.xp
        if bias is not None:
            kernel = xp.concatenate([kernel, bias[None]])
        rows = kernel.T.astype(self.x.dtype, copy=False)
        return xp.ascontiguousarray(xp.roll(rows, self.units, axis=0) if rolled else rows)

    def columns(self, state: Sequence[Array | None]) -> list[Array]:
        """Copies of (batch, units) as (units, batch); zeros for None."""
        zeros = self.xp.zeros((self.units, self.batch), dtype=self.x.dtype)
        return [zeros.copy() if h is None else zeros + h.T for h in state]

    def in_time(self, steps: Array) -> Array:
        """A view of `steps` of this direction in the order of time, or of time as steps."""
        return steps[::-1] if self.backwards else steps

    def empty(self, *shape: int) -> Array:
        """An array (*shape, batch) to be filled."""
        return self.xp.empty((*shape, self.batch), dtype=self.x.dtype)

    def copy_kept(self, steps: Array, out: Array) -> None:
        """Copy (time, units, batch), with 0 where masked."""
        if self.on is None:
            out[...] = steps
        else:
            self.xp.multiply(steps, self.on, out=out)

    # --- Up ---

    def prepare(self) -> None:
        """Sets `z` (time, rows, batch), what the steps take from x: the loop may write into it."""
        weights = self._halved(self.kernel, self.sigmoids_x)
        inputs = self.in_time(self.x).transpose(0, 2, 1)
        self.z = z = self.empty(self.time, len(weights))
        half = self.time // 2
        side_by_side(
            lambda: self.xp.matmul(weights, inputs[:half], out=z[:half]),
            lambda: self.xp.matmul(weights, inputs[half:], out=z[half:]),
            self.work,
        )

    def loop(self) -> None:
        """From the first step to the last."""
        raise NotImplementedError

    def _halved(self, rows: Array, gates: tuple[int, int]) -> Array:
        rows = rows.copy()
        rows[gates[0] * self.units : gates[1] * self.units] *= 0.5
        return rows

    @property
    def work(self) -> tuple[Any, int]:
        """The module, and the multiply-adds of the product that `prepare` makes."""
        return self.xp, self.kernel.size * self.time * self.batch

    # --- Back ---

    def ready(self, g: Array, last: Array) -> None:
        """Before the loop back: the gradients of outputs (batch, time, units), which become `g`
        (time, units, batch), 0 where masked, and of the last state; the factors of all steps."""
        self.g = self.empty(self.time, self.units)
        self.copy_kept(self.in_time(g.transpose(1, 2, 0)), self.g)
        self.back, self.factors = self.columns(last), self._factors()

    def _factors(self) -> Any:
        """What the way up alone says of the derivatives; the loop back may write into it."""
        raise NotImplementedError

    def loop_back(self) -> None:
        """From the last step to the first: sets `first`, the gradient of the first state, and
        `rows`, those of the rows of x and of h (time, rows, batch)."""
        raise NotImplementedError

    def flatten(self) -> None:
        """Lays the rows of all steps side by side, in order of time."""
        of_x, of_h = self.rows
        self.flat_x = self._flat(of_x)
        self.flat_h = self.flat_x if of_h is of_x else self._flat(of_h)

    def _flat(self, steps: Array) -> Array:
        """(time, rows, batch) -> (rows, time * batch)."""
        steps = self.xp.ascontiguousarray(self.in_time(steps).transpose(1, 0, 2))
        return steps.reshape(steps.shape[0], self.time * self.batch)

    def by_weights(self) -> None:
        """Sets the gradients of kernel, recurrent_kernel and bias."""
        xp = self.xp
        x = self.x.reshape(self.time * self.batch, self.x.shape[2])
        kernel, bias = self._unrow(self.flat_x @ x, self.biased_x, self.rolled_x)
        rows = self.flat_h @ self._flat(self.h[:-1]).T
        recurrent_kernel, more = self._unrow(rows, self.biased_h, self.rolled_h)
        self.gradients = kernel, recurrent_kernel, bias if more is None else xp.stack([bias, more])

    def _unrow(self, rows: Array, biased: bool, rolled: bool) -> tuple[Array, Array | None]:
        """The kernel's and the bias's parts of what lies as `_rows` made it."""
        kernel = (self.xp.roll(rows, -self.units, axis=0) if rolled else rows).T
        return (kernel[:-1], kernel[-1]) if biased else (kernel, None)

    def by_inputs(self) -> Array:
        """The gradient of x, (time * batch, inputs)."""
        return self.flat_x.T @ self.xp.ascontiguousarray(self.kernel[:, : self.inputs])


def side_by_side(first: Callable, second: Callable, work: tuple[Any, int]) -> tuple[Any, Any]:
    """Both results; on two threads where it is NumPy's and enough multiply-adds."""
    xp, size = work
    return in_two(first, second) if xp is np and size >= SPLIT else (first(), second())


# --- LSTM -----------------------------------------------------------------------------------------


class LSTM(Scan):
    """Rows o i f g: the sigmoids are the first three, what makes c the last three."""

    states = 2
    rolled_x = rolled_h = True
    sigmoids_x = sigmoids_h = (0, 3)

    def loop(self) -> None:
        xp, units, z = self.xp, self.units, self.z
        self.gates = gates = z.reshape(self.time, 4, units, self.batch)
        if self.off is not None:
            xp.copyto(gates[:, 1], -np.inf, where=self.off)
            xp.copyto(gates[:, 2], np.inf, where=self.off)
        self.h, self.c = (self.empty(self.time + 1, units) for _ in range(2))
        self.h[0], self.c[0] = self.start
        self.tanh_c = self.empty(self.time, units)
        weights = self._halved(self.recurrent_kernel, self.sigmoids_h)
        product, new = self.empty(4 * units), self.empty(units)
        for t in range(self.time):
            h, c, tanh_c, now = self.h[t + 1], self.c[t + 1], self.tanh_c[t], z[t]
            xp.matmul(weights, self.h[t], out=product)
            now += product
            xp.tanh(now, out=now)
            sigmoids = now[: 3 * units]
            sigmoids *= 0.5
            sigmoids += 0.5
            o, i, f, g = gates[t]
            xp.multiply(f, self.c[t], out=c)
            xp.multiply(i, g, out=new)
            c += new
            xp.tanh(c, out=tanh_c)
            xp.multiply(o, tanh_c, out=h)
            if self.any_off[t]:
                xp.copyto(h, self.h[t], where=self.off[t])
        self.last = [self.h[-1], self.c[-1]]

    def loop_back(self) -> None:
        xp, g = self.xp, self.g
        dh, dc = self.back
        dz, by_c = self.factors
        rows = dz.reshape(self.z.shape)
        weights = xp.ascontiguousarray(self.recurrent_kernel.T)
        more, carried = xp.empty_like(dh), xp.empty_like(dh)
        for t in range(self.time - 1, -1, -1):
            dh += g[t]
            xp.multiply(dh, by_c[t], out=more)
            dc += more
            of_h, of_c = dz[t, 0], dz[t, 1:]
            of_h *= dh
            of_c *= dc
            dc *= self.gates[t, 2]
            if self.any_off[t]:
                xp.multiply(dh, self.off[t], out=carried)
            xp.matmul(weights, rows[t], out=dh)
            if self.any_off[t]:
                dh += carried
        self.rows, self.first = (rows, rows), [dh, dc]

    def _factors(self) -> tuple[Array, Array]:
        """Of each step: the derivatives of the gates' rows, o's to be multiplied by dh, the others'
        by dc; and c's part in h, o (1 - tanh(c)^2)."""
        xp = self.xp
        o, i, _, g = (self.gates[:, k] for k in range(4))
        dz, by_c = xp.empty_like(self.gates), xp.empty_like(self.tanh_c)
        by_o, by_i, by_f, by_g = (dz[:, k] for k in range(4))
        sigmoids = dz[:, :3]
        xp.subtract(1, self.gates[:, :3], out=sigmoids)
        sigmoids *= self.gates[:, :3]
        by_o *= self.tanh_c
        by_i *= g
        by_f *= self.c[:-1]
        for value, gate, out in ((g, i, by_g), (self.tanh_c, o, by_c)):
            xp.multiply(value, value, out=out)
            xp.subtract(1, out, out=out)
            out *= gate
        if self.off is not None:
            by_o *= self.on
            by_c *= self.on
        return dz, by_c


# --- GRU ------------------------------------------------------------------------------------------


class GRU(Scan):
    """Rows n z r of x, z r n of h: h's part in n keeps to itself until it has met r."""

    rolled_x = bias_of_h = True
    sigmoids_x, sigmoids_h = (1, 3), (0, 2)

    def loop(self) -> None:
        xp, units, z = self.xp, self.units, self.z
        self.gates = gates = z.reshape(self.time, 3, units, self.batch)
        if self.off is not None:
            xp.copyto(gates[:, 1], np.inf, where=self.off)
        weights = self._halved(self.recurrent_kernel, self.sigmoids_h)
        self.h = self.empty(self.time + 1, weights.shape[1])
        self.h[:, units:] = 1.0  # what h's bias is the weight of
        self.h[0, :units] = self.start[0]
        self.of_h = self.empty(self.time, units)
        product, new = self.empty(3 * units), self.empty(units)
        for t in range(self.time):
            xp.matmul(weights, self.h[t], out=product)
            sigmoids, of_h = z[t, units:], self.of_h[t]
            sigmoids += product[: 2 * units]
            xp.tanh(sigmoids, out=sigmoids)
            sigmoids *= 0.5
            sigmoids += 0.5
            of_h[...] = product[2 * units :]
            n, update, reset = gates[t]
            xp.multiply(reset, of_h, out=new)
            n += new
            xp.tanh(n, out=n)
            h = self.h[t + 1, :units]
            xp.multiply(update, self.h[t, :units], out=h)
            xp.subtract(1, update, out=new)
            new *= n
            h += new
        self.last = [self.h[-1, :units]]

    def loop_back(self) -> None:
        xp, units, g = self.xp, self.units, self.g
        (dh,) = self.back
        dz = self.factors
        rows = dz.reshape(self.time, 4 * units, self.batch)
        weights = xp.ascontiguousarray(self.recurrent_kernel[:, :units].T)
        product = xp.empty_like(dh)
        for t in range(self.time - 1, -1, -1):
            dh += g[t]
            gates = dz[t]
            gates *= dh
            xp.matmul(weights, rows[t, units:], out=product)
            dh *= self.gates[t, 1]
            dh += product
        self.rows, self.first = (rows[:, : 3 * units], rows[:, units:]), [dh]

    def _factors(self) -> Array:
        """The derivatives of n, z, r and of h's part in n, of each step, to be multiplied by dh:
        the first three are rows of x, the last three those of h."""
        xp = self.xp
        n, update, reset = (self.gates[:, k] for k in range(3))
        dz = self.empty(self.time, 4, self.units)
        by_n, by_update, by_reset, by_h = (dz[:, k] for k in range(4))
        xp.subtract(1, update, out=by_h)
        xp.subtract(self.h[:-1, : self.units], n, out=by_update)
        by_update *= update
        by_update *= by_h
        xp.multiply(n, n, out=by_n)
        xp.subtract(1, by_n, out=by_n)
        by_n *= by_h
        xp.multiply(by_n, reset, out=by_h)
        xp.subtract(1, reset, out=by_reset)
        by_reset *= by_h
        by_reset *= self.of_h
        return dz


# --- Simple ---------------------------------------------------------------------------------------


class SimpleRNN(Scan):
    """One gate, the new h."""

    def loop(self) -> None:
        xp = self.xp
        self.h = self.empty(self.time + 1, self.units)
        (self.h[0],) = self.start
        for t in range(self.time):
            h, now = self.h[t + 1], self.z[t]
            xp.matmul(self.recurrent_kernel, self.h[t], out=h)
            now += h
            xp.tanh(now, out=h)
            if self.any_off[t]:
                xp.copyto(h, self.h[t], where=self.off[t])
        self.last = [self.h[-1]]

    def _factors(self) -> Array:
        h = self.h[1:]
        dz = h * h
        self.xp.subtract(1, dz, out=dz)
        if self.off is not None:
            dz *= self.on
        return dz

    def loop_back(self) -> None:
        xp, g = self.xp, self.g
        (dh,) = self.back
        dz = self.factors
        weights = xp.ascontiguousarray(self.recurrent_kernel.T)
        carried = xp.empty_like(dh)
        for t in range(self.time - 1, -1, -1):
            dh += g[t]
            gate = dz[t]
            gate *= dh
            if self.any_off[t]:
                xp.multiply(dh, self.off[t], out=carried)
            xp.matmul(weights, gate, out=dh)
            if self.any_off[t]:
                dh += carried
        self.rows, self.first = (dz, dz), [dh]


# --- Primitives -----------------------------------------------------------------------------------


@primitive(floats=True, residuals=True)
def lstm_scan(x, kernel, recurrent_kernel, bias, state, mask, reverse):
    """(outputs (batch, time, directions, units), the last state): see the head of this file."""
    return _up(LSTM, x, kernel, recurrent_kernel, bias, state, mask, reverse)


@primitive(floats=True, residuals=True)
def gru_scan(x, kernel, recurrent_kernel, bias, state, mask, reverse):
    """As `lstm_scan`."""
    return _up(GRU, x, kernel, recurrent_kernel, bias, state, mask, reverse)


@primitive(floats=True, residuals=True)
def simple_rnn_scan(x, kernel, recurrent_kernel, bias, state, mask, reverse):
    """As `lstm_scan`."""
    return _up(SimpleRNN, x, kernel, recurrent_kernel, bias, state, mask, reverse)


def _up(
    kind: type[Scan],
    x: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None,
    state: Array | None,
    mask: Array | None,
    reverse: tuple[bool, ...],
) -> tuple[tuple[Array, Array], list[Scan]]:
    xp, (batch, time, inputs) = namespace(x), x.shape
    data = [a.dtype for a in (x, kernel, recurrent_kernel, bias, state) if a is not None]
    dtype = np.result_type(*data)
    wide = np.promote_types(dtype, np.float32)
    rows = xp.ones((time, batch, inputs + (bias is not None)), dtype=wide)
    rows[:, :, :inputs] = x.transpose(1, 0, 2)
    off = None if mask is None else xp.logical_not(mask.T)
    if off is not None:  # NaN there must not matter
        xp.copyto(rows[:, :, :inputs], 0, where=off[:, :, None])
    scans = []
    for d, backwards in enumerate(reverse):
        rest = (None if bias is None else bias[d]), (None if state is None else state[:, d])
        scans.append(kind(rows, kernel[d], recurrent_kernel[d], *rest, off, backwards))
    outputs = xp.empty((batch, time, len(scans), scans[0].units), dtype=dtype)

    def write(d: int) -> None:
        scan, out = scans[d], outputs[:, :, d].transpose(1, 2, 0)
        scan.copy_kept(scan.h[1:, : scan.units], scan.in_time(out))

    def beside(d: int) -> None:
        """While direction d goes through its steps: what the one before and the next one need."""
        if d > 0:
            write(d - 1)
        if d + 1 < len(scans):
            scans[d + 1].prepare()

    scans[0].prepare()
    for d, scan in enumerate(scans):
        side_by_side(scan.loop, partial(beside, d), scan.work)
    write(len(scans) - 1)
    return (outputs, _states([scan.last for scan in scans]).astype(dtype, copy=False)), scans


def _scan_rule(g, kept, x_shape, needs):
    g, g_last = g
    ready = [partial(scan.ready, g[:, :, d], g_last[:, d]) for d, scan in enumerate(kept)]
    side_by_side(ready[0], lambda: [other() for other in ready[1:]], kept[0].work)

    def weigh(scan: Scan) -> None:
        scan.flatten()
        scan.by_weights()

    kept[0].loop_back()
    for before, scan in pairwise(kept):
        side_by_side(scan.loop_back, partial(weigh, before), scan.work)
    last = kept[-1]
    last.flatten()
    by_x, _ = side_by_side(
        lambda: _by_x(kept, x_shape) if needs[0] else None, last.by_weights, last.work
    )
    weights = zip(*(scan.gradients for scan in kept), strict=True)
    xp = last.xp
    weights = [None if w[0] is None else xp.stack(w) for w in weights]
    return by_x, *weights, _states([scan.first for scan in kept]) if needs[4] else None


def _by_x(scans: list[Scan], shape: tuple[int, ...]) -> Array:
    total = scans[0].by_inputs()
    for scan in scans[1:]:
        total += scan.by_inputs()
    batch, time, inputs = shape
    return scans[0].xp.ascontiguousarray(total.reshape(time, batch, inputs).transpose(1, 0, 2))


def _states(states: list[list[Array]]) -> Array:
    """(states, directions, batch, units) from a list for each direction of (units, batch)."""
    xp = namespace(states[0][0])
    return xp.stack([xp.stack([h.T for h in direction]) for direction in states], axis=1)


for _op in (lstm_scan, gru_scan, simple_rnn_scan):
    _op.defvjp(joint=_scan_rule, of=("x", "kernel", "recurrent_kernel", "bias", "state"))
