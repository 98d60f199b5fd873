"""Losses of one number against another: far out, at kinks, and what is refused."""

import numpy as np
import pytest

import minidl as md
from minidl import functional
from minidl.errors import GradientError, ShapeError
from minidl.testing import check_gradients

rng = np.random.default_rng(0)


def value_and_gradient(function, x, t, **options):
    x = md.tensor(x, requires_grad=True)
    value = function(x, t, reduction="sum", **options)
    value.backward()
    return value.item(), x.grad.numpy()


class TestFarOut:
    """At +-1e4 in float32: the value, and the gradient."""

    X = np.array([1e4, -1e4, 1e4, -1e4], np.float32)
    T = np.array([1, 0, 0, 1], np.float32)

    def test_binary(self):
        value, gradient = value_and_gradient(
            functional.binary_cross_entropy_with_logits, self.X, self.T
        )
        assert value == 2e4 and gradient.round(6).tolist() == [0, 0, 1, -1]
        value, gradient = value_and_gradient(
            functional.binary_cross_entropy_with_logits, self.X, self.T, pos_weight=3.0
        )
        assert value == 4e4 and gradient.round(6).tolist() == [0, 0, 1, -3]

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
    def test_focal(self, gamma):
        value, gradient = value_and_gradient(
            functional.binary_focal_with_logits, self.X, self.T, gamma=gamma
        )
        assert value == 1e4 and gradient.tolist() == [0, 0, 0.75, -0.25]
        x = md.tensor(self.X, requires_grad=True)
        loss = functional.binary_focal_with_logits(x, self.T, reduction="sum", gamma=gamma)
        (g,) = md.grad(loss, [x], create_graph=True)  # by the definition
        np.testing.assert_allclose(g.numpy(), gradient, atol=1e-6)

    def test_regression(self):
        zeros = np.zeros(4, np.float32)
        for function in (functional.huber, functional.log_cosh, functional.mean_absolute_error):
            value, gradient = value_and_gradient(function, self.X, zeros)
            assert value == pytest.approx(4e4, rel=1e-4)
            assert gradient.tolist() == [1, -1, 1, -1]


def test_focal_of_the_unlikely():
    """Where the target is nearly certain the loss is tiny, and right to the last digits."""
    x = np.array([20.0, 40.0], np.float32)
    found = np.asarray(functional.binary_focal_with_logits(x, np.ones(2), alpha=None, gamma=1.0,
                                                           reduction="none"))  # fmt: skip
    np.testing.assert_allclose(found, np.exp(-2.0 * x.astype(float)), rtol=1e-5)


def test_focal_is_cross_entropy_for_gamma_0():
    x, t = rng.normal(size=(5, 3)), rng.uniform(size=(5, 3))
    focal = functional.binary_focal_with_logits(x, t, alpha=None, gamma=0.0)
    assert focal == pytest.approx(functional.binary_cross_entropy_with_logits(x, t), rel=1e-12)


def test_focal_of_targets_between_as_in_torchvision():
    torch = pytest.importorskip("torch")
    x, t = rng.normal(size=(5, 3)), rng.uniform(size=(5, 3))
    theirs, soft = torch.tensor(x, requires_grad=True), torch.tensor(t)
    p = torch.sigmoid(theirs)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(theirs, soft, reduction="none")
    p_t, alpha = p * soft + (1 - p) * (1 - soft), 0.25 * soft + 0.75 * (1 - soft)
    wanted = (alpha * entropy * (1 - p_t) ** 2).sum()
    wanted.backward()
    value, gradient = value_and_gradient(functional.binary_focal_with_logits, x, t)
    assert value == pytest.approx(wanted.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-10, atol=1e-14)


def test_focal_smoothed_and_refused():
    x, t = rng.normal(size=4), np.array([0, 1, 1, 0])
    smooth = functional.binary_focal_with_logits(x, t * 0.8 + 0.1)
    assert functional.binary_focal_with_logits(x, t, label_smoothing=0.2) == pytest.approx(smooth)
    with pytest.raises(ValueError, match="gamma: expected 0 or more, got -1"):
        functional.binary_focal_with_logits(x, t, gamma=-1)
    with pytest.raises(ValueError, match="alpha: expected a number from 0 to 1"):
        functional.binary_focal_with_logits(x, t, alpha=2)
    with pytest.raises(GradientError, match="targets has no derivative"):
        trained = md.tensor(t.astype(float), requires_grad=True)
        functional.binary_focal_with_logits(md.tensor(x, requires_grad=True), trained)


def test_weights_of_positive_targets():
    torch = pytest.importorskip("torch")
    x, t, w = rng.normal(size=(4, 3)), rng.integers(0, 2, (4, 3)), np.array([1.0, 2.0, 0.5])
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(x), torch.tensor(t * 1.0), pos_weight=torch.tensor(w)
    )
    found = functional.binary_cross_entropy_with_logits(x, t, pos_weight=w)
    assert found == pytest.approx(wanted.item(), rel=1e-12)
    with pytest.raises(ShapeError, match=r"pos_weight: expected shape \(3,\), got \(2,\)"):
        functional.binary_cross_entropy_with_logits(x, t, pos_weight=[1.0, 2.0])


def test_masks_of_leading_axes():
    x, t = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    for mask in (np.array([[True, False, True], [False, False, True]]), np.array([True, False])):
        value = functional.mean_squared_error(x, t, mask)
        assert float(value) == pytest.approx(((x - t) ** 2)[mask].mean())


def test_log_cosh_near_0():
    x = np.array([1e-4, 3e-3, 0.999, 1.001], np.float32)
    found = functional.log_cosh(x, np.zeros(4, np.float32), reduction="none")
    np.testing.assert_allclose(found, np.log(np.cosh(x.astype(float))), rtol=1e-6)


def test_kinks():
    x = np.array([0.0, 1.0, -1.0])
    _, gradient = value_and_gradient(functional.mean_absolute_error, x, np.zeros(3))
    assert gradient.tolist() == [0, 1, -1]
    _, gradient = value_and_gradient(functional.huber, x, np.zeros(3), delta=1.0)
    assert gradient.tolist() == [0, 1, -1]
    with pytest.raises(ValueError, match="delta: expected a number above 0"):
        functional.huber(x, x, delta=0.0)


def test_kl_of_targets_of_0():
    t = np.array([[0.0, 1.0], [0.5, 0.5]])
    log_p = np.log(np.array([[0.25, 0.75], [0.5, 0.5]]))
    value, gradient = value_and_gradient(functional.kl_divergence, log_p, t)
    assert value == pytest.approx(np.log(4 / 3)) and (gradient == -t).all()
    check_gradients(lambda t: functional.kl_divergence(log_p, t), t + 0.1, dtypes=False)


def test_integers_become_floats():
    assert functional.mean_squared_error([1, 2], [1, 4]).dtype == np.float32
    t = np.array([0, 1])
    found = functional.binary_cross_entropy_with_logits(
        md.tensor([0.0, 0.0]), t, label_smoothing=0.1
    )
    assert found.dtype == np.float32 and float(found) == pytest.approx(np.log(2))
    assert functional.binary_cross_entropy_with_logits(md.tensor([1.0, 1.0]), t > 0).item() > 0
