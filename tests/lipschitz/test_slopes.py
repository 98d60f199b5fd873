"""Lower bounds: below the truth, and near to it where it is known."""

import copy
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl import layers
from minidl.lipschitz import local_slopes, lower_bound, upper_bound


def images(count=4, size=5, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size))


def test_local_slopes_are_the_norms_of_jacobians(device):
    def f(x):
        return md.concatenate([md.sin(x), x[:, :1] * x[:, 1:2]], axis=1)

    x = images(6, 3)
    found = local_slopes(f, md.tensor(x, device=device), 50)
    exact = [np.linalg.norm(md.jacobian(f, row[None]).numpy().reshape(4, 3), 2) for row in x]
    assert found.shape == (6,)
    assert np.allclose(found, exact, rtol=1e-3) and (found <= np.array(exact) * (1 + 1e-9)).all()


def test_lower_bound_finds_the_slope_of_a_linear_map_and_of_a_step(device):
    matrix = images(5, 3)
    x = md.tensor(images(2), device=device)
    kernel = md.tensor(matrix, device=device)
    found = lower_bound(lambda x: x @ kernel, x)
    assert math.isclose(found, np.linalg.norm(matrix, 2), rel_tol=1e-4)
    # Steep between 0.5 and 0.6 only, flat at the item itself: pairs see it, the Jacobian does not.
    x = md.tensor([[0.0, 0.0]], dtype=np.float64, device=device)
    step = lambda x: md.clip(x - 0.5, 0.0, 0.1)  # noqa: E731
    assert local_slopes(step, x) == [0.0]
    assert lower_bound(step, x, 60, distance=2.0) > 0.9


def test_each_item_by_itself():
    """Inputs and outputs of several shapes; items whose slopes differ much."""
    x = np.stack([np.full((2, 2, 1), 0.01), np.full((2, 2, 1), 10.0)])
    f = lambda x: md.reshape(x, (x.shape[0], 4)) ** 2  # noqa: E731
    assert np.allclose(local_slopes(f, x), [0.02, 20])
    assert 20 < lower_bound(f, x, 3) < 21


def test_it_climbs():
    def f(x):
        return md.sum(x**2, axis=1, keepdims=True)

    x = np.full((1, 2), 0.1)
    slopes = [lower_bound(f, x, steps) for steps in (1, 20, 60)]
    assert 0.2 < slopes[0] < slopes[1] < slopes[2]
    assert lower_bound(f, x, 0, distance=2.0) > 2  # where the pair begins


def test_what_does_not_change_has_slope_0():
    x = images(2)
    assert lower_bound(lambda x: 0.0 * x, x, 3) == 0
    assert (local_slopes(lambda x: 0.0 * x, x) == 0).all()


@given(st.data())
def test_never_above_the_upper_bound(data):
    kinds = [
        layers.ReLU,
        lambda: layers.Activation("gelu"),
        layers.Softmax,
        layers.LayerNormalization,
    ]
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    md.seed(data.draw(st.integers(0, 99)))
    model = layers.Sequential()
    for size in sizes:
        model.add(layers.Dense(size))
        model.add(data.draw(st.sampled_from(kinds))())
    bound = upper_bound(model, (3,)).product
    model.astype("float64")
    assert (local_slopes(model, images(2, 3), 3) <= bound * (1 + 1e-9)).all()


def test_the_answer_is_the_same_each_time_and_draws_nothing():
    model = layers.Dense(3, "tanh", input_size=5).astype("float64")
    before = copy.deepcopy(md.random.generator().state())
    assert lower_bound(model, images(), 5) == lower_bound(model, images(), 5)
    assert md.random.generator().state() == before


def test_no_bound_from_nan():
    with pytest.raises(ValueError, match="lower_bound: f: expected finite slopes"):
        lower_bound(lambda x: x * np.nan, images(2))


def test_wrong_shapes():
    with pytest.raises(
        md.errors.ShapeError, match=r"x: expected items \(batch, ...\), got shape \(3,\)"
    ):
        local_slopes(lambda x: x, np.zeros(3))
    with pytest.raises(md.errors.ShapeError, match="got shape"):
        lower_bound(lambda x: x, np.zeros((0, 3)))


# --- A network of normalised layers ---------------------------------------------------------------


def normalized_network(convolutions):
    """Layers of norm 1, their iteration converged, and activations of slope at most 1."""
    normalized = layers.SpectralNormalization
    first = [layers.Dense(16), layers.ReLU()]
    shape = (12,)
    if convolutions:
        first = [
            normalized(layers.Conv2D(4, 3, padding="same"), method="operator"),
            layers.LeakyReLU(),
            layers.MaxPooling2D(),
            normalized(layers.Conv2D(3, 2, 2, activation="tanh"), method="operator"),
            layers.Flatten(),
        ]
        shape = (8, 8, 2)
    else:
        first = [normalized(layers.Dense(16)), layers.ReLU()]
    model = layers.Sequential(
        [*first, normalized(layers.Dense(8, "relu")), normalized(layers.Dense(3))]
    )
    with md.default_dtype("float64"):
        model(np.zeros((1, *shape)))
    for _, layer in model.walk():
        if isinstance(layer, normalized):
            layer.layer.kernel.assign_(md.random.generator().normal(layer.layer.kernel.shape))
            layer.iterate(300)
    return model.eval(), shape


@pytest.mark.parametrize("convolutions", [False, True], ids=["dense", "convolutions"])
def test_ten_thousand_pairs_stay_under_the_certified_bound(convolutions):
    model, shape = normalized_network(convolutions)
    bound = upper_bound(model, shape).product
    draw = np.random.default_rng(0)
    x = draw.normal(size=(5000, *shape)) * 10 ** draw.uniform(-1, 1, (5000, *(1 for _ in shape)))
    step = draw.normal(size=x.shape)
    found = []
    with md.no_grad():
        start = model(x).numpy()
        for size in (1e-3, 1.0):  # near and far: 10,000 pairs
            moved = model(x + size * step).numpy()
            lengths = np.linalg.norm((size * step).reshape(5000, -1), axis=1)
            found.append(np.linalg.norm(moved - start, axis=1) / lengths)
    adversarial = lower_bound(model, x[:30], 25)
    slopes = np.concatenate([*found, [adversarial]])
    assert len(slopes) > 10_000
    assert (slopes <= 1.001).all() and (slopes <= bound).all()
    assert adversarial > np.concatenate(found).max()  # ascent finds more than chance
    assert 1 <= bound < (1.001 if not convolutions else 1.5)


def test_layers_are_measured_in_evaluation_mode_and_left_as_they_were():
    md.seed(0)
    model = layers.Sequential(
        [
            layers.Dense(8, input_size=5),
            layers.BatchNormalization(input_size=8),
            layers.Dropout(0.5),
            layers.SpectralNormalization(layers.Dense(3, input_size=8)),
        ]
    ).astype("float64")
    model(images(50))
    model[2].eval()
    before, modes = model.state_dict(), [layer.training for _, layer in model.walk()]
    found = lower_bound(model, images()), local_slopes(model, images()).max()
    assert [layer.training for _, layer in model.walk()] == modes and True in modes
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    model.eval()
    assert found == (lower_bound(model, images()), local_slopes(model, images()).max())
    assert 0 < found[0] <= upper_bound(model, (5,)).product
