"""Base of optimisers. All parameters of one dtype and device live in one flat buffer, their
gradients in its twin, and a step is a handful of in-place passes over both.

At construction each parameter's array becomes a view of the flat buffer; backward then writes its
gradient straight into the twin. On the CPU the passes go over blocks that stay in the cache, on
other devices over the whole buffer at once, since there every call costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from minidl import backend, schedules
from minidl.backend import Array
from minidl.errors import GradientError, SerializationError, ShapeError
from minidl.graph import Parameter, Tensor, unwrap, wrap
from minidl.layers.layer import Layer
from minidl.optimizers.flat import Flat, Task, adopt, sum_of_squares


class Optimizer:
    """Base of optimisers: a subclass names its state arrays (`slots`) and writes `update`.

    parameters: a layer, or parameters (a tied one may occur twice).
    learning_rate: a number, or a schedule: a function of the number of steps already made.
    global_clipnorm: scale all gradients together so that their common norm is at most this.
    clipvalue: clip each entry of the gradients to [-clipvalue, clipvalue].
    weight_decay: before each step p *= 1 - rate * weight_decay, apart from the gradient (Loshchilov
    and Hutter 2019).
    exclude_from_weight_decay: parameters that do not decay, or a function that tells them, such as
    `lambda p: p.ndim < 2`.

    A parameter with a constraint (`minidl.constraints`) is brought back to it after its step. As in
    PyTorch, a parameter without a gradient (frozen, or not used) is passed over: neither it nor its
    state changes. An array kept from `p.grad` shows the next gradient after the next
    backward: copy what is to last. Parameters that another optimiser or `to` has moved are gathered
    again at the next step, with their state.

    Raises BuildError for a layer that is not built, ValueError when there are no parameters.
    """

    slots: tuple[str, ...] = ()
    scratch = 1  # how many arrays of the block's size `update` needs

    def __init__(
        self,
        parameters: Layer | Iterable[Parameter],
        learning_rate: float | Callable[[int], float],
        global_clipnorm: float | None = None,
        clipvalue: float | None = None,
        weight_decay: float = 0.0,
        exclude_from_weight_decay: Iterable[Parameter] | Callable[[Parameter], bool] = (),
        **unknown: Any,
    ) -> None:
        if unknown:
            mend = {
                "lr": "learning_rate", "betas": "beta_1 and beta_2", "eps": "epsilon",
                "clipnorm": "global_clipnorm", "max_norm": "global_clipnorm",
            }  # fmt: skip
            name = min(unknown)
            raise TypeError(
                f"{type(self).__name__}: unexpected argument {name!r}"
                + (f"; use {mend[name]}" if name in mend else "")
            )
        if isinstance(parameters, Layer):
            parameters = parameters.parameters()
        self.parameters = list({id(p): p for p in parameters}.values())
        self._check(learning_rate, global_clipnorm, clipvalue, weight_decay)
        self.learning_rate = learning_rate
        self.global_clipnorm = global_clipnorm
        self.clipvalue = clipvalue
        self.weight_decay = weight_decay
        self.iterations = 0
        self._decays = self._which_decay(exclude_from_weight_decay)
        self._extra: tuple[str, ...] = ()  # slots that `update` does not see
        self._counts = [0] * len(self.parameters)  # steps that each parameter has made
        self._gather()

    def _check(
        self, learning_rate: Any, global_clipnorm: Any, clipvalue: Any, weight_decay: Any
    ) -> None:
        name = type(self).__name__
        if not self.parameters:
            raise ValueError(f"{name}: parameters: expected at least one Parameter, got none")
        for p in self.parameters:
            if not isinstance(p, Parameter):
                raise TypeError(
                    f"{name}: parameters: expected Parameters, got {type(p).__name__}; pass a "
                    "layer or layer.parameters()"
                )
        if not callable(learning_rate) and not learning_rate >= 0:
            raise ValueError(f"{name}: learning_rate: expected 0 or more, got {learning_rate}")
        if not weight_decay >= 0:
            raise ValueError(f"{name}: weight_decay: expected 0 or more, got {weight_decay}")
        for what, limit in (("global_clipnorm", global_clipnorm), ("clipvalue", clipvalue)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name}: {what}: expected more than 0, got {limit}")
        if global_clipnorm is not None and clipvalue is not None:
            raise ValueError(f"{name}: give one of global_clipnorm and clipvalue, not both")

    def _which_decay(self, excluded: Any) -> list[bool]:
        if not self.weight_decay:
            return [False] * len(self.parameters)
        if callable(excluded):
            return [not excluded(p) for p in self.parameters]
        ids = {id(p) for p in excluded}
        if foreign := ids - {id(p) for p in self.parameters}:
            raise ValueError(
                f"{type(self).__name__}: exclude_from_weight_decay: {len(foreign)} of them are not "
                "among the parameters"
            )
        return [id(p) not in ids for p in self.parameters]

    # What subclasses write

    def update(
        self, xp: Any, p: Array, g: Array, state: Sequence[Array], work: Sequence[Array],
        rate: float, count: int,
    ) -> None:  # fmt: skip
        """Change a stretch `p` of the parameters in place, given its gradient `g`.

        state: this stretch of each slot; work: `scratch` arrays to overwrite; rate: the learning
        rate; count: how many steps these parameters have made, with this one.
        """
        raise NotImplementedError(f"{type(self).__name__}: write update(...)")

    # What users call

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        rate = self.learning_rate
        return float(rate(self.iterations) if callable(rate) else rate)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for p in self.parameters:
            if p._node is not None:
                p._node.grad = None  # type: ignore[union-attr]

    def minimize(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`: those of other parameters are not computed.

        Raises GradientError where `loss` depends on none of the parameters.
        """
        self.zero_grad()
        trained = [p for p in self.parameters if p.requires_grad]
        loss.backward(inputs=trained)
        if trained and all(p.grad is None for p in trained):
            raise GradientError(
                f"{type(self).__name__}.minimize: loss: depends on none of the parameters of this "
                "optimiser; give it the loss of these, or make it of the model that computes it"
            )
        self.step()

    def step(self, scale: Any = None) -> None:
        """Change every parameter that has a gradient.

        scale: a number, or a 0-d array on the device, to multiply the gradients by beforehand.
        """
        self._gather_moved()
        rate = self.rate
        tasks = [self._tasks(flat) for flat in self._flats]
        scales = self._scales(tasks, scale)
        for flat, own, scale in zip(self._flats, tasks, scales, strict=True):
            flat.run(own, partial(self._step_block, rate, scale))
        self._constrain()
        self.iterations += 1

    def _constrain(self) -> None:
        """Bring the parameters that have made a step to where their constraints want them."""
        for p in self.parameters:
            if p.constraint is not None and p.grad is not None:
                allowed = unwrap(p.constraint(wrap(p._data, None, p._version)))
                if np.shape(allowed) != p.shape:
                    raise ShapeError(
                        f"{type(self).__name__}: constraint {p.constraint!r} of {p.name}: expected "
                        f"the parameter's shape {p.shape}, got {np.shape(allowed)}"
                    )
                p._data[...] = allowed

    def add_slot(self, name: str) -> None:
        """Keep one more array as large as the parameters, 0 at first, which `update` does not see.

        It is moved, saved and loaded like the rest; see `sweep`. One that exists is left as it is.
        """
        if name not in self._extra:
            carried = self._read_slots()
            self._extra = (*self._extra, name)
            self._gather(carried)

    def sweep(
        self, work: Callable[[Any, Array, dict[str, Array], Array], None], writes: bool = False
    ) -> None:
        """work(xp, p, slots, scratch) on every stretch of the parameters.

        slots: this stretch of all slots by name; scratch: an array to overwrite; writes: whether
        `work` changes the parameters.
        """

        def block(flat: Flat, task: Task, scratch: Sequence[Array]) -> None:
            part = slice(task.start, task.stop)
            slots = {name: array[part] for name, array in flat.slots.items()}
            work(flat.xp, flat.data[part], slots, scratch[0])

        self._gather_moved()
        for flat in self._flats:
            flat.run([Task(0, flat.data.size)], block)
        for p in self.parameters if writes else ():
            p._touch()

    def _step_block(
        self, rate: float, scale: Any, flat: Flat, task: Task, work: Sequence[Array]
    ) -> None:
        xp, part = flat.xp, slice(task.start, task.stop)
        p, g = flat.data[part], flat.gradient[part]
        if scale is not None:
            xp.multiply(g, scale, out=g)
        if self.clipvalue is not None:
            xp.clip(g, -self.clipvalue, self.clipvalue, out=g)
        if task.decays:
            p *= 1 - rate * self.weight_decay
        state = [flat.slots[name][part] for name in self.slots]
        self.update(xp, p, g, state, work, rate, task.steps)

    def _tasks(self, flat: Flat) -> list[Task]:
        """The stretches of `flat` that have gradients, merged where they meet; counts the step."""
        tasks: list[tuple[int, int, int, bool]] = []
        for i, p, gradient, start, stop in flat.members:
            leaf = p._node
            if leaf is None or leaf.grad is None:  # type: ignore[union-attr]
                continue
            if leaf.grad._data is not gradient:  # type: ignore[union-attr]
                gradient[...] = leaf.grad._data  # type: ignore[union-attr]
                leaf.buffer, leaf.grad = gradient, wrap(gradient, None, leaf.written)  # type: ignore[union-attr]
            leaf.grad._touch()  # type: ignore[union-attr]  # clipping writes into it
            p._touch()
            count = self._counts[i] = self._counts[i] + 1
            decays = self._decays[i]
            if tasks and tasks[-1][1:] == (start, count, decays):
                start = tasks.pop()[0]
            tasks.append((start, stop, count, decays))
        return [Task(*task) for task in tasks]

    def _scales(self, tasks: list[list[Task]], given: Any) -> list[Any]:
        """What to multiply the gradients of each buffer by: scalars that stay on its device."""
        if self.global_clipnorm is not None and any(tasks):
            given = self._clip_scale(tasks, 1.0 if given is None else given)
        if not backend.is_array(given):
            return [given] * len(tasks)
        return [backend.to_device(given.astype(f.wide), f.device) for f in self._flats]

    def _clip_scale(self, tasks: list[list[Task]], given: Any) -> Array:
        """`given`, or less where the norm of the gradients that it scales is above the limit."""
        total: Any = 0.0
        for flat, own in zip(self._flats, tasks, strict=True):
            for part in flat.run(own, sum_of_squares):
                device = backend.device_of(total) if backend.is_array(total) else flat.device
                total = backend.to_device(part, device) + total
        xp, limit = backend.namespace(total), self.global_clipnorm
        if backend.is_array(given):
            given = backend.to_device(given, backend.device_of(total))
        # A NaN scale would stay in the zeros between parameters, and in every norm from then on.
        norm = xp.where(xp.isfinite(total), xp.sqrt(total), xp.inf) * given
        return limit / xp.maximum(norm, limit) * given

    # Gathering

    def _gather(self, carried: dict[int, dict[str, Array]] | None = None) -> None:
        """Lay all parameters into flat buffers, with the state in `carried` (else zeros)."""
        kinds: dict[tuple, list[int]] = {}
        for i, p in enumerate(self.parameters):
            kinds.setdefault((p.dtype, p.device), []).append(i)
        slots = (*self.slots, *self._extra)
        self._flats = [
            Flat([(i, self.parameters[i]) for i in self._decaying_first(own)], slots, self.scratch)
            for own in kinds.values()
        ]
        if carried:
            self._write_slots(carried)

    def _decaying_first(self, indices: list[int]) -> list[int]:
        """So that there are two stretches, not one for each parameter."""
        return sorted(indices, key=lambda i: not self._decays[i])

    def _write_slots(self, values: dict[int, dict[str, Array]]) -> None:
        for flat in self._flats:
            for i, p, _, start, _ in flat.members:
                for name, own in values[i].items():
                    value = backend.to_device(own, flat.device).reshape(-1)
                    flat.slots[name][start : start + p.size] = value

    def _read_slots(self) -> dict[int, dict[str, Array]]:
        return {
            i: {n: a[start : start + p.size].reshape(p.shape) for n, a in flat.slots.items()}
            for flat in self._flats
            for i, p, _, start, _ in flat.members
        }

    def _gather_moved(self) -> None:
        """Take back parameters whose arrays are no longer ours."""
        for flat in self._flats:
            for (_, p, gradient, _, _), view in zip(flat.members, flat.views, strict=True):
                if p._data is view:
                    continue
                if p._data.dtype != view.dtype or p.device != flat.device:
                    self._gather(self._read_slots())
                    return
                adopt(p, view, gradient)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on but the parameters; arrays are host copies.

        A schedule of minidl's is part of it; any other function is not.
        """
        rate = self.learning_rate
        slots = {
            str(i): {name: np.array(backend.to_host(a)) for name, a in own.items()}
            for i, own in sorted(self._read_slots().items())
        }
        return {
            "optimizer": type(self).__name__,
            "iterations": self.iterations,
            "learning_rate": (
                rate.state_dict() if isinstance(rate, schedules.Schedule)
                else None if callable(rate) else float(rate)
            ),
            "counts": list(self._counts),
            "slots": slots,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` gave.

        Raises SerializationError for the state of another optimiser or of other parameters.
        """
        name = type(self).__name__
        self._check_state(state)
        names = (*self.slots, *self._extra)
        expected = [dict.fromkeys(names, p.shape) for p in self.parameters]
        slots = {int(i): own for i, own in state["slots"].items()}
        given = [{n: np.shape(a) for n, a in slots[i].items()} for i in sorted(slots)]
        if given and set(given[0]) != set(names):
            raise SerializationError(
                f"{name}: the state holds {', '.join(given[0]) or 'nothing'} for each parameter, "
                f"this one {', '.join(names) or 'nothing'}; make it, and the callbacks that keep "
                "something beside it, as it was when saved"
            )
        if given != expected or len(state["counts"]) != len(expected):
            raise SerializationError(
                f"{name}: the state is of parameters of other shapes: expected {expected}, got "
                f"{given}; build the model as it was when saved"
            )
        self.iterations = state["iterations"]
        self._counts = list(state["counts"])
        rate = state["learning_rate"]
        if rate is not None:
            self.learning_rate = schedules.from_state(rate) if isinstance(rate, dict) else rate
        self._write_slots(slots)

    def _check_state(self, state: dict[str, Any]) -> None:
        name, other = type(self).__name__, state.get("optimizer")
        if other != name:
            raise SerializationError(f"{name}: got the state of {other!r}")

    def __repr__(self) -> str:
        n = sum(p.size for p in self.parameters)
        return f"{type(self).__name__}({n:,} parameters, learning_rate={self.learning_rate})"
