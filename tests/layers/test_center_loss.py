"""CenterLoss: how the centres move, and when they do not."""

import numpy as np

import minidl as md
from minidl.layers import CenterLoss
from minidl.testing import check_gradients

X = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
LABELS = np.array([1, 0, 1, 1, 0])


def moved(old, x, labels, rate):
    """Equation 4 of the paper, class by class."""
    new = old.copy()
    for c in range(len(old)):
        own = x[labels == c]
        new[c] -= rate * (old[c] - own).sum(0) / (1 + len(own))
    return new


def test_centers_follow_the_embeddings_of_their_class():
    layer, expected = CenterLoss(3, update_rate=0.7), np.zeros((3, 2))
    for shift in (0, 1, -2):
        before = expected
        value = layer(X + shift, LABELS)
        assert np.isclose(float(value), 0.5 * ((X + shift - before[LABELS]) ** 2).sum(1).mean())
        expected = moved(before, X + shift, LABELS, 0.7)
        np.testing.assert_allclose(layer.centers.numpy(), expected, rtol=1e-5)
    assert not layer.centers.numpy()[2].any()  # nothing of class 2


def test_what_is_masked_moves_nothing():
    mask = np.array([True, False, True, False, True])
    spoiled = np.where(mask[:, None], X, np.nan)
    layer, alone = CenterLoss(2), CenterLoss(2)
    layer(spoiled, np.where(mask, LABELS, -9), mask)
    alone(X[mask], LABELS[mask])
    np.testing.assert_allclose(layer.centers.numpy(), alone.centers.numpy(), rtol=1e-6)


def test_they_rest_in_evaluation_and_in_extra_evaluations():
    layer = CenterLoss(2, input_size=2)
    check_gradients(lambda x: layer(x, LABELS), X.astype(np.float64), dtypes=False)
    layer.eval()(X, LABELS)
    assert not layer.centers.numpy().any()


def test_an_earlier_graph_keeps_the_centers_that_it_saw():
    layer, x = CenterLoss(2), md.tensor(X, requires_grad=True)
    first = layer(x, LABELS)
    layer(X, LABELS)
    first.backward()
    np.testing.assert_allclose(x.grad.numpy(), X / 5, rtol=1e-5)  # then they were 0


def test_no_optimiser_moves_them_and_a_file_keeps_them(tmp_path):
    model = md.layers.Sequential([md.layers.Dense(2, input_size=2)])
    model.center = CenterLoss(2, input_size=2)
    assert len(model.parameters()) == 2
    model.center(X, LABELS)
    assert (model.state_dict()["center.centers"] == model.center.centers.numpy()).all()
