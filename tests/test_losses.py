"""Losses as classes: the order of arguments, options, probabilities, counts."""

import numpy as np
import pytest

import minidl as md
from minidl import functional, losses
from minidl.testing import check_gradients, strict

rng = np.random.default_rng(0)
X, Y, Z = (rng.normal(size=(4, 3)).astype(np.float32) for _ in range(3))
LABELS, BITS = np.array([0, 2, 1, 1]), rng.integers(0, 2, (4, 3))
SIGNS = 2 * BITS - 1
P = np.exp(X) / np.exp(X).sum(-1, keepdims=True)
Q = np.exp(Y) / np.exp(Y).sum(-1, keepdims=True)
MASK = np.array([True, False, True, True])

# class, options, y_true, y_pred, and what it should be
CLASSES = {
    "BinaryCrossentropy": (
        {"from_logits": True, "label_smoothing": 0.1, "pos_weight": 2.0}, BITS, X,
        lambda m: functional.binary_cross_entropy_with_logits(
            X, BITS, m, label_smoothing=0.1, pos_weight=2.0)),
    "BinaryFocalCrossentropy": (
        {"apply_class_balancing": True, "gamma": 1.0, "from_logits": True}, BITS, X,
        lambda m: functional.binary_focal_with_logits(X, BITS, m, gamma=1.0)),
    "SparseCategoricalCrossentropy": (
        {"from_logits": True, "class_weights": [1.0, 2.0, 3.0], "ignore_class": 2}, LABELS, X,
        lambda m: functional.softmax_cross_entropy(
            X, LABELS, m, class_weights=[1.0, 2.0, 3.0], ignore_index=2)),
    "SoftF1": ({"from_logits": True}, LABELS, X, lambda m: functional.soft_f1(X, LABELS, m)),
    "CategoricalCrossentropy": (
        {"from_logits": True, "label_smoothing": 0.1}, Q, X,
        lambda m: functional.soft_target_cross_entropy(X, Q, m, label_smoothing=0.1)),
    "MeanSquaredError": ({}, Y, X, lambda m: functional.mean_squared_error(X, Y, m)),
    "MeanAbsoluteError": ({}, Y, X, lambda m: functional.mean_absolute_error(X, Y, m)),
    "Huber": ({"delta": 0.5}, Y, X, lambda m: functional.huber(X, Y, m, delta=0.5)),
    "LogCosh": ({}, Y, X, lambda m: functional.log_cosh(X, Y, m)),
    "Poisson": ({"log_input": True}, Q, X, lambda m: functional.poisson(X, Q, m)),
    "KLDivergence": ({}, Q, P, lambda m: functional.kl_divergence(np.log(P), Q, m)),
    "Hinge": ({}, SIGNS, X, lambda m: functional.hinge(X, SIGNS, m)),
    "SquaredHinge": ({}, SIGNS, X, lambda m: functional.squared_hinge(X, SIGNS, m)),
    "CategoricalHinge": ({}, LABELS, X, lambda m: functional.categorical_hinge(X, LABELS, m)),
    "CosineSimilarity": ({}, Y, X, lambda m: functional.negative_cosine_similarity(X, Y, m)),
    "Contrastive": (
        {"margin": 2.0}, MASK, (X, Y), lambda m: functional.contrastive(X, Y, MASK, m, margin=2.0)),
    "BatchTriplet": (
        {"margin": 5.0, "mining": "batch-all"}, LABELS, X,
        lambda m: functional.batch_triplet(X, LABELS, m, margin=5.0, mining="batch-all")),
    "TripletMargin": (
        {"margin": 2.0}, None, (X, Y, Z),
        lambda m: functional.triplet_margin(X, Y, Z, m, margin=2.0)),
    "MarginRanking": (
        {"margin": 0.5}, SIGNS, (X, Y),
        lambda m: functional.margin_ranking(X, Y, SIGNS, m, margin=0.5)),
}  # fmt: skip
EACH = pytest.mark.parametrize("name", CLASSES)


@EACH
class TestEach:
    @pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
    def test_calls_its_function(self, name, mask):
        options, y_true, y_pred, expected = CLASSES[name]
        loss = getattr(losses, name)(**options)
        assert float(loss(y_true, y_pred, mask)) == pytest.approx(float(expected(mask)), rel=1e-5)

    def test_gradients(self, name):
        options, y_true, y_pred, _ = CLASSES[name]
        loss = getattr(losses, name)(**options)
        given = y_pred if isinstance(y_pred, tuple) else (y_pred,)
        y_true = y_true.astype(float) if name in ("CategoricalCrossentropy", "Poisson") else y_true

        def f(*outputs):
            return loss(y_true, outputs if len(outputs) > 1 else outputs[0], MASK)

        check_gradients(f, *given, dtypes=False)

    @pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
    def test_counts_what_its_mean_divides_by(self, name, mask):
        options, y_true, y_pred, _ = CLASSES[name]
        mean = getattr(losses, name)(**options)
        total = getattr(losses, name)(**options, reduction="sum")
        count = mean.count(y_true, y_pred, mask)
        assert float(total(y_true, y_pred, mask)) == pytest.approx(
            float(mean(y_true, y_pred, mask)) * float(count), rel=1e-5
        )

    def test_counts_on_the_device(self, name):
        options, y_true, y_pred, _ = CLASSES[name]
        loss = getattr(losses, name)(**options)
        expected = loss.count(y_true, y_pred, MASK)

        def move(a):
            return a if a is None else md.tensor(a, device="strict")

        given = tuple(map(move, y_pred)) if isinstance(y_pred, tuple) else move(y_pred)
        arguments = move(y_true), given, move(MASK)
        with strict.forbid_sync():
            found = loss.count(*arguments)
        assert float(found) == pytest.approx(float(expected))


def test_every_loss_is_here():
    assert set(losses.__all__) == {*CLASSES, "Loss", "OfOutput"}


def test_order_of_arguments():
    tensor = md.tensor(X, requires_grad=True)
    losses.MeanSquaredError()(Y, tensor).backward()
    np.testing.assert_allclose(tensor.grad.numpy(), (X - Y) / 6, rtol=1e-6)


def test_defaults_are_those_of_keras():
    loss = losses.BinaryFocalCrossentropy(from_logits=True)
    assert float(loss(BITS, X)) == pytest.approx(
        float(functional.binary_focal_with_logits(X, BITS, alpha=None))
    )
    rate = losses.Poisson()(Q, P)
    assert float(rate) == pytest.approx(float((P - Q * np.log(P + 1e-7)).mean()), rel=1e-5)


class TestProbabilities:
    def test_are_like_logits(self):
        half = 1 / (1 + np.exp(-X))
        for name, y_true, p in (
            ("SparseCategoricalCrossentropy", LABELS, P),
            ("CategoricalCrossentropy", Q, P),
            ("SoftF1", LABELS, P),
            ("BinaryCrossentropy", BITS, half),
            ("BinaryFocalCrossentropy", BITS, half),
        ):
            kind = getattr(losses, name)
            expected = kind(from_logits=True)(y_true, X, MASK)
            assert float(kind()(y_true, p, MASK)) == pytest.approx(float(expected), rel=1e-5)

    def test_certain_ones_are_finite(self):
        for loss in (losses.BinaryCrossentropy(), losses.BinaryFocalCrossentropy(),
                     losses.KLDivergence()):  # fmt: skip
            p = md.tensor([0.0, 1.0], requires_grad=True)
            value = loss(np.array([1.0, 0.0], np.float32), p)
            value.backward()
            assert np.isfinite(value.numpy()) and np.isfinite(p.grad.numpy()).all()

    def test_logits_taken_for_them(self):
        for loss, t in (
            (losses.SparseCategoricalCrossentropy(), [0]),
            (losses.BinaryCrossentropy(), [[0.0, 1.0]]),
        ):
            with pytest.raises(ValueError, match="pass from_logits=True"):
                loss(t, np.array([[-1.0, 2.0]]))

    def test_masked_ones_may_be_anything(self):
        p = P.copy()
        p[1] = np.nan
        tensor = md.tensor(p, requires_grad=True)
        value = losses.SparseCategoricalCrossentropy()(LABELS, tensor, MASK)
        value.backward()
        assert np.isfinite(value.numpy()) and np.isfinite(tensor.grad.numpy()).all()


def test_several_outputs():
    with pytest.raises(ValueError, match="y_pred: expected a tuple of 3 outputs, got 2"):
        losses.TripletMargin()(None, (X, Y))
    with pytest.raises(ValueError, match="a tuple of 2 outputs, got ndarray"):
        losses.Contrastive()(MASK, X)


def test_repr():
    assert repr(losses.Huber(0.5)) == "Huber(reduction='mean', delta=0.5)"


def test_a_loss_of_ones_own():
    class Absolute(losses.Loss):
        def call(self, y_true, y_pred, mask):
            return md.mean(md.abs(y_pred - y_true))

    assert float(Absolute()(np.zeros(2), np.array([1.0, -3.0]))) == 2
    with pytest.raises(NotImplementedError, match="write call"):
        losses.Loss()(np.zeros(2), np.zeros(2))
