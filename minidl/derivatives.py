"""Differential operators, built on `grad`: vjp, jvp, hvp, jacobian, hessian, as in JAX.

Each is differentiable itself wherever something differentiable stands behind it: its arguments, or
tensors that the function takes from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidl import backend
from minidl.autodiff import as_kind, as_list, grad, identity, seed_of, several
from minidl.graph import Leaf, Tensor, wrap
from minidl.recording import enable_grad, is_recording

__all__ = ["hessian", "hvp", "jacobian", "jvp", "vjp"]


def _variables(xs: Sequence) -> list[Tensor]:
    """Tensors of their own graph places, joined to the graph of those that had one."""
    joined = []
    for x in xs:
        if isinstance(x, Tensor) and x._node is not None and is_recording():
            joined.append(identity(x))
        else:
            new = wrap(x._data, None, x._version) if isinstance(x, Tensor) else Tensor(x)
            new.requires_grad = True
            joined.append(new)
    return joined


def _gradients(ys: Sequence, xs: Sequence, weights: Sequence, create_graph: bool) -> list[Tensor]:
    """As `grad`, the graph kept, zeros where an output does not depend on an input."""
    for y in ys:
        if not isinstance(y, Tensor):
            raise TypeError(f"expected a function that returns a Tensor, got {type(y).__name__}")
    pairs = [(y, w) for y, w in zip(ys, weights, strict=True) if y._node is not None]
    found: list = [None] * len(xs)
    if pairs:
        outputs, chosen = zip(*pairs, strict=True)
        found = grad(list(outputs), xs, list(chosen), create_graph, True, allow_unused=True)
    return [
        wrap(backend.namespace(x._data).zeros_like(x._data), None, None) if g is None else g
        for g, x in zip(found, xs, strict=True)
    ]


def _tracked(values: Sequence, outputs: Sequence, inputs: Sequence) -> bool:
    """True where a derivative of `outputs` may itself be differentiated: by a tensor among `values`
    or by one that the function of `inputs` has taken from outside, such as a parameter."""
    if any(isinstance(v, Tensor) and v._node is not None for v in values):
        return True
    seen = {x._node for x in inputs if x._node.__class__ is Leaf}
    stack = [y._node for y in outputs if y._node is not None and y._node not in seen]
    while stack:
        place = stack.pop()
        if place.__class__ is Leaf:
            return True
        for parent in place.parents:
            if parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return False


def vjp(f: Callable, *xs: Any) -> tuple[Any, Callable]:
    """(f(*xs), pullback): pullback(v) gives, as a tuple, the product of v and f's Jacobian by each
    of `xs`; it may be called again, and is itself differentiable in v."""
    with enable_grad():
        inputs = _variables(xs)
        outputs = f(*inputs)

    def pullback(*weights: Any) -> tuple[Tensor, ...]:
        if len(weights) == 1 and isinstance(weights[0], (tuple, list)):
            weights = tuple(weights[0])
        listed = as_list(outputs)
        create_graph = is_recording() and _tracked((*weights, *xs), listed, inputs)
        return tuple(_gradients(listed, inputs, weights, create_graph))

    return outputs, pullback


def jvp(f: Callable, xs: Any, vs: Any) -> tuple[Any, Any]:
    """(f(*xs), the derivative of f at `xs` along `vs`), by two reverse passes: the pullback is
    linear in its argument, and its own pullback is the derivative wanted."""
    recording = is_recording()
    with enable_grad():
        inputs = _variables(as_list(xs))
        outputs = f(*inputs)
        listed = as_list(outputs)
        dummies = [Tensor(np.zeros(y.shape), True, y.dtype, y.device) for y in listed]
        pulled = _gradients(listed, inputs, dummies, create_graph=True)
        tangents = [seed_of(x, v, "jvp") for x, v in zip(inputs, as_list(vs), strict=True)]
        create_graph = recording and _tracked((*as_list(xs), *tangents), listed, inputs)
        pushed = _gradients(pulled, dummies, tangents, create_graph)
    return outputs, as_kind(outputs, pushed) if isinstance(outputs, (tuple, list)) else pushed[0]


def hvp(f: Callable, x: Any, v: Any) -> Any:
    """The Hessian of the scalar function `f` at `x`, times `v`; lists of both for several."""
    recording = is_recording()
    with enable_grad():
        inputs = _variables(as_list(x))
        output = f(*inputs)
        first = _gradients([output], inputs, [None], create_graph=True)
        weights = [seed_of(g, w, "hvp") for g, w in zip(first, as_list(v), strict=True)]
        create_graph = recording and _tracked((*as_list(x), *weights), [output], inputs)
        second = _gradients(first, inputs, weights, create_graph)
    return second if several(x) else second[0]


def _rows(y: Tensor, x: Tensor, create_graph: bool) -> Tensor:
    """The Jacobian of y by x, of shape y.shape + x.shape, one backward pass a row."""
    from minidl.ops import reshape, stack

    xp = backend.namespace(y._data)
    if not y.size:
        return wrap(xp.zeros(y.shape + x.shape, x.dtype), None, None)
    basis = xp.eye(y.size, dtype=y.dtype).reshape((y.size, *y.shape))
    rows = [_gradients([y], [x], [wrap(u, None, None)], create_graph)[0] for u in basis]
    return reshape(stack(rows), y.shape + x.shape)


def jacobian(f: Callable, x: Any) -> Tensor:
    """The Jacobian of `f` at `x`, of shape f(x).shape + x.shape."""
    recording = is_recording()
    with enable_grad():
        (variable,) = _variables([x])
        y = f(variable)
        return _rows(y, variable, recording and _tracked([x], [y], [variable]))


def hessian(f: Callable, x: Any) -> Tensor:
    """The Hessian of the scalar function `f` at `x`, of shape x.shape + x.shape."""
    recording = is_recording()
    with enable_grad():
        (variable,) = _variables([x])
        y = f(variable)
        (first,) = _gradients([y], [variable], [None], create_graph=True)
        return _rows(first, variable, recording and _tracked([x], [y], [variable]))
