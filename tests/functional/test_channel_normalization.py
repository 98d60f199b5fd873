"""Batch and group normalization against their definition, PyTorch and themselves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.errors import DtypeError, ShapeError
from minidl.functional import batch_normalization, group_normalization
from minidl.testing import check_gradients

rng = np.random.default_rng(0)
MASK = np.arange(5) < np.array([[5], [2], [0]])


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def gradients(f, arrays, weight):
    leaves = [md.tensor(a, requires_grad=True) for a in arrays]
    out = f(*leaves)
    return out, md.grad(out, leaves, md.tensor(weight))


def torch_gradients(f, arrays, weight):
    torch = pytest.importorskip("torch")
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    out = f(*leaves)
    return out, torch.autograd.grad(out, leaves, torch.tensor(weight))


def agree(ours, theirs):
    """Output and gradients, to 1e-5 of the largest entry of each."""
    pairs = [(ours[0], theirs[0].detach()), *zip(ours[1], theirs[1], strict=True)]
    for a, b in pairs:
        b = np.asarray(b)
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.data())
def test_gradients_to_second_order(batch, time, n, data):
    x, gamma, beta = (rng.normal(size=s) for s in ((batch, time, n), (n,), (n,)))
    lengths = data.draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    mask = np.arange(time) < np.array(lengths)[:, None] if data.draw(st.booleans()) else None
    check_gradients(lambda *a: batch_normalization(*a, mask, 0.1)[0], x, gamma, beta)
    check_gradients(lambda *a: group_normalization(a[0], 1, *a[1:], mask, 0.1), x, gamma, beta)


def test_the_statistics_have_gradients_too():
    x = rng.normal(size=(3, 5, 2))
    for i in (1, 2):
        check_gradients(lambda x, i=i: batch_normalization(x, mask=MASK)[i], x)


@pytest.mark.parametrize("shape", [(7, 3), (4, 6, 8), (3, 5, 6, 4), (64, 50, 40), (40003, 7)])
def test_pytorch_batch(shape):
    torch = pytest.importorskip("torch")
    arrays = [normal(*shape) + 3, normal(shape[-1]), normal(shape[-1])]
    weight = normal(*shape)
    with md.threads(2):
        ours = gradients(lambda *a: batch_normalization(*a)[0], arrays, weight)

    def theirs(x, gamma, beta):
        rows = x.reshape(-1, shape[-1])
        out = torch.nn.functional.batch_norm(rows, None, None, gamma, beta, True, eps=1e-3)
        return out.reshape(shape)

    agree(ours, torch_gradients(theirs, arrays, weight))


def test_statistics_far_from_zero_and_of_a_drift():
    """Blocks of rows whose means differ, all far from 0, are joined without loss."""
    rows = np.arange(80000)[:, None]
    x = 1000 + rng.normal(size=(80000, 4)) + rows * [0, 1e-3, 0, -1e-4] + (rows < 100) * 10
    x = x.astype(np.float32)
    out, mean, variance = batch_normalization(x, epsilon=1e-6)
    exact = x.astype(float)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var(0), rtol=1e-4)
    expected = (exact - exact.mean(0)) / exact.std(0)
    np.testing.assert_allclose(out, expected, atol=1e-3)  # x itself is known to 3e-5


@pytest.mark.parametrize(
    "shape, groups", [((4, 6, 8), 2), ((3, 5, 4), 4), ((40, 60, 48), 6), ((5, 200, 96), 6)]
)
def test_pytorch_group(shape, groups):
    torch = pytest.importorskip("torch")
    arrays = [normal(*shape) + 3, normal(shape[-1]), normal(shape[-1])]
    weight = normal(*shape)
    with md.threads(2):
        ours = gradients(lambda x, *a: group_normalization(x, groups, *a), arrays, weight)
    theirs = torch_gradients(
        lambda x, *a: torch.nn.functional.group_norm(x.mT, groups, *a, eps=1e-3).mT, arrays, weight
    )
    agree(ours, theirs)


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_fused_and_definition(mask, groups):
    x, gamma, beta = normal(3, 5, 4), normal(4), normal(4)

    def f(x, gamma, beta):
        return group_normalization(x, groups, gamma, beta, mask)

    leaves = [md.tensor(a.astype(float), requires_grad=True) for a in (x, gamma, beta)]
    out = f(*leaves)
    fused = md.grad(out, leaves, md.ones_like(out) + out.detach(), retain_graph=True)
    defined = md.grad(out, leaves, md.ones_like(out) + out.detach(), create_graph=True)
    for a, b in zip(fused, defined, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-12)


@pytest.mark.parametrize("f", [lambda *a: batch_normalization(*a)[0],
                               lambda x, *a: group_normalization(x, 2, *a)])  # fmt: skip
def test_padding_never_matters(f):
    x, garbage = normal(3, 5, 4), normal(3, 5, 4)
    garbage[~MASK] = [np.nan, np.inf, 1e30, -1]
    garbage[MASK] = x[MASK]
    weight = normal(3, 5, 4)
    results = []
    for array in (x, garbage):
        out, (g,) = gradients(lambda a: f(a, None, None, MASK), [array], weight)
        assert (out.numpy()[~MASK] == 0).all() and (g.numpy()[~MASK] == 0).all()
        results.append((out.numpy(), g.numpy()))
    np.testing.assert_array_equal(results[0], results[1])


def test_group_normalization_of_a_batch_is_that_of_its_items():
    x = normal(3, 5, 4)
    whole = group_normalization(x, 2, mask=MASK)
    for i in range(3):
        length = MASK[i].sum()
        alone = group_normalization(x[i : i + 1, :length], 2)
        np.testing.assert_allclose(whole[i, :length], alone[0], atol=1e-6)


def test_edges():
    out, mean, variance = batch_normalization(np.full((1, 3), 7.0), beta=np.arange(3.0))
    np.testing.assert_array_equal(out, [[0, 1, 2]])  # one row: nothing to divide, gradient 0
    np.testing.assert_array_equal([mean, variance], [[7] * 3, [0] * 3])
    nothing = np.zeros((2, 3), bool)
    out, mean, variance = batch_normalization(np.full((2, 3, 4), np.nan), mask=nothing)
    assert not out.any() and not mean.any() and not variance.any()
    assert batch_normalization(np.zeros((0, 3)))[0].shape == (0, 3)
    assert group_normalization(np.zeros((2, 0, 4)), 2).shape == (2, 0, 4)


def test_float16_is_computed_in_float32():
    x = (rng.normal(size=(50, 4)) * 200).astype(np.float16)  # the squares overflow float16
    out, mean, variance = batch_normalization(x)
    assert out.dtype == np.float16 and mean.dtype == variance.dtype == np.float32
    np.testing.assert_allclose(
        out.astype(float), batch_normalization(x.astype(float))[0], atol=5e-3
    )


def test_errors():
    x = np.ones((2, 3, 4))
    with pytest.raises(ShapeError, match=r"gamma: expected shape \(4,\), got \(3,\)"):
        batch_normalization(x, np.ones(3))
    with pytest.raises(ShapeError, match=r"mask: expected shape \(2, 3\), got \(2,\)"):
        batch_normalization(x, mask=np.ones(2, bool))
    with pytest.raises(DtypeError, match="got float64; use mask > 0"):
        group_normalization(x, 2, mask=np.ones((2, 3)))
    with pytest.raises(ShapeError, match="expected a divisor of 4 channels, got 3"):
        group_normalization(x, 3)
    with pytest.raises(ShapeError, match=r"x: expected \(batch, ..., n\), got \(4,\)"):
        group_normalization(np.ones(4), 2)


@pytest.mark.parametrize("mask", [None, np.arange(3000) > 2])
def test_gradients_of_halves_are_summed_in_float32(mask):
    x, g = normal(3000, 4).astype(np.float16), np.full((3000, 4), 100, np.float16)

    def by_x(x):
        x = md.tensor(x, requires_grad=True)
        out, _, _ = batch_normalization(x, mask=mask)
        return md.grad(out, [x], md.tensor(g.astype(x.dtype)))[0].numpy()

    np.testing.assert_allclose(by_x(x), by_x(x.astype(np.float32)), atol=0.1)
