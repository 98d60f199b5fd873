"""Cross entropy: far logits, targets, weights' denominators, and what is refused."""

import numpy as np
import pytest

import minidl as md
from minidl import functional
from minidl.errors import DtypeError, GradientError, ShapeError
from minidl.testing import check_gradients

rng = np.random.default_rng(0)
FAR = np.array([[1e4, 0.0], [-1e4, 0.0]], np.float32)


def entropy_and_gradient(x, t, **options):
    x = md.tensor(x, requires_grad=True)
    value = functional.softmax_cross_entropy(x, t, **options)
    value.backward()
    return value, x.grad.numpy()


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weights": [1.0, 3.0]}])
def test_far_logits(options):
    for targets in ([1, 0], [0, 1]):
        value, gradient = entropy_and_gradient(FAR, targets, reduction="sum", **options)
        assert np.isfinite(value.numpy()) and np.isfinite(gradient).all()
    values = functional.softmax_cross_entropy(FAR, [1, 0], reduction="none")
    assert values.tolist() == [1e4, 1e4]
    soft = functional.soft_target_cross_entropy(FAR, FAR < 0, reduction="none")
    assert soft.tolist() == [0, 1e4]


def test_targets_are_integers_in_range():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(DtypeError, match="expected integers, got float64"):
        functional.softmax_cross_entropy(x, np.zeros(2))
    for bad in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="softmax_cross_entropy: targets: expected 0 to 2"):
            functional.softmax_cross_entropy(x, bad)
    with pytest.raises(ShapeError, match="expected one axis or more"):
        functional.softmax_cross_entropy(np.float32(0.0), 0)


def test_any_number_of_axes():
    for shape in ((), (2, 3, 2), (0,)):
        x, t = rng.normal(size=(*shape, 5)), rng.integers(0, 5, shape)
        check_gradients(lambda x, t=t: functional.softmax_cross_entropy(x, t), x)


def test_backward_twice():
    x = md.tensor(rng.normal(size=(3, 5)), requires_grad=True)
    value = functional.softmax_cross_entropy(x, [0, 1, 4], label_smoothing=0.1)
    value.backward(retain_graph=True)
    first = x.grad.numpy().copy()
    value.backward()
    np.testing.assert_array_equal(x.grad.numpy(), 2 * first)


def test_an_ignored_target_is_a_mask():
    x, t = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    mask = np.array([True, False, True, True, False, True])
    outside = np.where(mask, t, -100)
    expected, gradient = entropy_and_gradient(x, t, mask=mask)
    for options in ({"ignore_index": -100}, {"ignore_index": -100, "mask": np.ones(6, bool)}):
        value, found = entropy_and_gradient(x, outside, **options)
        assert value.item() == expected.item() and (found == gradient).all()
    value, found = entropy_and_gradient(x, np.full(6, -100), ignore_index=-100)
    assert value.item() == 0 and not found.any()


def test_ignored_as_in_pytorch():
    torch = pytest.importorskip("torch")
    x, t = rng.normal(size=(6, 5)), np.array([0, 3, 2, 3, 1, 4])
    weights = rng.uniform(0.5, 2, 5)
    options = {"ignore_index": 3, "label_smoothing": 0.1}
    theirs = torch.tensor(x, requires_grad=True)
    wanted = torch.nn.functional.cross_entropy(
        theirs, torch.tensor(t), torch.tensor(weights), **options
    )
    wanted.backward()
    value, gradient = entropy_and_gradient(x, t, class_weights=weights, **options)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-10, atol=1e-14)


def test_weights():
    x, t = np.zeros((3, 2), np.float32), [0, 1, 1]
    heavy = functional.softmax_cross_entropy(x, t, class_weights=[1.0, 5.0])
    assert float(heavy) == pytest.approx(np.log(2))  # a weighted mean of equals
    nothing, gradient = entropy_and_gradient(x, t, class_weights=np.zeros(2))
    assert nothing.item() == 0 and not gradient.any()
    with pytest.raises(ShapeError, match=r"class_weights: expected shape \(2,\), got \(3,\)"):
        functional.softmax_cross_entropy(x, t, class_weights=[1, 2, 3])
    with pytest.raises(GradientError, match=r"class_weights.detach\(\)"):
        trained = md.tensor([1.0, 2.0], requires_grad=True)
        functional.softmax_cross_entropy(x, t, class_weights=trained)
    with pytest.raises(ValueError, match="label_smoothing: expected a number from 0 to 1"):
        functional.softmax_cross_entropy(x, t, label_smoothing=1.5)


def test_one_class_has_no_gradient():
    value, gradient = entropy_and_gradient(np.array([[0.3]], np.float32), [0], label_smoothing=0.1)
    assert value.item() == 0 and gradient.tolist() == [[0]]


def test_soft_targets_have_gradients():
    x, t = rng.normal(size=(3, 4)), rng.uniform(size=(3, 4))
    check_gradients(functional.soft_target_cross_entropy, x, t)
    one_hot = np.eye(4)[[1, 0, 3]]
    assert functional.soft_target_cross_entropy(x, one_hot) == pytest.approx(
        functional.softmax_cross_entropy(x, [1, 0, 3])
    )


@pytest.mark.parametrize("function", ["softmax_cross_entropy", "soft_target_cross_entropy"])
def test_weights_follow_the_logits(function):
    """Host arrays of weights are moved, whatever device trains."""
    x = md.tensor(rng.normal(size=(4, 3)).astype(np.float32), device="strict")
    t = (
        [0, 1, 2, 0]
        if function.startswith("softmax")
        else np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    )
    expected = getattr(functional, function)(x.numpy(), t, class_weights=[1.0, 2.0, 0.5])
    t = md.tensor(t, device="strict")
    found = getattr(functional, function)(x, t, class_weights=np.array([1.0, 2.0, 0.5]))
    assert found.item() == pytest.approx(float(expected), rel=1e-6) and found.device == "strict"


def test_labels_and_distributions_that_are_mistaken_for_one_another():
    logits, labels = np.zeros((4, 3)), np.array([0, 1, 2, 0])
    sparse = md.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(ShapeError, match="distributions want CategoricalCrossentropy"):
        sparse(md.one_hot(labels, 3), logits)
    dense = md.losses.CategoricalCrossentropy(from_logits=True)
    with pytest.raises(ShapeError, match=r"labels want the sparse loss, or the transform OneHot"):
        dense(labels, logits)
