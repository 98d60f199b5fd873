"""What holds for every rule, at every node of a graph, whatever the mathematics.

A rule changes neither its inputs nor the incoming gradient, gives a fresh or untouched answer each
time, is linear in the incoming gradient, and answers in the dtype and a shape that the engine need
not guess about. The engine mends shapes and dtypes; these checks look before it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from minidl import backend
from minidl.graph import Node, Tensor, unwrap
from minidl.testing.diagnosis import GradientCheckError


def nodes(outputs: Sequence[Tensor]) -> Iterator[Node]:
    """The nodes that made `outputs`, each once, those that have an op."""
    stack = [y._node for y in outputs if y._node is not None]
    seen = {id(node) for node in stack}
    while stack:
        node = stack.pop()
        if isinstance(node, Node) and node.op is not None:
            yield node
        for parent in node.parents:
            if parent is not None and id(parent) not in seen:
                seen.add(id(parent))
                stack.append(parent)


def check_rules(outputs: Sequence[Tensor], device: str, seed: int, linear: bool = True) -> None:
    """Raise GradientCheckError for the first rule in the graph of `outputs` that is not as above.

    `linear=False` leaves out linearity (what a run in float32 cannot judge).
    """
    generator = np.random.default_rng(seed)
    for node in nodes(outputs):
        _check_node(node, device, generator, linear)


def _check_node(node: Node, device: str, generator: np.random.Generator, linear: bool) -> None:
    op = node.op.__name__
    first, second = (_incoming(node, device, generator) for _ in range(2))
    before = _copies([first, *node.saved])
    answers = _answers(node, first)
    kept = _copies([answer for _, _, answer in answers])
    for name, parent, answer in answers:
        _check_form(op, name, node, parent, unwrap(answer))
    others = _answers(node, second)
    _compare(op, "mutated gradient", before[:1], [first], "the rule wrote into g, which others use")
    _compare(op, "mutated input", before[1:], node.saved, "the rule wrote into an input or output")
    now = [answer for _, _, answer in answers]
    _compare(op, "reused buffer", kept, now, "a later call of the rule changed an earlier answer")
    if not linear:
        return
    both = _answers(node, _combine(first, second))
    for (name, _, a), (_, _, b), (_, _, c) in zip(answers, others, both, strict=True):
        expected = 0.7 * _host(a) - 1.3 * _host(b)
        actual = _host(c)
        scale = float(np.max(np.abs(_host(a)) + np.abs(_host(b)), initial=0.0))
        atol = 1e-9 * scale + 1e-13  # the incoming gradients are of size 1
        if not np.allclose(actual, expected, rtol=1e-8, atol=atol, equal_nan=True):
            raise GradientCheckError(
                "linearity", op,
                f"argument {name}: the rule is not linear in the incoming gradient: "
                f"rule(0.7 a - 1.3 b) and 0.7 rule(a) - 1.3 rule(b) differ by up to "
                f"{np.max(np.abs(actual - expected)):.3g}; likely cause: a constant term, or g "
                "used twice or under a nonlinear function",
                argument=name, cause="nonlinear in g",
            )  # fmt: skip


def _answers(node: Node, g: Any) -> list:
    """(argument, parent, what its rule returned), without those that returned None, for zero."""
    return [answer for answer in node.op.contributions(node, g) if answer[2] is not None]


def _check_form(op: str, name: str, node: Node, parent: Any, answer: Any) -> None:
    """Shape and dtype of a rule's answer, before the engine mends them."""
    own = node.dtype if isinstance(node.dtype, tuple) else (node.dtype,)
    if answer.dtype not in (parent.dtype, *own):
        raise GradientCheckError(
            "dtype", op,
            f"argument {name}: the rule gives {answer.dtype} where the argument is {parent.dtype}; "
            "likely cause: a NumPy scalar or a default dtype in the rule; use Python numbers",
            argument=name, cause=f"{answer.dtype} leaks into {parent.dtype}",
        )  # fmt: skip
    if answer.shape != parent.shape and not _grown(parent.shape, answer.shape):
        raise GradientCheckError(
            "shape", op,
            f"argument {name}: the rule gives shape {answer.shape} for an argument of shape "
            f"{parent.shape}, which broadcasting cannot have made; likely cause: a missing "
            "reshape, transpose or sum",
            argument=name, cause="shape",
        )  # fmt: skip


def _grown(shape: tuple, answer: tuple) -> bool:
    """Whether broadcasting can have made `answer` of `shape`."""
    try:
        return np.broadcast_shapes(shape, answer) == answer
    except ValueError:
        return False


def _incoming(node: Node, device: str, generator: np.random.Generator) -> Any:
    """A random gradient for the op's output, or a tuple of them for several outputs."""

    def one(shape: tuple, dtype: np.dtype) -> Any:
        values = generator.uniform(-1.5, 1.5, shape)
        if dtype.kind != "f":
            values, dtype = np.zeros(shape), np.dtype(np.float64)
        return backend.to_device(np.asarray(values, dtype), device)

    if isinstance(node.dtype, tuple):
        return tuple(one(s, d) for s, d in zip(node.shape, node.dtype, strict=True))
    return one(node.shape, node.dtype)


def _combine(a: Any, b: Any) -> Any:
    if isinstance(a, tuple):
        return tuple(_combine(x, y) for x, y in zip(a, b, strict=True))
    return 0.7 * a - 1.3 * b


def _copies(value: Any) -> Any:
    """Host copies of all arrays in nested lists and tuples; None for anything else."""
    value = unwrap(value)
    if isinstance(value, (list, tuple)):
        return [_copies(item) for item in value]
    return np.array(backend.to_host(value)) if backend.is_array(value) else None


def _compare(op: str, stage: str, before: Any, now: Any, message: str) -> None:
    """Raise unless all arrays in `now` have the values that `before` has."""
    now = unwrap(now)
    if isinstance(before, list):
        for old, new in zip(before, now, strict=True):
            _compare(op, stage, old, new, message)
    elif before is not None and not np.array_equal(
        before, _host(now), equal_nan=before.dtype.kind == "f"
    ):
        raise GradientCheckError(stage, op, message, cause=stage)


def _host(value: Any) -> np.ndarray:
    return np.asarray(backend.to_host(unwrap(value)))
