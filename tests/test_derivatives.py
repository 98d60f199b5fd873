"""Derivatives of closures, replays, freed graphs, changed inputs, modes."""

from collections import namedtuple

import numpy as np
import pytest

import minidl as md
from minidl.errors import DtypeError, GradientError
from minidl.testing import check_gradients

X = np.array([0.3, 0.7])
Two = namedtuple("Two", "a b")


def leaf(values=(1.0, 2.0)):
    return md.tensor(list(values), requires_grad=True)


class TestDerivativesOfClosures:
    """A derivative by constant data is itself differentiable by what f closes over."""

    @pytest.mark.parametrize(
        "derivative",
        [
            lambda f, x: md.vjp(f, x)[1](1.0)[0],
            lambda f, x: md.jvp(f, x, md.ones_like(x))[1],
            lambda f, x: md.hvp(f, x, md.ones_like(x)),
            md.jacobian,
            md.hessian,
        ],
    )
    def test_by_parameters(self, derivative):
        x = md.tensor([1.0, 2.0])
        check_gradients(lambda w: derivative(lambda x: (w * x**3).sum(), x.astype(w.dtype)), X)
        w = leaf()
        with md.no_grad():
            assert not derivative(lambda x: (w * x**3).sum(), x).requires_grad
        assert not derivative(lambda x: (w.detach() * x**3).sum(), x).requires_grad

    def test_a_gradient_penalty_by_vjp(self):
        w, x = leaf(), md.tensor([1.0, 2.0])
        (g,) = md.vjp(lambda x: (w * x**3).sum(), x)[1](1.0)
        (g * g).sum().backward()
        assert w.grad.tolist() == [18.0, 576.0]

    @pytest.mark.parametrize("f", [md.jacobian, md.hessian])
    def test_by_the_argument(self, f):
        check_gradients(lambda x: f(lambda a: (a**3).sum(), x), X)


class TestRecompute:
    def test_hooks_are_called_once(self):
        x, seen = leaf(), []
        h = x * 1.0
        x.register_hook(lambda g: g * 10)
        h.register_hook(lambda g: seen.append(g.tolist()))
        (md.recompute(lambda h: h * h, h) + h).sum().backward()
        assert seen == [[3.0, 5.0]] and x.grad.tolist() == [30.0, 50.0]

    @pytest.mark.parametrize(
        "f",
        [
            md.exp,
            lambda x: md.recompute(md.exp, x),
            lambda x: md.recompute(lambda x: x * x, x),
            lambda x: md.recompute(lambda y: y * md.exp(x), md.tensor([1.0, 2.0])),
            lambda x: md.einsum("i,i->i", x, x),
        ],
    )
    def test_a_changed_input_raises(self, f):
        x = leaf()
        y = md.recompute(f, x)
        x.assign_([5.0, 6.0])
        with pytest.raises(GradientError, match="changed in place"):
            y.sum().backward()

    def test_views_among_several_outputs(self):
        x = leaf()
        a, _ = md.recompute(lambda x: (x[:1], x[1:]), x)
        y = a * a
        x.assign_([5.0, 6.0])
        with pytest.raises(GradientError, match="changed in place"):
            y.sum().backward()

    def test_kinds_of_outputs(self):
        assert isinstance(md.recompute(lambda x: Two(x * x, x), leaf()), Two)
        assert isinstance(md.jvp(lambda x: Two(x * x, x), leaf(), leaf())[1], Two)
        with pytest.raises(TypeError, match="recompute: f: expected a Tensor"):
            md.recompute(lambda x: {"y": x}, leaf())


@pytest.mark.parametrize("allow_unused", [False, True])
@pytest.mark.parametrize("direct", [0.0, 1.0])
def test_grad_through_a_freed_part_raises(allow_unused, direct):
    x = leaf()
    z = x * x
    y = (z * 3 + (x if direct else 0.0)).sum()
    z.sum().backward()
    with pytest.raises(GradientError, match="freed"):
        md.grad(y, [x], allow_unused=allow_unused)


def test_modes_nest():
    x = leaf([0.0, 1.0])
    with md.no_grad(), md.anomaly_mode():
        assert not (x * 2).requires_grad
    not_finite = pytest.raises(GradientError, match="not finite")
    with np.errstate(all="ignore"), md.anomaly_mode(), not_finite:
        md.hvp(lambda x: md.sqrt(x).sum(), x, x)


def test_assign_():
    x = leaf()
    with pytest.raises(GradientError, match="the result of _getitem"):
        x[:1].assign_([3.0])
    with pytest.raises(DtypeError, match="assign_: array: expected int64"):
        md.tensor([1, 2]).assign_(md.tensor([1.5, 2.5]))


def test_what_is_not_real_is_refused():
    for y in (1j, np.array([1j]), np.complex64(1)):
        with pytest.raises(DtypeError, match="multiply: expected real"):
            leaf([1.0]) * y

    @md.primitive
    def wrong(x):
        return float(x.sum())

    with pytest.raises(TypeError, match="wrong: expected an array"):
        wrong(leaf())
    with pytest.raises(TypeError, match=r"grad: outputs\[0\]: expected a Tensor"):
        md.grad(3.0, [leaf()])
