"""Every registered op, at drawn and at forced calls: what `check_call` checks holds for all."""

import importlib
import pkgutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl
from minidl.recording import Primitive
from minidl.samples import FORCES, REGISTRY, Draw, Entry
from minidl.testing import check_call, check_constant, strategies
from minidl.testing.problem import gradients, make_problem
from minidl.testing.rules import nodes

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(minidl.__path__, "minidl.")
    if module.name.startswith(("minidl.ops", "minidl.functional"))
]
EACH = pytest.mark.parametrize("entry", REGISTRY.values(), ids=REGISTRY.keys())


def check(entry: Entry, call, device: str) -> None:
    """Gradients of order 2, or that the op is a constant."""
    if entry.differentiable:
        check_call(entry.function, call, device=device)
    else:
        check_constant(entry.function, call, device=device)


@EACH
@given(data=st.data())
def test_drawn_calls(entry, device, data):
    check(entry, data.draw(strategies.calls(entry.name)), device)


@EACH
@pytest.mark.parametrize("force", FORCES)
def test_forced_calls(entry, force, device):
    check(entry, entry.draw_case(Draw(seed=0, force=force)), device)


def test_every_public_op_has_samples():
    known = {id(entry.function) for entry in REGISTRY.values()}
    assert [n for n in minidl.ops.__all__ if id(getattr(minidl.ops, n)) not in known] == []


def test_every_op_without_rules_says_so():
    silent = [op.__name__ for op in primitives() if op.constant == bool(op.differentiable)]
    assert silent == []


def primitives():
    return {v for module in MODULES for v in vars(module).values() if isinstance(v, Primitive)}


def test_every_rule_is_reached():
    """Every primitive with rules is in the graph of some registered op, or of its gradient."""
    reached = set()
    for entry in REGISTRY.values():
        for seed in range(3 * entry.differentiable):
            call = entry.draw_case(Draw(seed))
            problem = make_problem(entry.function, call.args, call.kwargs, (), floats=False)
            with problem.at(problem.point) as (leaves, outputs):
                weights = [y.detach() for y in outputs]
                found = gradients(outputs, leaves, weights, create_graph=True)
                reached |= {node.op.__name__ for node in nodes([*outputs, *found])}
    assert {op.__name__ for op in primitives() if op.differentiable} - reached == set()
