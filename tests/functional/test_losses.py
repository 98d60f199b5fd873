"""Losses: values, gradients, masks, and what they refuse."""

import numpy as np
import pytest

import minidl as md
from minidl import functional
from minidl.errors import DtypeError, ShapeError
from minidl.functional import losses
from minidl.losses import BinaryCrossentropy, MeanSquaredError, SparseCategoricalCrossentropy
from minidl.testing import check_gradients

rng = np.random.default_rng(0)
ALL = (
    functional.softmax_cross_entropy,
    functional.mean_squared_error,
    functional.binary_cross_entropy_with_logits,
)


def case(function, shape, dtype=np.float32):
    """Predictions and targets of `shape` items."""
    if function is functional.softmax_cross_entropy:
        return rng.normal(size=(*shape, 5)).astype(dtype), rng.integers(0, 5, shape)
    return rng.normal(size=shape).astype(dtype), rng.uniform(0, 1, shape).astype(dtype)


def by_formula(function, x, t):
    """The loss of each item, as the textbook has it, in float64."""
    x = x.astype(np.float64)
    if function is functional.softmax_cross_entropy:
        p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
        return -np.log(np.take_along_axis(p, t[..., None], -1)[..., 0])
    if function is functional.mean_squared_error:
        return (x - t) ** 2
    p = 1 / (1 + np.exp(-x))
    return -(t * np.log(p) + (1 - t) * np.log(1 - p))


@pytest.mark.parametrize("function", ALL)
class TestAll:
    def test_values_and_reductions(self, function):
        x, t = case(function, (4, 3))
        expected = by_formula(function, x, t)
        np.testing.assert_allclose(
            np.asarray(function(x, t, reduction="none")), expected, rtol=2e-5, atol=1e-6
        )
        assert float(function(x, t)) == pytest.approx(expected.mean(), rel=1e-5)
        assert float(function(x, t, reduction="sum")) == pytest.approx(expected.sum(), rel=1e-5)
        with pytest.raises(ValueError, match="'mean', 'sum' or 'none'"):
            function(x, t, reduction="avg")

    def test_gradients(self, function):
        x, t = case(function, (4, 3))
        for mask in (None, rng.uniform(size=(4, 3)) < 0.6):
            check_gradients(lambda x, t=t, m=mask: function(x, t, m), x, dtypes=False)

    def test_large_batches_in_two_threads_give_the_same_bits(self, function):
        x, t = case(function, (300, 100))
        mask = rng.uniform(size=(300, 100)) < 0.5
        results = []
        for threads in (1, 2):
            with md.threads(threads):
                tensor = md.tensor(x, requires_grad=True)
                value = function(tensor, t, mask)
                value.backward()
                results.append((value.numpy().copy(), tensor.grad.numpy().copy()))
        assert (results[0][0] == results[1][0]).all() and (results[0][1] == results[1][1]).all()
        expected = by_formula(function, x, t)[mask].mean()
        assert results[0][0] == pytest.approx(expected, rel=1e-4)

    def test_what_a_mask_leaves_out_never_matters(self, function):
        x, t = case(function, (4, 3))
        mask = rng.uniform(size=(4, 3)) < 0.5
        spoiled, odd = x.copy(), t.copy()
        spoiled[~mask], odd[~mask] = np.nan, -7
        whole = function(x, t, mask)
        assert float(whole) == pytest.approx(by_formula(function, x, t)[mask].mean(), rel=1e-5)
        tensor = md.tensor(spoiled, requires_grad=True)
        masked = function(tensor, odd, mask)
        masked.backward()
        assert float(masked) == float(whole)
        gradient = tensor.grad.numpy()
        assert (gradient[~mask] == 0).all() and np.isfinite(gradient).all()
        kept = np.asarray(function(x, t, mask, reduction="none"))
        assert (kept[~mask] == 0).all()

    def test_nothing_counts(self, function):
        x, t = case(function, (4, 3))
        tensor = md.tensor(x, requires_grad=True)
        value = function(tensor, t, np.zeros((4, 3), bool))
        value.backward()
        assert float(value) == 0 and not tensor.grad.numpy().any()
        x, t = case(function, (0, 3))
        assert float(function(x, t)) == 0

    def test_never_broadcasts(self, function):
        x, t = case(function, (4, 3))
        for targets in (t[:, :1], t[:1], t[0], t[..., None]):
            with pytest.raises(ShapeError, match=r"targets: expected shape \(4, 3\)"):
                function(x, targets)
        with pytest.raises(ShapeError, match="mask: expected shape"):
            function(x, t, np.ones((4, 1), bool))

    def test_a_mask_is_boolean(self, function):
        x, t = case(function, (4, 3))
        with pytest.raises(DtypeError, match="True = counts"):
            function(x, t, np.ones((4, 3), np.int64))

    def test_lists_float32_and_float16(self, function):
        x, t = case(function, (4, 3))
        assert function(x, t).dtype == np.float32
        listed = function(x.tolist(), t.tolist())
        assert float(listed) == pytest.approx(float(function(x, t)), rel=1e-6)
        assert function(x.astype(np.float16), t.astype(np.float16) if t.dtype.kind == "f" else t
                        ).dtype == np.float16  # fmt: skip

    def test_on_the_device_without_waiting(self, function):
        from minidl.testing import strict

        x, t = case(function, (4, 3))
        mask = rng.uniform(size=(4, 3)) < 0.5
        expected = function(x, t, mask)
        on = [md.tensor(a, device="strict") for a in (x, t, mask)]
        tensor = md.tensor(on[0], requires_grad=True)
        with strict.forbid_sync():
            value = function(tensor, *on[1:])
            value.backward()
        assert float(value) == pytest.approx(float(expected), rel=1e-6)
        host = md.tensor(x, requires_grad=True)
        function(host, t, mask).backward()
        np.testing.assert_allclose(tensor.grad.numpy(), host.grad.numpy(), rtol=1e-5, atol=1e-7)


class TestSoftmaxCrossEntropy:
    def test_far_logits(self):
        x = np.array([[1e4, 0.0], [-1e4, 0.0]], np.float32)
        values = functional.softmax_cross_entropy(x, [1, 0], reduction="none")
        assert values.tolist() == [1e4, 1e4]

    def test_targets_are_integers_in_range(self):
        x = np.zeros((2, 3), np.float32)
        with pytest.raises(DtypeError, match="expected integers, got float64"):
            functional.softmax_cross_entropy(x, np.zeros(2))
        for bad in ([0, 3], [-1, 0]):
            with pytest.raises(ValueError, match="expected 0 to 2"):
                functional.softmax_cross_entropy(x, bad)

    def test_one_row_and_many_dimensions(self):
        x, t = case(functional.softmax_cross_entropy, ())
        check_gradients(lambda x: functional.softmax_cross_entropy(x, t), x, dtypes=False)
        x, t = case(functional.softmax_cross_entropy, (2, 3, 2))
        check_gradients(lambda x: functional.softmax_cross_entropy(x, t), x, dtypes=False)

    def test_backward_twice(self):
        x, t = case(functional.softmax_cross_entropy, (3,))
        tensor = md.tensor(x, requires_grad=True)
        value = functional.softmax_cross_entropy(tensor, t)
        value.backward(retain_graph=True)
        first = tensor.grad.numpy().copy()
        value.backward()
        np.testing.assert_array_equal(tensor.grad.numpy(), 2 * first)


def test_mask_of_leading_axes():
    x, t = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    mask = np.array([[True, False, True], [False, False, True]])
    value = functional.mean_squared_error(x, t, mask)
    assert float(value) == pytest.approx(((x - t) ** 2)[mask].mean())


class TestClasses:
    def test_order_of_arguments(self):
        x, t = case(functional.mean_squared_error, (4,))
        tensor = md.tensor(x, requires_grad=True)
        MeanSquaredError()(t, tensor).backward()
        np.testing.assert_allclose(tensor.grad.numpy(), (x - t) / 2, rtol=1e-6)

    def test_from_probabilities(self):
        x, t = case(functional.softmax_cross_entropy, (6,))
        p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
        logits = SparseCategoricalCrossentropy(from_logits=True)
        assert float(SparseCategoricalCrossentropy()(t, p)) == pytest.approx(
            float(logits(t, x)), rel=1e-5
        )
        x, t = case(functional.binary_cross_entropy_with_logits, (6,))
        assert float(BinaryCrossentropy()(t, 1 / (1 + np.exp(-x)))) == pytest.approx(
            float(BinaryCrossentropy(from_logits=True)(t, x)), rel=1e-5
        )

    def test_certain_probabilities_are_finite(self):
        for loss in (BinaryCrossentropy(), MeanSquaredError()):
            p = md.tensor([0.0, 1.0], requires_grad=True)
            value = loss(np.array([1.0, 0.0], np.float32), p)
            value.backward()
            assert np.isfinite(value.numpy()) and np.isfinite(p.grad.numpy()).all()

    def test_logits_taken_for_probabilities(self):
        for loss, t in (
            (SparseCategoricalCrossentropy(), [0]),
            (BinaryCrossentropy(), [[0.0, 1.0]]),
        ):
            with pytest.raises(ValueError, match="pass from_logits=True"):
                loss(t, np.array([[-1.0, 2.0]]))

    def test_mask_and_reduction(self):
        x, t = case(functional.softmax_cross_entropy, (4,))
        mask = np.array([True, False, True, True])
        loss = SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
        expected = by_formula(functional.softmax_cross_entropy, x, t)[mask].sum()
        assert float(loss(t, x, mask)) == pytest.approx(expected, rel=1e-5)
        assert repr(loss) == "SparseCategoricalCrossentropy(reduction='sum', from_logits=True)"

    def test_a_loss_of_ones_own(self):
        class Absolute(losses_base()):
            def call(self, y_true, y_pred, mask):
                return md.mean(md.abs(y_pred - y_true))

        assert float(Absolute()(np.zeros(2), np.array([1.0, -3.0]))) == 2


def losses_base():
    return md.losses.Loss


def test_only_float32_reaches_the_fused_op():
    x, t = case(functional.softmax_cross_entropy, (3,))
    tensor = md.tensor(x, requires_grad=True)
    losses.softmax_cross_entropy(tensor, t).backward()
    assert tensor.grad.dtype == np.float32
