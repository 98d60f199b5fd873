"""Recurrent networks over time: LSTM, GRU and the simple recurrent net, forwards or backwards.

Three things stand here: one step of each cell, readable, made of ops; the definition of a whole
sequence as such steps one after another; and the public functions, which check their arguments and
hand them to the fused ops of `minidl.ops.recurrence`, whose definition this is.

Weights are laid out as in Keras: kernel (inputs, gates * units), recurrent_kernel (units, gates *
units), the gates side by side. A state is a tuple of arrays (batch, units), the output first:
(h, c) of an LSTM, (h,) of the others.

Masks. At a position where `mask` is False the state stays as it is and the output is 0: so the
outputs at real positions, and the last state, are those of the sequence without the masked
positions, wherever these are, in both directions. What follows needs the same mask, no other care.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minidl import ops
from minidl.backend import device_of, is_array, namespace, to_device
from minidl.errors import DtypeError, ShapeError
from minidl.graph import Tensor, unwrap, wrap
from minidl.ops import recurrence
from minidl.ops.shape import shape_of
from minidl.recording import Primitive
from minidl.samples import Draw, call, samples

State = tuple[Any, ...]

# --- One step -------------------------------------------------------------------------------------


def simple_rnn_step(
    x: Any, state: State, kernel: Any, recurrent_kernel: Any, bias: Any = None
) -> State:
    """h' = tanh(x W + h U + b): x (batch, inputs) and (h,) give (h',) (Elman 1990)."""
    (h,) = state
    return (ops.tanh(_linear(x, kernel, bias) + h @ recurrent_kernel),)


def lstm_step(x: Any, state: State, kernel: Any, recurrent_kernel: Any, bias: Any = None) -> State:
    """x (batch, inputs) and (h, c) give (h', c'), each (batch, units).

    With z = x W + h U + b in four parts, the gates i, f, the candidate g, and the gate o,
        c' = sigmoid(f) c + sigmoid(i) tanh(g),    h' = sigmoid(o) tanh(c')
    (Hochreiter and Schmidhuber 1997; the forget gate: Gers, Schmidhuber and Cummins 2000).
    """
    h, c = state
    i, f, g, o = ops.split(_linear(x, kernel, bias) + h @ recurrent_kernel, 4, axis=-1)
    c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
    return ops.sigmoid(o) * ops.tanh(c), c


def gru_step(x: Any, state: State, kernel: Any, recurrent_kernel: Any, bias: Any = None) -> State:
    """x (batch, inputs) and (h,) give (h',). `bias` is (2, 3 units): of x W, and of h U.

    With the parts z, r, n of x W + b0 and of h U + b1,
        z = sigmoid(xz + hz),  r = sigmoid(xr + hr),  n = tanh(xn + r hn),  h' = z h + (1 - z) n:
    the reset gate r is applied after the product with U, as in Keras (reset_after=True), PyTorch
    and cuDNN; Cho et al. 2014 applied it to h before.
    """
    (h,) = state
    of_x, of_h = (None, None) if bias is None else (bias[0], bias[1])
    xz, xr, xn = ops.split(_linear(x, kernel, of_x), 3, axis=-1)
    hz, hr, hn = ops.split(_linear(h, recurrent_kernel, of_h), 3, axis=-1)
    z, r = ops.sigmoid(xz + hz), ops.sigmoid(xr + hr)
    return (z * h + (1 - z) * ops.tanh(xn + r * hn),)


def _linear(x: Any, kernel: Any, bias: Any) -> Any:
    out = x @ kernel
    return out if bias is None else out + bias


class Cell(NamedTuple):
    """A kind of recurrent net: its name, one step, the fused op of all steps, and how many gates,
    states and biases it has."""

    name: str
    step: Callable[..., State]
    fused: Primitive
    gates: int
    states: int = 1
    biases: int = 1

    def bias_shape(self, units: int) -> tuple[int, ...]:
        """(gates * units,), or with two biases (2, gates * units)."""
        width = self.gates * units
        return (width,) if self.biases == 1 else (self.biases, width)


SIMPLE_RNN = Cell("simple_rnn", simple_rnn_step, recurrence.simple_rnn_scan, gates=1)
LSTM = Cell("lstm", lstm_step, recurrence.lstm_scan, gates=4, states=2)
GRU = Cell("gru", gru_step, recurrence.gru_scan, gates=3, biases=2)

# --- All steps ------------------------------------------------------------------------------------


def unroll(
    step: Callable[..., State],
    x: Any,
    state: State,
    weights: Sequence,
    mask: Any = None,
    reverse: bool = False,
) -> tuple[Any, State]:
    """(outputs (batch, time, units), the last state): one step after another."""
    steps = ops.unstack(x, axis=1)
    outputs: list = [None] * len(steps)
    for t in reversed(range(len(steps))) if reverse else range(len(steps)):
        new = step(steps[t], state, *weights)
        outputs[t] = new[0]
        if mask is not None:
            on = mask[:, t, None]
            outputs[t] = ops.where(on, new[0], 0.0)
            new = tuple(ops.where(on, y, before) for y, before in zip(new, state, strict=True))
        state = new
    if not steps:
        return ops.zeros_like(state[0])[:, None][:, :0], state
    return ops.stack(outputs, axis=1), state


def define(cell: Cell) -> Callable:
    """The definition of a fused op of `minidl.ops.recurrence`: each direction unrolled by itself.

    x (batch, time, inputs); with an axis of directions in front: the weights, and the state behind
    its own first axis, (states, directions, batch, units). reverse: a boolean for each direction.
    Gives (outputs (batch, time, directions, units), the last state).
    """

    def composition(x, kernel, recurrent_kernel, bias, state, mask, reverse):  # type: ignore[no-untyped-def]
        zeros = zero_state(cell, x, recurrent_kernel.shape[1])
        if mask is not None:
            x = ops.where(mask[:, :, None], x, 0.0)
        outputs, last = [], []
        for d, backwards in enumerate(reverse):
            weights = kernel[d], recurrent_kernel[d], None if bias is None else bias[d]
            start = zeros if state is None else tuple(state[s, d] for s in range(cell.states))
            out, end = unroll(cell.step, x, start, weights, mask, backwards)
            outputs.append(out)
            last.append(ops.stack(end, axis=0))
        return ops.stack(outputs, axis=2), ops.stack(last, axis=1)

    return composition


for _cell in (SIMPLE_RNN, LSTM, GRU):
    _cell.fused.define(define(_cell))


def zero_state(cell: Cell, x: Any, units: int) -> State:
    """The state, all zeros, from which a net starts on `x` (batch, ...)."""
    array = unwrap(x)
    zeros = namespace(array).zeros((array.shape[0], units), dtype=array.dtype)
    return (wrap(zeros, None, None),) * cell.states


class Direction(NamedTuple):
    """One pass over the sequence: its weights (kernel, recurrent_kernel, bias), where it starts."""

    weights: tuple[Any, Any, Any]
    state: Sequence | None = None
    reverse: bool = False


def scan(
    cell: Cell, x: Any, directions: Sequence[Direction], mask: Any = None
) -> tuple[Any, list[State]]:
    """(outputs (batch, time, directions, units), the last state of each direction).

    The directions run in one loop. Raises as `lstm`.
    """
    x, mask = _checked_input(cell, x, mask)
    for direction in directions:
        _check_direction(cell, x, direction)
    kernel, recurrent_kernel, bias = (
        None if arrays[0] is None else ops.stack(arrays)
        for arrays in zip(*(direction.weights for direction in directions), strict=True)
    )
    outputs, last = cell.fused(
        x, kernel, recurrent_kernel, bias, _starts(cell, x, directions), mask,
        tuple(direction.reverse for direction in directions),
    )  # fmt: skip
    ends = [tuple(last[s, d] for s in range(cell.states)) for d in range(len(directions))]
    return outputs, ends


def _starts(cell: Cell, x: Any, directions: Sequence[Direction]) -> Any:
    """(states, directions, batch, units), or None where all start from zeros."""
    if all(direction.state is None for direction in directions):
        return None
    zeros = zero_state(cell, x, directions[0].weights[1].shape[0])
    starts = [ops.stack(zeros if d.state is None else d.state) for d in directions]
    return ops.stack(starts, axis=1)


# --- Public functions -----------------------------------------------------------------------------


def simple_rnn(
    x: Any,
    kernel: Any,
    recurrent_kernel: Any,
    bias: Any = None,
    initial_state: Any = None,
    mask: Any = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """h_t = tanh(x_t kernel + h_{t-1} recurrent_kernel + bias): (outputs, the last h).

    x (batch, time, inputs), kernel (inputs, units), recurrent_kernel (units, units), bias (units,),
    initial_state h (batch, units), zeros if None. The rest is as in `lstm`.
    """
    weights = kernel, recurrent_kernel, bias
    return _one_direction(SIMPLE_RNN, x, weights, initial_state, mask, reverse)


def lstm(
    x: Any,
    kernel: Any,
    recurrent_kernel: Any,
    bias: Any = None,
    initial_state: Any = None,
    mask: Any = None,
    reverse: bool = False,
) -> tuple[Any, Any, Any]:
    """(outputs (batch, time, units), the last h, the last c): see `lstm_step` for the equations.

    x (batch, time, inputs), kernel (inputs, 4 units) with the gates i f g o side by side,
    recurrent_kernel (units, 4 units), bias (4 units,) or None, initial_state a pair (h, c) of
    (batch, units), zeros if None; mask (batch, time) of booleans, True = real. reverse: from the
    last position to the first; outputs stand at the positions of their inputs all the same.

    At masked positions the output is 0 and the state is carried, wherever they are. Raises
    ShapeError and DtypeError, naming the argument, for arguments that do not fit.
    """
    weights = kernel, recurrent_kernel, bias
    return _one_direction(LSTM, x, weights, initial_state, mask, reverse)


def gru(
    x: Any,
    kernel: Any,
    recurrent_kernel: Any,
    bias: Any = None,
    initial_state: Any = None,
    mask: Any = None,
    reverse: bool = False,
) -> tuple[Any, Any]:
    """(outputs (batch, time, units), the last h): see `gru_step` for the equations.

    kernel (inputs, 3 units) with the gates z r n side by side, recurrent_kernel (units, 3 units),
    bias (2, 3 units) or None, initial_state h (batch, units), zeros if None. The rest is as in
    `lstm`.
    """
    weights = kernel, recurrent_kernel, bias
    return _one_direction(GRU, x, weights, initial_state, mask, reverse)


def _one_direction(
    cell: Cell, x: Any, weights: tuple, initial_state: Any, mask: Any, reverse: bool
) -> Any:
    direction = Direction(weights, as_state(cell, cell.name, initial_state), reverse)
    outputs, (last,) = scan(cell, x, [direction], mask)
    return ops.squeeze(outputs, axis=2), *last


# --- Arguments ------------------------------------------------------------------------------------


def as_state(cell: Cell, who: str, value: Any) -> State | None:
    """An initial state as a tuple; the one array of a net of one state need not be in a tuple."""
    if value is None:
        return None
    if not isinstance(value, (tuple, list)):
        value = (value,)
    if len(value) != cell.states:
        names = "(h, c)" if cell.states == 2 else "h"
        raise ShapeError(
            f"{who}: initial_state: expected {names}, got {len(value)} array(s); give each of "
            "shape (batch, units)"
        )
    return tuple(value)


def _checked_input(cell: Cell, x: Any, mask: Any) -> tuple[Any, Any]:
    x = x if isinstance(x, Tensor) or is_array(x) else Tensor(x)
    if x.ndim != 3:
        raise ShapeError(
            f"{cell.name}: x: expected shape (batch, time, inputs), got {tuple(x.shape)}; one "
            "sequence alone is x[None]"
        )
    if x.dtype.kind != "f":
        raise DtypeError(
            f"{cell.name}: x: expected floats, got {x.dtype}; embed ids, or use .astype('float32')"
        )
    if mask is None:
        return x, None
    mask = unwrap(mask)
    if not is_array(mask):
        mask = to_device(np.asarray(mask), device_of(unwrap(x)))
    if mask.dtype != np.bool_:
        raise DtypeError(
            f"{cell.name}: mask: expected booleans (True = keep), got {mask.dtype}; use mask != 0"
        )
    _expect(cell, "mask", mask, x.shape[:2], f"x is {tuple(x.shape)}: one entry a position")
    return x, mask


def _check_direction(cell: Cell, x: Any, direction: Direction) -> None:
    kernel, recurrent_kernel, bias = direction.weights
    shape = shape_of(recurrent_kernel)
    units = shape[0] if len(shape) == 2 else 0
    width = cell.gates * units
    mend = f"the gates of {cell.name} are side by side in the last axis, {cell.gates} of them"
    _expect(cell, "recurrent_kernel", recurrent_kernel, (units, width), mend)
    _expect(cell, "kernel", kernel, (x.shape[2], width), f"x is {tuple(x.shape)}; {mend}")
    if bias is not None:
        _expect(cell, "bias", bias, cell.bias_shape(units), mend)
    for name, value in zip(("h", "c"), direction.state or (), strict=False):
        mend = "one row an item, one column a unit"
        _expect(cell, f"initial_state: {name}", value, (x.shape[0], units), mend)


def _expect(cell: Cell, argument: str, value: Any, shape: tuple[int, ...], mend: str) -> None:
    if shape_of(value) != tuple(shape):
        raise ShapeError(
            f"{cell.name}: {argument}: expected shape {tuple(shape)}, got {shape_of(value)}; {mend}"
        )


# --- Samples --------------------------------------------------------------------------------------


def _draw_arguments(draw: Draw, cell: Cell) -> Any:
    batch, time, inputs, units = draw.shape(min_dims=4, max_dims=4, max_side=3)
    width = cell.gates * units
    bias = draw.array(cell.bias_shape(units))
    states = tuple(draw.array((batch, units)) for _ in range(cell.states))
    return call(
        draw.array((batch, time, inputs)),
        draw.array((inputs, width), -1.0, 1.0),
        draw.array((units, width), -1.0, 1.0),
        bias if draw.boolean() else None,
        initial_state=states if draw.boolean() else None,
        mask=draw.mask((batch, time)) if draw.boolean() else None,
        reverse=draw.boolean(),
    )


for _function, _cell in ((simple_rnn, SIMPLE_RNN), (lstm, LSTM), (gru, GRU)):
    samples(_function)(lambda draw, cell=_cell: _draw_arguments(draw, cell))
