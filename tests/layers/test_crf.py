"""The CRF layer: parameters, constraints as buffers, and that it learns what there is to learn."""

import numpy as np
import pytest

import minidl as md
from minidl.errors import BuildError, DtypeError, ShapeError
from minidl.functional import crf
from minidl.layers.crf import CRF
from minidl.testing import check_gradients

# Tags s b m e of word segmentation: s, e are followed by s, b; b, m by m, e.
ENDS = np.array([True, False, False, True])
LIMITS = {
    "allowed": np.where(
        ENDS[:, None], ~np.array([False, False, True, True]), [False] * 2 + [True] * 2
    ),
    "allowed_start": np.array([True, True, False, False]),
    "allowed_end": ENDS,
}


def emissions_of(batch=3, time=5, tags=4, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(batch, time, tags)).astype(dtype)


def test_parameters_and_buffers_have_stable_names():
    layer = CRF(4, **LIMITS)
    assert [name for name, _ in layer.named_parameters()] == ["transitions", "start", "end"]
    assert [p.shape for p in layer.parameters()] == [(4, 4), (4,), (4,)]
    assert [name for name, _ in layer.named_buffers()] == list(LIMITS)
    assert all(buffer.dtype == np.bool_ for _, buffer in layer.named_buffers())
    assert [name for name, _ in CRF(4).named_buffers()] == []


def test_sizes_may_be_left_out():
    layer = CRF()
    with pytest.raises(BuildError):
        layer.parameters()
    layer.loss(emissions_of(), np.zeros((3, 5), int))
    assert layer.transitions.shape == (4, 4)


def test_it_computes_what_the_functions_do():
    layer = CRF(4, **LIMITS, initializer="glorot_uniform")
    emissions, mask = emissions_of(), np.arange(5) < np.array([[5], [0], [3]])
    args = emissions, layer.transitions, mask, layer.start, layer.end, *LIMITS.values()
    paths, scores = crf.viterbi(*args)
    np.testing.assert_array_equal(layer(emissions, mask).numpy(), paths.numpy())
    np.testing.assert_array_equal(layer.viterbi(emissions, mask)[1].numpy(), scores.numpy())
    best, _ = layer.viterbi_k_best(emissions, mask, k=3)
    np.testing.assert_array_equal(best.numpy()[:, 0], paths.numpy())
    marginals = layer.marginals(emissions, mask).numpy()
    np.testing.assert_array_equal(marginals, crf.marginals(*args).numpy())
    loss = layer.loss(emissions, paths, mask, reduction="none").numpy()
    log_z = crf.log_partition(*args)
    np.testing.assert_allclose(loss, (log_z - scores).numpy(), atol=1e-5)


def test_constraints_hold_in_every_path():
    layer = CRF(4, **LIMITS)
    emissions, mask = emissions_of(6, 9), np.arange(9) < np.array([[9], [1], [2], [3], [4], [8]])
    drawn = layer.sample(emissions, mask, n=5).numpy().reshape(-1, 9)
    best = layer(emissions, mask).numpy()
    for path in (*drawn, *best):
        path = path[path >= 0]
        assert LIMITS["allowed_start"][path[0]] and LIMITS["allowed_end"][path[-1]]
        assert LIMITS["allowed"][path[:-1], path[1:]].all()


def test_gradients():
    layer = CRF(4, **LIMITS, initializer="glorot_uniform").astype("float64")
    mask = np.arange(5) < np.array([[5], [1], [3]])
    tags = np.array([[1, 2, 3, 0, 0], [0, 0, 0, 0, 0], [1, 3, 0, 0, 0]])
    check_gradients(
        lambda x: layer.loss(x, tags, mask), emissions_of(dtype=np.float64), parameters=layer
    )


def test_save_and_load_keep_the_constraints():
    first, second = (
        CRF(4, **LIMITS, initializer="glorot_uniform"),
        CRF(4, **{name: np.ones_like(limit) for name, limit in LIMITS.items()}),
    )
    second.load_state_dict(first.state_dict())
    emissions = emissions_of()
    np.testing.assert_array_equal(first(emissions).numpy(), second(emissions).numpy())


def test_it_learns_the_tags_that_emissions_do_not_show():
    """Tags alternate; the emissions give the first one only."""
    layer = CRF(2)
    tags = (np.arange(6) + np.array([[0], [1]])) % 2
    emissions = np.zeros((2, 6, 2), np.float32)
    emissions[[0, 1], 0, [0, 1]] = 2.0
    for _ in range(60):
        loss = layer.loss(emissions, tags)
        loss.backward()
        for parameter in layer.parameters():
            parameter.assign_(parameter.numpy() - 0.5 * parameter.grad.numpy())
            parameter.grad = None
    assert loss.item() < 0.3
    np.testing.assert_array_equal(layer(emissions).numpy(), tags)


def test_it_moves_with_its_buffers(device):
    name = "strict" if device == "cpu" else device
    layer = CRF(4, **LIMITS, initializer="glorot_uniform")
    emissions = emissions_of()
    expected = layer.loss(emissions, np.zeros((3, 5), int)).item()
    layer.to(name)
    tags = md.tensor(np.zeros((3, 5), int), device=name)
    assert layer.allowed.device == layer.start.device == layer.device
    got = layer.loss(md.tensor(emissions, device=name), tags)
    np.testing.assert_allclose(got.item(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"allowed": np.ones((4, 4))}, DtypeError),
        ({"allowed": np.ones((3, 3), bool)}, ShapeError),
        ({"allowed_end": [True, False]}, ShapeError),
    ],
)
def test_errors(limits, error):
    with pytest.raises(error, match=f"CRF: {next(iter(limits))}: expected"):
        CRF(4, **limits)
