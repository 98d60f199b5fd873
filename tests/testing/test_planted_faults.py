"""The checker finds wrong rules: planted by hand below, and by mutating every registered rule."""

import os

import numpy as np
import pytest

import minidl as md
from minidl import ops
from minidl.graph import Tensor, unwrap
from minidl.recording import Primitive
from minidl.samples import REGISTRY, Draw
from minidl.testing import GradientCheckError, check_call, check_gradients
from minidl.testing.problem import gradients, make_problem
from minidl.testing.rules import nodes

X = np.array([[0.4, -0.7, 1.1], [1.6, -1.3, 0.2], [-0.9, 0.8, 1.4]])
Y = np.array([[1.2, 0.3, -0.5], [-1.1, 0.6, 0.9], [0.7, -1.5, -0.2]])
ROW = np.array([[0.5, -1.2, 0.9]])
TIES = np.array([1.0, 2.0, 2.0, 2.0])

FAULTS = {}


def planted(stage, *inputs, cause=""):
    """Register a maker of a wrong op: the stage that finds it, and a word of the cause."""

    def register(make):
        FAULTS[make.__name__] = (make, stage, inputs, cause)
        return make

    return register


def op_of(body, joint=None, of=(), options=None, **rules):
    """A primitive named op."""
    op = md.primitive(body, **(options or {}))
    op.__name__ = "op"
    op.defvjp(joint=joint, of=of, **rules) if joint else op.defvjp(**rules)
    return op


@planted("gradient", X, cause="factor: the gradient is 0.5")
def factor():
    return op_of(lambda x: x * x, x=lambda g, x: g * x)


@planted("gradient", X, cause="factor: the gradient is 1.01")
def small_factor():
    return op_of(lambda x: x * x, x=lambda g, x: g * x * 2.02)


@planted("gradient", X, cause="sign")
def sign():
    return op_of(lambda x: -x, x=lambda g: g)


@planted("gradient", X, Y, cause="transpose")
def missing_transpose():
    return op_of(
        lambda x, y: x.T @ y, x=lambda g, y: g @ ops.swapaxes(y, 0, 1), y=lambda g, x: x @ g
    )


@planted("gradient", X, Y)
def swapped_arguments():
    return op_of(lambda x, y: x * y, x=lambda g, x: g * x, y=lambda g, y: g * y)


@planted("gradient", X, ROW, cause="broadcast")
def missing_sum_over_a_broadcast_axis():
    return op_of(lambda x, y: x + y * y, x=lambda g: g, y=lambda g, y: 2.0 * y * g[:1])


@planted("shape", X, np.array([0.3, 1.0]))
def a_shape_that_broadcasting_cannot_make():
    return op_of(lambda x, y: x * y.sum(), x=lambda g, y: g * y.sum(), y=lambda g, x: g * x)


@planted("gradient", X)
def sum_over_the_wrong_axis():
    return op_of(
        lambda x: np.cumsum(x, 0) * 1.0, x=lambda g: ops.flip(ops.cumsum(ops.flip(g, 1), 1), 1)
    )


@planted("gradient", TIES)
def every_tie_gets_all():
    return op_of(lambda x: x.max(), x=lambda g, x, out: g * ops.astype(x == out, "float64"))


@planted("dtype", X, cause="float64 leaks into float32")
def float64_leak_in_the_rule():
    return op_of(lambda x: x * 2, x=lambda g: g * np.float64(2.0))


@planted("dtype", X, cause="float64 leaks into float32")
def float64_leak_in_the_op():
    return op_of(lambda x: x * np.float64(2.0), x=lambda g: g * 2.0)


@planted("dtype", X, cause="float32 leaks into float64")
def precision_lost_in_the_rule():
    return op_of(lambda x: x * 2, x=lambda g: ops.astype(g, "float32") * 2.0)


@planted("reused buffer", X)
def gradient_in_a_buffer_that_is_reused():
    buffer = np.zeros(X.shape)
    return op_of(lambda x: x * 2, x=lambda g: np.multiply(unwrap(g), 2.0, out=buffer))


@planted("reused buffer", X, Y)
def one_buffer_for_two_gradients():
    buffer = np.zeros(X.shape)

    def joint(g, x, y, needs):
        return np.multiply(unwrap(g), y, out=buffer), np.multiply(unwrap(g), x, out=buffer)

    return op_of(lambda x, y: x * y, joint=joint, of=("x", "y"))


@planted("reused buffer", X)
def output_in_a_buffer_that_is_reused():
    buffer = np.zeros(X.shape)
    return op_of(lambda x: np.multiply(x, 2.0, out=buffer), x=lambda g: g * 2.0)


@planted("gradient", X)
def residual_in_a_buffer_that_is_reused():
    buffer = np.zeros(X.shape)

    def body(x):
        return np.sin(x), np.cos(x, out=buffer)

    op = op_of(body, options={"residuals": True}, x=lambda g, kept: g * kept)
    op.define(ops.sin)
    return op


@planted("aliasing", X)
def output_shares_memory_with_the_input():
    return op_of(lambda x: x[::-1], x=lambda g: g[::-1])


@planted("mutated input", X)
def op_writes_into_its_input():
    def body(x):
        x *= 2.0
        return x + 0.0

    return op_of(body, x=lambda g: g * 2.0)


@planted("mutated input", X)
def rule_writes_into_its_input():
    def rule(g, x):
        unwrap(x)[0] = 0.0
        return g * 2.0

    return op_of(lambda x: 2.0 * x, x=rule)


@planted("mutated gradient", X)
def rule_writes_into_the_gradient():
    def rule(g):
        g = unwrap(g)
        g *= 2.0
        return g

    return op_of(lambda x: 2.0 * x, x=rule)


@planted("gradient of the gradient", X, cause="detached")
def detached_second_order():
    return op_of(lambda x: np.sin(x), x=lambda g, x: g * np.cos(unwrap(x)))


@planted("gradient of the gradient", X)
def gradient_detached_from_g():
    return op_of(lambda x: np.sin(x), x=lambda g, x: ops.cos(x) * unwrap(g))


@planted("gradient of the gradient", X)
def stale_second_order():
    """The rule keeps the Tensors of its first recorded call."""
    memory = []

    def rule(g, x):
        if isinstance(x, Tensor):
            memory.append(ops.cos(x) if not memory else memory[0])
            return g * ops.multiply(0.5, memory[0] + md.stop_gradient(ops.cos(x)))
        return g * ops.cos(x)

    return op_of(lambda x: np.sin(x), x=rule)


@planted("create_graph", X)
def definition_of_another_function():
    op = op_of(
        lambda x: (np.sin(x), np.cos(x)), options={"residuals": True}, x=lambda g, kept: g * kept
    )
    op.define(lambda x: ops.sin(x) * 1.001)
    return op


@planted("gradient of the gradient", X, cause="factor")
def wrong_rule_inside_a_rule():
    inner = op_of(lambda x: 3 * x * x, x=lambda g, x: g * 3.0 * x)
    return op_of(lambda x: x**3, x=lambda g, x: g * inner(x))


@planted("gradient", np.arange(6.0).reshape(3, 2), cause="axis 0: off by one")
def off_by_one():
    return op_of(lambda x: x * x, x=lambda g, x: ops.roll(2.0 * g * x, 1, 0))


@planted("gradient", np.arange(1.0, 5.0), cause="reversed")
def reversed_order():
    return op_of(
        lambda x: np.cumsum(x * x), x=lambda g, x: 2.0 * ops.flip(x) * ops.cumsum(ops.flip(g))
    )


@planted("gradient", np.arange(1.0, 5.0), cause="repeated indices")
def repeats_assigned_instead_of_added():
    def rule(g, x_shape):
        zeros = np.zeros(x_shape, g.dtype)
        zeros[[0, 1, 1]] = unwrap(g)
        return zeros

    return op_of(lambda x: x[np.array([0, 1, 1])], x=rule)


@planted("gradient", X, cause="inverted mask")
def inverted_mask():
    return op_of(lambda x: np.maximum(x, 0), x=lambda g, x: g * ops.astype(x < 0, "float64"))


@planted("linearity", X, cause="nonlinear")
def constant_term():
    return op_of(lambda x: x * 2, x=lambda g: 2.0 * g + 1e-3)


@planted("linearity", X, cause="nonlinear")
def nonlinear_in_g():
    return op_of(lambda x: x * 2, x=lambda g: 2.0 * ops.abs(g))


@planted("gradient", X, Y, cause="dropped")
def dropped_dependence():
    return op_of(lambda x, y: x * y, x=lambda g, y: g * y, y=lambda g: None)


@planted("gradient", X, cause="does not depend")
def invented_dependence():
    return op_of(lambda x: np.sign(x), x=lambda g: g)


@planted("gradient", X, cause="not finite")
def division_by_zero():
    """Every other check passes: the norm at 0."""
    norm = op_of(lambda x: np.sqrt((x * x).sum()), x=lambda g, x, out: g * x / out)
    return lambda x: norm(x * 0.0)


@planted("gradient", X, Y)
def joint_answers_in_the_wrong_order():
    return op_of(lambda x, y: x * y, joint=lambda g, x, y, needs: (g * x, g * y), of=("x", "y"))


@planted("gradient", X)
def a_second_output_forgotten():
    return op_of(lambda x: (x * 2, x * x), x=lambda g: g[0] * 2.0)


@planted("gradient", X, cause="transpose")
def reshaped_in_the_wrong_order():
    return op_of(lambda x: x.T.reshape(9) * 1.0, x=lambda g: ops.reshape(g, (3, 3)))


@planted("gradient", X)
def last_slice_forgotten():
    return op_of(lambda x: x * 2, x=lambda g: 2.0 * g * np.array([1.0, 1.0, 0.0]))


@planted("gradient", X)
def mean_without_its_count():
    return op_of(lambda x: x.mean(1), x=lambda g: ops.expand_dims(g, 1) * np.ones(X.shape))


@planted("chance", X)
def numbers_of_its_own():
    generator = np.random.default_rng(0)
    return op_of(lambda x: x * generator.uniform(), x=lambda g: g)


@planted("gradient", X, cause="dropped or detached")
def detached_inside_a_model():
    return lambda x: md.tanh(x) * 0.0 + md.stop_gradient(x * x)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_planted_by_hand(name):
    make, stage, inputs, cause = FAULTS[name]
    with pytest.raises(GradientCheckError) as caught:
        check_gradients(make(), *inputs)
    assert caught.value.stage == stage
    assert cause in str(caught.value.cause), caught.value


def test_the_right_op_passes():
    """The faults above are faults of their rules, not of the inputs."""
    check_gradients(op_of(lambda x, y: x * y, x=lambda g, y: g * y, y=lambda g, x: g * x), X, ROW)
    assert len(FAULTS) >= 25


def test_the_op_to_blame_is_named():
    """Deep in a function of many ops, by name and argument."""
    wrong = op_of(lambda x: np.sin(x), x=lambda g, x: g * ops.cos(x) * 1.1)
    wrong.__name__ = "crooked_sine"
    with pytest.raises(GradientCheckError, match=r"crooked_sine.*\n.*crooked_sine") as caught:
        check_gradients(lambda x: md.sum(md.tanh(wrong(x @ x)) * x), X)
    assert caught.value.op == "crooked_sine"
    assert caught.value.argument == "x"
    assert caught.value.cause.startswith("a factor: the gradient is 1.1")


# --- Mutations of the registered rules ------------------------------------------------------------


def drop_last_slice(answer):
    """Zeros in the last place of the last axis that has several."""
    axis = max(i for i, side in enumerate(answer.shape) if side > 1)
    keep = np.ones(answer.shape[axis])
    keep[-1] = 0.0
    return answer * keep.reshape([-1] + [1] * (answer.ndim - 1 - axis))


def roll(answer):
    """Everything one place on, in the order of memory."""
    return ops.reshape(ops.roll(ops.reshape(answer, (-1,)), 1), answer.shape)


def transpose(answer):
    """The last two axes swapped."""
    return ops.swapaxes(answer, -1, -2)


def several(shape):
    """Whether there is anything to reorder or to drop."""
    return any(side > 1 for side in shape)


MUTATIONS = {
    "scale": (lambda answer: answer * 1.01, lambda shape: True),
    "negate": (lambda answer: -answer, lambda shape: True),
    "zero": (lambda answer: answer * 0.0, lambda shape: True),
    "drop": (drop_last_slice, several),
    "roll": (roll, lambda shape: several(shape) and 0 not in shape),
    "transpose": (transpose, lambda shape: len(shape) > 1 and shape[-1] == shape[-2]),
    "detach": (None, None),
}


class Mutant:
    """While entered, an op's rule for one argument answers wrongly: its answer is changed, or, to
    "detach", it is made of constants (right, but not differentiable in the arguments)."""

    def __init__(self, op, position, mutation):
        self.op, self.position = op, position
        self.change, self.fits = MUTATIONS[mutation]
        self.rule = op.joint or op.rules[op.differentiable[position]]
        self.original = self.rule.function

    def __enter__(self):
        self.rule.function = self.mutated if self.change else self.detached
        self.op._plans.clear()

    def __exit__(self, *error):
        self.rule.function = self.original
        self.op._plans.clear()

    def detached(self, g, *args):
        return self.original(g, *map(constant, args))

    def mutated(self, *args):
        answers = self.original(*args)
        if self.op.joint is None:
            return self.mutate(answers)
        answers = list(answers)
        answers[self.position] = self.mutate(answers[self.position])
        return tuple(answers)

    def mutate(self, answer):
        return self.change(answer) if answer is not None and self.fits(answer.shape) else answer


def constant(value):
    """The value without its graph."""
    if type(value) in (tuple, list):
        return type(value)(map(constant, value))
    return value.detach() if isinstance(value, Tensor) else value


def slopes(entry, call, order):
    """The gradients of that order, of <outputs, random numbers>."""
    problem = make_problem(entry.function, call.args, call.kwargs, (), floats=False)
    generator = np.random.default_rng(0)
    for _ in range(order):
        with problem.at(problem.point) as (leaves, outputs):
            weights = [generator.uniform(0.5, 1.5, y.shape) for y in outputs]
            found = gradients(outputs, leaves, [md.tensor(w) for w in weights])
        problem = problem.derivative(weights)
    return [g.numpy() for g in found]


def rules_to_mutate():
    """(entry, op, position): each rule once, with a registered op whose graph it is in."""
    seen = set()
    for entry in REGISTRY.values():
        if not entry.differentiable:
            continue
        for seed in range(3):
            call = entry.draw_case(Draw(seed))
            problem = make_problem(entry.function, call.args, call.kwargs, (), floats=False)
            with problem.at(problem.point) as (_, outputs):
                for node in nodes(outputs):
                    positions = 1 if node.op.variadic else len(node.op.differentiable)
                    for position in range(positions):
                        if (id(node.op), position) not in seen and isinstance(node.op, Primitive):
                            seen.add((id(node.op), position))
                            yield entry, node.op, position


def caught(entry, mutant, order):
    """Whether the check fails at one of a few draws where the mutant gives other gradients; None if
    it gives the same ones at all of them: nothing to find (rules that answer 0, say)."""
    for seed in range(12):
        call = entry.draw_case(Draw(seed))
        right = slopes(entry, call, order)
        with mutant:
            wrong = slopes(entry, call, order)
            if all(np.allclose(a, b, rtol=1e-3) for a, b in zip(right, wrong, strict=True)):
                continue
            try:
                check_call(entry.function, call, order=order, dtypes=False)
            except GradientCheckError:
                return True
            return False
    return None


PERSONS = ("scale", "detach")  # one of each order; all seven, a minute and more, in CI's profile
HERE = PERSONS if os.environ.get("HYPOTHESIS_PROFILE", "person") == "person" else MUTATIONS


@pytest.mark.parametrize("mutation", HERE)
def test_mutations_of_every_registered_rule(mutation):
    order = 2 if mutation == "detach" else 1
    outcomes = {
        f"{op.__name__}[{position}] by {entry.name}": caught(
            entry, Mutant(op, position, mutation), order
        )
        for entry, op, position in rules_to_mutate()
    }
    same = [name for name, found in outcomes.items() if found is None]
    missed = [name for name, found in outcomes.items() if found is False]
    judged = len(outcomes) - len(same)
    print(f"{mutation}: {judged - len(missed)} of {judged} mutants caught; alike: {same}")
    assert missed == []
    assert judged >= 20
