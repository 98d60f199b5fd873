"""Automatic differentiation: how gradients flow back.

Backward walks the recorded nodes from the latest to the earliest and calls the primitives' rules:
on bare arrays normally; on Tensors, and so recorded again, under `create_graph=True`. Nothing is
written twice, and gradients of any order come from the same rules.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np

from minidl import backend, random
from minidl.errors import GradientError, ShapeError
from minidl.graph import Leaf, Node, Tensor, unwrap, wrap
from minidl.recording import (
    Place,
    Primitive,
    anomaly_mode,
    enable_grad,
    is_recording,
    no_grad,
    outputs_of,
    primitive,
    refuse_changed,
    replay,
    replaying,
)  # fmt: skip
from minidl.samples import Draw, call, samples

__all__ = [
    "Draw", "Primitive", "anomaly_mode", "call", "enable_grad", "grad", "is_recording", "no_grad",
    "primitive", "recompute", "replay", "replaying", "samples", "stop_gradient", "transfer",
]  # fmt: skip

# --- Backward -------------------------------------------------------------------------------------


def _leading_to(wanted: set, roots: Iterable[Place], boundary: bool) -> set[Place]:
    """The places from which a wanted one can be reached, among those that `roots` depend on; with
    `boundary` only by ways that do not pass another wanted one."""
    found: dict[int, Node] = {}
    stack = [place for place in roots if place.__class__ is Node]
    while stack:
        node: Any = stack.pop()
        if node.order in found:
            continue
        found[node.order] = node
        if not (boundary and node in wanted):
            stack += [parent for parent in node.parents if parent.__class__ is Node]
    leading = set(wanted)
    for order in sorted(found):  # earliest first: parents before children
        node = found[order]
        if boundary and node in wanted:
            continue
        if node.saved is None or any(p in leading for p in node.parents):
            leading.add(node)  # a freed one may have led anywhere: it raises when it is reached
    return leading


def _propagate(
    seeds: dict[Place, Any],
    wanted: set | None,
    create_graph: bool,
    retain_graph: bool,
    boundary: bool = False,
) -> dict[Place, tuple[Any, bool]]:
    """Send gradients back from `seeds`; collect those of `wanted` places (None: of all leaves).

    Gradients are arrays, or with `create_graph` Tensors. Each is returned with a flag that says
    whether its buffer is the engine's own. With `boundary` nothing flows past a wanted place.
    """
    leading = None if wanted is None else _leading_to(wanted, seeds, boundary)
    pending, owned = seeds, set()
    collected: dict[Place, tuple[Any, bool]] = {}
    queue = [(-place.order, place) for place in seeds if place.__class__ is Node]
    heapify(queue)
    while queue:  # the latest node whose gradient is known: all that it led to is behind us
        place = heappop(queue)[1]
        g = pending.pop(place)
        if leading is not None and place not in leading:
            continue
        if place.hooks and not (boundary and place in wanted):  # those are the outer pass's
            g = _run_hooks(place, g)
            owned.discard(place)
        if wanted is not None and place in wanted:
            collected[place] = (g, False)
            if boundary or not any(parent in leading for parent in place.parents):  # type: ignore[operator]
                continue
        if place.saved is None:
            _refuse_freed(place)
        if place.op is None:  # one output of several: put g in its slot of the op's gradients
            parent = place.parents[0]
            if parent not in pending:
                pending[parent] = [None] * len(parent.shape)
                heappush(queue, (-parent.order, parent))
            pending[parent][place.plan] = g
        else:
            if g.__class__ is list:
                g = _fill(place, g, create_graph)
            for name, parent, answer in place.op.contributions(place, g, create_graph, leading):
                if answer is None:
                    continue
                try:
                    differs = answer.shape != parent.shape or answer.dtype != parent.dtype
                except AttributeError:
                    _refuse_answer(place.op, name, answer)
                if differs:
                    answer = _mend(answer, parent, place.op, name)
                if place.trace is not None:
                    _check_finite(place, name, answer)
                before = pending.get(parent)
                if before is None:
                    pending[parent] = answer
                    if parent.__class__ is Node:
                        heappush(queue, (-parent.order, parent))
                elif parent in owned:
                    before += answer
                    pending[parent] = before
                else:
                    pending[parent] = before + answer
                    if not create_graph:  # a fresh array: ours to write into from now on
                        owned.add(parent)
        if not retain_graph:
            place.saved, place.parents = None, ()
    for leaf, g in pending.items():  # the nodes are done; what is left has reached the end
        if leading is None or leaf in leading:
            if leaf.hooks and not boundary:
                g = _run_hooks(leaf, g)
                owned.discard(leaf)
            collected[leaf] = (g, leaf in owned)
    return collected


def _refuse_freed(node: Node) -> None:
    raise GradientError(
        f"{node.op.__name__ if node.op else 'backward'}: backward a second time through a graph "
        "that is freed; keep it with retain_graph=True the first time"
    )


def _refuse_answer(op: Any, name: str, answer: Any) -> None:
    raise GradientError(
        f"{op.__name__}: the rule of {name} returned {type(answer).__name__}; expected what ops "
        "and operators on g give"
    )


def _fill(node: Node, slots: list, create_graph: bool) -> tuple:
    """The gradients of an op's outputs, zeros for those that got none."""
    known = next(slot for slot in slots if slot is not None)
    xp = backend.namespace(unwrap(known))
    zeros = (
        xp.zeros(shape, dtype if dtype.kind == "f" else known.dtype)
        for shape, dtype in zip(node.shape, node.dtype, strict=True)
    )
    if create_graph:
        zeros = (wrap(zero, None, None) for zero in zeros)
    return tuple(zero if slot is None else slot for slot, zero in zip(slots, zeros, strict=True))


def _mend(answer: Any, parent: Place, op: Any, name: str) -> Any:
    """A rule's answer in the shape and dtype of the argument: un-broadcast and cast."""
    from minidl.ops.shape import unbroadcast

    try:
        answer = unbroadcast(answer, parent.shape)
    except ShapeError as error:
        raise GradientError(
            f"{op.__name__}: the rule of {name} gave a gradient of shape {answer.shape} for an "
            f"argument of shape {parent.shape}, which broadcasting cannot have made; {error}"
        ) from error
    return answer if answer.dtype == parent.dtype else answer.astype(parent.dtype)


def _check_finite(node: Node, name: str, contribution: Any) -> None:
    data = unwrap(contribution)
    if not bool(backend.namespace(data).isfinite(data).all()):
        raise GradientError(
            f"{node.op.__name__}: its gradient of {name} is not finite; the op was called at\n"
            f"{node.trace}"
        )


def _run_hooks(place: Place, g: Any) -> Any:
    for hook in tuple(place.hooks or ()):
        replaced = hook(g if isinstance(g, Tensor) else wrap(_array(g), None, None))
        if replaced is not None:
            new = replaced if isinstance(replaced, Tensor) else Tensor(replaced)
            if new.shape != place.shape:
                raise ShapeError(
                    f"hook: expected a gradient of shape {place.shape}, got {new.shape}"
                )
            new = new if new.dtype == place.dtype else new.astype(place.dtype)
            g = new if isinstance(g, Tensor) else new._data
    return g


def _replay(
    function: Callable, args: Sequence, places: Sequence, g: Any, create_graph: bool
) -> dict[Place, Any]:
    """Gradients of `function(*args)` weighted by `g`, at `places` and no further back."""
    with enable_grad():
        outputs = function(*args)
    several = isinstance(outputs, (tuple, list))
    pairs = zip(outputs, g, strict=True) if several else [(outputs, g)]
    seeds: dict[Place, Any] = {}
    for out, cotangent in pairs:
        if isinstance(out, Tensor) and out._node is not None:
            before = seeds.get(out._node)
            seeds[out._node] = cotangent if before is None else before + cotangent
    wanted = {place for place in places if place is not None}
    with enable_grad():
        found = _propagate(seeds, wanted, create_graph, create_graph, boundary=True)
    return {place: gradient for place, (gradient, _) in found.items()}


def differentiate_definition(node: Node, g: Any) -> list[tuple[str, Place, Any]]:
    """The gradients of an array-only op by its readable composition, for create_graph."""
    op = node.op
    values = dict(zip(node.plan.names, node.saved, strict=True))
    args = [values[name] for name in op.names]
    if op.variadic:
        definition = partial(op.definition, **dict(zip(op.names[1:], args[1:], strict=True)))
        args = list(args[0])
    else:
        definition = op.definition
    with replay():
        found = _replay(definition, args, node.parents, g, True)
    names = op.names[:1] * len(node.parents) if op.variadic else op.differentiable
    xp = backend.namespace(unwrap(g[0] if isinstance(g, tuple) else g))
    served: dict[Place, tuple[str, Place, Any]] = {}  # an argument given twice is served once
    for name, parent in zip(names, node.parents, strict=True):
        if parent is not None and parent not in served:
            if parent not in found:  # not used at this shape: zeros, as the fused rule gives
                found[parent] = wrap(xp.zeros(parent.shape, parent.dtype), None, None)
            served[parent] = (name, parent, found[parent])
    return list(served.values())


_deposit_lock = threading.Lock()


def _deposit(leaf: Leaf, g: backend.Array, own: bool) -> None:
    """Add `g` to the leaf's gradient: in its optimiser's buffer, where it has one."""
    before, buffer = leaf.grad, leaf.buffer
    if before is None and buffer is None:
        leaf.grad = wrap(_array(g) if own else _copy(g), None, [0])
    elif buffer is not None:
        if before is not None and before._data is buffer:
            buffer += g
        else:
            buffer[...] = g if before is None else g + before._data
            leaf.grad = wrap(buffer, None, leaf.written)
        leaf.grad._touch()  # type: ignore[union-attr]
    else:
        leaf.grad = wrap(_array(before._data + g), None, [0])  # type: ignore[union-attr]


def _array(g: Any) -> backend.Array:
    """`g` as an array where NumPy made a scalar of an array without dimensions."""
    return np.asarray(g) if isinstance(g, np.generic) else g


def _copy(g: backend.Array) -> backend.Array:
    return g.copy() if type(g) is np.ndarray else backend.namespace(g).array(g)


def _backward(
    self: Tensor,
    gradient: Any = None,
    retain_graph: bool = False,
    inputs: Iterable[Tensor] | None = None,
) -> None:
    """Add the gradient of this tensor to `.grad` of every leaf that it depends on.

    gradient: the weight of each entry, of this tensor's shape; needless for one element.
    retain_graph: keep what the graph saved, for another pass.
    inputs: to these leaves alone; what only others need is not computed.
    Raises GradientError through a freed graph or a changed input, and for other inputs than leaves.
    """
    if self._node is None:
        raise GradientError(
            "backward: the tensor does not depend on one made with requires_grad=True, or was "
            "computed unrecorded (in no_grad, or by an op without a rule)"
        )
    g = seed_of(self, gradient, "backward")
    wanted = None if inputs is None else {x._node for x in inputs}
    for place in wanted or ():
        if place.__class__ is not Leaf:
            raise GradientError("backward: inputs: expected tensors made with requires_grad=True")
    found = _propagate({self._node: g._data}, wanted, False, retain_graph)
    with _deposit_lock:
        for leaf, (value, own) in found.items():
            if leaf.grad is None and leaf.buffer is None and value.__class__ is np.ndarray:  # type: ignore[union-attr]
                leaf.grad = wrap(value if own else value.copy(), None, [0])  # type: ignore[union-attr]
            else:
                _deposit(leaf, value, own)  # type: ignore[arg-type]


Tensor.backward = _backward  # type: ignore[attr-defined]


def seed_of(output: Tensor, gradient: Any, who: str) -> Tensor:
    if gradient is None:
        data = output._data
        if data.size != 1:
            raise GradientError(
                f"{who}: expected an output of one element, got shape {output.shape}; reduce it "
                "(.sum(), .mean()) or give its gradient"
            )
        one = backend.namespace(data).array(1, dtype=data.dtype)
        return wrap(one.reshape(data.shape) if data.ndim else one, None, None)
    if not isinstance(gradient, Tensor):
        gradient = Tensor(gradient, dtype=output.dtype, device=output.device)
    if gradient.shape != output.shape:
        raise ShapeError(
            f"{who}: expected a gradient of shape {output.shape}, got {gradient.shape}"
        )
    if gradient.dtype != output.dtype:
        gradient = gradient.astype(output.dtype)
    return gradient


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    create_graph: bool = False,
    retain_graph: bool | None = None,
    allow_unused: bool = False,
) -> list:
    """The gradients of the sum of `outputs` (weighted by `grad_outputs`), one for each input.

    create_graph: record the gradients themselves, so that they can be differentiated.
    retain_graph: keep the graph for another pass (default: as create_graph).
    allow_unused: None for an input that no output depends on, instead of GradientError.
    Never touches `.grad`.
    """
    outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]  # type: ignore[list-item]
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if grad_outputs is None or isinstance(grad_outputs, Tensor) or backend.is_array(grad_outputs):
        grad_outputs = [grad_outputs]
    if len(grad_outputs) != len(outputs):
        if grad_outputs != [None]:
            raise ShapeError(
                f"grad: grad_outputs: expected {len(outputs)}, one an output, got "
                f"{len(grad_outputs)}"
            )
        grad_outputs = [None] * len(outputs)
    for i, y in enumerate(outputs):
        if not isinstance(y, Tensor):
            raise TypeError(f"grad: outputs[{i}]: expected a Tensor, got {type(y).__name__}")
    for i, x in enumerate(inputs):
        if not isinstance(x, Tensor) or x._node is None:
            raise GradientError(
                f"grad: inputs[{i}] does not require a gradient; make it with requires_grad=True"
            )
    retain = create_graph if retain_graph is None else retain_graph
    with enable_grad():  # for create_graph; rules on bare arrays record nothing anyway
        seeds: dict[Place, Any] = {}
        for output, weight in zip(outputs, grad_outputs, strict=True):
            seed = seed_of(output, weight, "grad")
            if output._node is not None:
                g = seed if create_graph else seed._data
                before = seeds.get(output._node)
                seeds[output._node] = g if before is None else before + g
        wanted = {x._node for x in inputs}
        found = _propagate(seeds, wanted, create_graph, retain)
    return [_result(i, x, found, create_graph, allow_unused) for i, x in enumerate(inputs)]


def _result(i: int, x: Tensor, found: dict, create_graph: bool, allow_unused: bool) -> Any:
    if x._node not in found:
        if allow_unused:
            return None
        raise GradientError(
            f"grad: no output depends on inputs[{i}]; pass allow_unused=True to get None for it"
        )
    gradient, _ = found[x._node]
    return gradient if create_graph else wrap(_copy(gradient), None, None)


# --- Ops of the engine's own ----------------------------------------------------------------------


@primitive(view=True)
def identity(x):
    return x


identity.defvjp(x=lambda g: g)


def stop_gradient(x: Any) -> Any:
    """`x` as a constant: no gradient flows through it."""
    return x.detach() if isinstance(x, Tensor) else x


@primitive(view=True)
def transfer(x, device, source=None):
    """`x` on another device; its gradient comes back to the device `source`."""
    return backend.to_device(x, device)


transfer.defvjp(x=lambda g, source: transfer(g, source))


def _to(self: Tensor, device: str) -> Tensor:
    """This tensor on `device`, differentiably; itself when it is there."""
    return self if self.device == device else transfer(self, device, self.device)


Tensor.to = _to  # type: ignore[attr-defined]


class _Recomputed:
    """Stands where a Primitive does in the node of `recompute`: its derivative runs f again."""

    __name__ = "recompute"

    def __init__(self, function: Callable, args: Sequence, state: dict, versions: list) -> None:
        self.function, self.args, self.state, self.versions = function, args, state, versions

    def contributions(
        self, node: Node, g: Any, create_graph: bool = False, leading: set | None = None
    ) -> list[tuple[str, Place, Any]]:
        if any(version[0] > node.order for version in self.versions):
            refuse_changed(node)
        with replay(self.state):
            found = _replay(self.function, self.args, node.parents, g, create_graph)
        return [
            ("inputs", place, gradient)
            for place, gradient in found.items()
            if leading is None or place in leading
        ]


def _versions(values: Iterable) -> list:
    """The versions of Tensors, also of those inside tuples and lists."""
    found: list = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value._version)
        elif isinstance(value, (tuple, list)):
            found += _versions(value)
    return found


def as_list(value: Any) -> list:
    return list(value) if several(value) else [value]


def as_kind(outputs: Any, values: Sequence) -> Any:
    """`values` in the kind of tuple or list that `outputs` is."""
    return outputs._make(values) if hasattr(outputs, "_make") else type(outputs)(values)


def several(value: Any) -> bool:
    """True for a tuple or list of values; one of numbers is a vector, and so one value."""
    if not isinstance(value, (tuple, list)):
        return False
    return not (value and all(isinstance(item, (int, float)) for item in value))


def recompute(f: Callable, *xs: Any) -> Any:
    """f(*xs), keeping nothing that f computes: backward runs f again (time for memory).

    `f` may use tensors other than `xs`, such as a layer's parameters: they are found and get their
    gradients. Random draws are repeated as they were, layers' buffers are updated once.
    """
    if not is_recording():
        return f(*xs)
    state, start = random.generator().state(), Node(None, 0, (), (), (), None).order
    outputs = f(*xs)
    listed = as_list(outputs)
    if not all(isinstance(y, Tensor) for y in listed):
        raise TypeError(
            "recompute: f: expected a Tensor or a tuple or list of them, got "
            f"{type(outputs).__name__}"
        )
    outer, saved, stack = [], list(xs), [y._node for y in listed if y._node is not None]
    versions: list = []
    seen = set(stack)
    while stack:  # what f took from outside: leaves, and nodes older than the call
        place = stack.pop()
        if isinstance(place, Leaf) or place.order < start:
            outer.append(place)
            if isinstance(place, Leaf):
                versions.append(place.version)
            continue
        saved += place.saved
        if place.op.__class__ is _Recomputed:
            versions += place.op.versions
        for parent in place.parents:
            if parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    if not outer:
        return outputs
    arrays = tuple(y._data for y in listed)
    versions += _versions(saved)
    op = _Recomputed(f, xs, state, [version for version in versions if version is not None])
    node = Node(op, None, tuple(outer), (), None, None)
    if isinstance(outputs, (tuple, list)):
        node.shape, node.dtype = tuple(a.shape for a in arrays), tuple(a.dtype for a in arrays)
        parts = outputs_of(node, arrays)
        for part, y in zip(parts, listed, strict=True):
            part._version = y._version  # of a view
        return as_kind(outputs, parts)
    node.shape, node.dtype = arrays[0].shape, arrays[0].dtype
    return wrap(arrays[0], node, outputs._version)
