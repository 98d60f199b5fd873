"""Hinges, rankings and embeddings: kinks, vectors of 0, far out, and what is refused."""

import numpy as np
import pytest

import minidl as md
from minidl import functional
from minidl.errors import ShapeError

rng = np.random.default_rng(0)


@pytest.mark.parametrize("function", [functional.hinge, functional.squared_hinge])
def test_targets_are_signs(function):
    x = np.array([1.0, -1.0, 0.5])
    with pytest.raises(ValueError, match=r"expected -1 and 1, got 0 to 1; give 2 \* targets - 1"):
        function(x, np.array([0, 1, 1]))
    mask = np.array([False, True, True])
    assert function(x, np.array([0, 1, 1]), mask) > 0
    with pytest.raises(ValueError, match="expected -1 and 1"):
        functional.margin_ranking(x, x, [0, 1, 1])


def test_hinges_far_out():
    x = np.array([1e4, -1e4], np.float32)
    assert functional.hinge(x, [-1, 1], reduction="none").tolist() == [10001, 10001]
    assert functional.squared_hinge(x, [1, -1]) == 0
    assert functional.categorical_hinge(np.stack([x, -x]), [1, 0]) == pytest.approx(20001)


def test_categorical_hinge_counts_other_classes_below_0():
    x = np.array([[-1.0, -3.0, -2.5]])
    assert functional.categorical_hinge(x, [0]) == 0  # Keras's gives 1 + 0 - -1
    with pytest.raises(ShapeError, match="expected two classes or more"):
        functional.categorical_hinge(np.zeros((2, 1)), [0, 0])


class TestEmbeddings:
    def test_cosine_similarity(self):
        torch = pytest.importorskip("torch")
        x, y = rng.normal(size=(4, 3, 5)), rng.normal(size=(4, 3, 5))
        wanted = torch.nn.functional.cosine_similarity(torch.tensor(x), torch.tensor(y), dim=-1)
        np.testing.assert_allclose(functional.cosine_similarity(x, y), wanted, rtol=1e-10)

    def test_cosine_of_zeros_and_of_the_large(self):
        x = md.tensor([[0.0, 0.0], [1e4, 0.0]], requires_grad=True)
        y = md.tensor([[1.0, 2.0], [1e4, 1e4]], requires_grad=True)
        value = functional.cosine_similarity(x, y)
        value.sum().backward()
        np.testing.assert_allclose(value.numpy(), [0, np.sqrt(0.5)], rtol=1e-6)
        assert x.grad.numpy()[0].tolist() == y.grad.numpy()[0].tolist() == [0, 0]
        assert np.isfinite(x.grad.numpy()).all()
        with pytest.raises(ShapeError, match="y: expected shape"):
            functional.cosine_similarity(x, [1.0, 2.0])

    def test_coinciding_points(self):
        x = np.ones((2, 3), np.float32)
        for function, rest in (
            (functional.triplet_margin, (x, x)),
            (functional.contrastive, (x, [1, 0])),
        ):
            tensor = md.tensor(x, requires_grad=True)
            value = function(tensor, *rest)
            value.backward()
            assert np.isfinite(value.numpy()) and not tensor.grad.numpy().any()

    def test_contrastive_by_hand(self):
        x, y = np.zeros((3, 2)), np.array([[3.0, 4.0], [0.3, 0.4], [3.0, 4.0]])
        found = functional.contrastive(x, y, [1, 0, 0], reduction="none")
        np.testing.assert_allclose(found, [12.5, 0.125, 0])
        booleans = functional.contrastive(x, y, np.array([True, False, False]), reduction="none")
        assert (booleans == found).all()
        with pytest.raises(ShapeError, match=r"alike: expected shape \(3,\), got \(3, 1\)"):
            functional.contrastive(x, y, [[1], [0], [0]])
