"""Spectral norms against decompositions of matrices and of the dense matrices of convolutions."""

import itertools

import numpy as np
import pytest
from hypothesis import given

import minidl as md
from minidl.backend import to_device, to_host
from minidl.errors import ShapeError
from minidl.functional import spectral
from minidl.functional.spectral import (
    as_matrix,
    circular_spectral_norm,
    conv_spectral_bound,
    conv_spectral_norm,
    normalize,
    operator_power_iteration,
    power_iteration,
    singular_value,
    singular_vectors,
    spectral_norm,
    starting_vector,
)
from minidl.testing import check_gradients, strategies, strict

rng = np.random.default_rng(0)


def top(matrix):
    """The largest singular value, by NumPy."""
    return np.linalg.svd(matrix, compute_uv=False)[..., 0]


def matrix_of(f, shape):
    """The matrix of a linear map of items: (entries of the output, entries of the input)."""
    basis = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    return f(basis).reshape(len(basis), -1).T


class TestMatrices:
    @pytest.mark.parametrize("shape", [(7, 5), (5, 7), (1, 6), (6, 1), (1, 1), (2, 3, 4, 5)])
    def test_svd(self, shape):
        w = rng.normal(size=shape)
        sigma, u, v = power_iteration(w, rng.normal(size=shape[:-1]), 2000)
        np.testing.assert_allclose(sigma, top(w), rtol=1e-4)
        np.testing.assert_allclose(spectral_norm(w), top(w), rtol=1e-12)
        for x in (u, v):
            np.testing.assert_allclose((x * x).sum(-1), 1)
        np.testing.assert_allclose((v[..., None, :] * w).sum(-1), sigma[..., None] * u, rtol=0.02)

    @pytest.mark.parametrize("shape", [(3, 4, 6), (3, 3, 2, 8), (5, 5, 6, 2)])
    def test_kernels_in_float32(self, shape, device):
        kernel = rng.normal(size=shape).astype(np.float32)
        expected = top(kernel.reshape(-1, shape[-1]))
        w = as_matrix(to_device(kernel, device))
        sigma, u, v = power_iteration(w, starting_vector(w.shape[:1], w)[0], 300)
        assert {x.dtype for x in (sigma, u, v)} == {np.dtype(np.float32)}
        assert abs(float(sigma) - expected) < 1e-4 * expected

    def test_from_below_and_never_back(self):
        w, u = rng.normal(size=(30, 20)), rng.normal(size=30)
        sigmas = []
        for _ in range(60):
            sigma, u, _ = power_iteration(w, u)
            sigmas.append(sigma)
        assert np.all(np.diff(sigmas) > -1e-12) and sigmas[0] < sigmas[-1] <= top(w)
        assert power_iteration(w, u, 5)[0] >= sigma

    def test_gradient_is_that_of_the_decomposition(self):
        w = md.tensor(rng.normal(size=(6, 4)), requires_grad=True)
        sigma, u, v = power_iteration(w, rng.normal(size=6), 1000)
        assert not u.requires_grad and not v.requires_grad
        (g,) = md.grad(sigma, [w])
        np.testing.assert_allclose(g.numpy(), np.outer(u.numpy(), v.numpy()), atol=1e-12)
        np.testing.assert_allclose(g.numpy(), md.grad(spectral_norm(w), [w])[0].numpy(), atol=1e-9)

        def converged(w):
            return power_iteration(w, np.ones(6), 1000)[0]

        check_gradients(converged, w.numpy(), order=1, dtypes=False)

    def test_second_order_is_that_at_fixed_vectors(self):
        """Also before it has converged, where the true second derivative is another one."""
        start = rng.normal(size=(6, 4))
        u, v = singular_vectors(start, rng.normal(size=6), 2)
        other = rng.normal(size=(6, 4))
        check_gradients(lambda w: md.sin(singular_value(w, u, v)), other, dtypes=False)
        check_gradients(lambda w: md.sin(normalize(w, u, v, 0.5)), start, dtypes=False)

    def test_zeros(self, device):
        w, u = (to_device(x, device) for x in (np.zeros((3, 2)), np.array([0.6, 0.0, 0.8])))
        kernel = md.tensor(w, requires_grad=True)
        sigma, new, v = power_iteration(kernel, u, 3)
        assert sigma.item() == 0 and v.tolist() == [0, 0] and new.tolist() == [0.6, 0, 0.8]
        assert not md.grad(sigma, [kernel])[0].numpy().any()
        normalized = normalize(kernel, new, v)
        assert not normalized.numpy().any()
        weights = md.tensor(to_device(np.ones((3, 2)), device))
        for create_graph in (False, True):
            (g,) = md.grad(normalized, [kernel], weights, create_graph, retain_graph=True)
            assert (g.numpy() == 1).all()

    def test_no_entries(self):
        assert spectral_norm(np.zeros((3, 0))) == 0
        sigma, u, v = power_iteration(np.zeros((2, 0)), np.ones(2))
        assert sigma == 0 and v.shape == (0,) and u.tolist() == [1, 1]

    def test_float16_iterates_in_float32(self):
        w = (200 * rng.normal(size=(40, 30))).astype(np.float16)  # |w u|^2 is above 65504
        sigma, u, v = power_iteration(w, starting_vector((40,), w)[0].astype(np.float16), 200)
        assert sigma.dtype == u.dtype == np.float32
        np.testing.assert_allclose(sigma, top(w.astype(np.float64)), rtol=1e-4)
        x = md.tensor(w, requires_grad=True)
        out = normalize(x, u, v)
        assert out.dtype == np.float16 and abs(top(out.numpy().astype(np.float64)) - 1) < 1e-3
        assert md.grad(out.sum(), [x])[0].dtype == np.float16

    @pytest.mark.parametrize("coefficient", [1.0, 0.25])
    def test_normalized(self, coefficient, device):
        w = md.tensor(to_device(rng.normal(size=(300, 40)).astype(np.float32), device), True)
        u, v = singular_vectors(w, starting_vector((300,), w)[0], 500)
        out = normalize(w, u, v, coefficient)
        assert abs(top(out.numpy()) - coefficient) < 1e-4 * coefficient
        g = md.tensor(to_device(rng.normal(size=w.shape).astype(np.float32), device))
        fused, defined = (md.grad(out, [w], g, c, retain_graph=True)[0] for c in (False, True))
        np.testing.assert_allclose(fused.numpy(), defined.numpy(), rtol=1e-4, atol=1e-6)

    def test_gradients_in_any_layout(self):
        """The rank-one update writes into its own array, however g and w lie in memory."""
        w = np.asfortranarray(rng.normal(size=(5, 4)))
        u, v = singular_vectors(w, rng.normal(size=5), 2)
        x, g = md.tensor(w, requires_grad=True), np.asfortranarray(rng.normal(size=(5, 4)))
        out = normalize(x, u, v)
        fused, defined = (md.grad(out, [x], g, c, retain_graph=True)[0] for c in (False, True))
        np.testing.assert_allclose(fused.numpy(), defined.numpy(), atol=1e-12)

    def test_refusals(self):
        with pytest.raises(ShapeError, match=r"u: expected w's shape without the last axis, got"):
            power_iteration(np.ones((3, 2)), np.ones(2))
        with pytest.raises(ShapeError, match="give as_matrix"):
            normalize(np.ones((3, 3, 2)), np.ones(3), np.ones(2))
        with pytest.raises(ValueError, match="steps: expected 1 or more, got 0"):
            power_iteration(np.ones((3, 2)), np.ones(3), 0)
        with pytest.raises(ShapeError, match="got a scalar"):
            as_matrix(np.ones(()))


def test_starting_vectors():
    u = starting_vector((4, 6), np.zeros(1, np.float32), groups=3)
    assert u.shape == (3, 4, 6) and u.dtype == np.float32
    np.testing.assert_array_equal(u, starting_vector((4, 6), np.zeros(1, np.float32), groups=3))
    np.testing.assert_allclose((u * u).sum((1, 2)), 1, rtol=1e-6)
    for group in range(3):
        own = slice(2 * group, 2 * group + 2)
        assert u[group, :, own].all() and not np.delete(u[group], own, -1).any()


# --- Convolutions ---------------------------------------------------------------------------------


def around(kernel, **options):
    """The convolution that goes round, on NumPy's arrays."""
    taps = kernel.shape[:-2]
    dilation = options.get("dilation", 1)
    widths = [(0, 0), *((0, dilation * (k - 1)) for k in taps), (0, 0)]
    f = spectral.convolution(kernel, **options)
    return lambda x: f(np.pad(x, widths, mode="wrap"))


def convolution_around(draw):
    """(kernel, input_shape, options) of a convolution that goes round."""
    axes, groups, stride = draw.integer(1, 2), draw.integer(1, 2), draw.integer(1, 3)
    most = 4 if axes == 2 else 8
    grid = [stride * draw.integer(-(-3 // stride), most // stride) for _ in range(axes)]
    dilation = draw.integer(1, 2) if min(grid) > 4 else 1
    kernel, channels = draw_kernel(draw, axes, groups)
    return kernel, (*grid, channels), {"stride": stride, "dilation": dilation, "groups": groups}


def padded_convolution(draw):
    """(kernel, input_shape, options) of a convolution with zero padding."""
    axes, groups = draw.integer(1, 2), draw.integer(1, 2)
    grid = [draw.integer(3, 4 if axes == 2 else 8) for _ in range(axes)]
    one = (draw.integer(0, 3), draw.integer(0, 3))
    paddings = ["causal", one] if axes == 1 else [one, (one, one[::-1])]
    kernel, channels = draw_kernel(draw, axes, groups)
    options = {
        "stride": draw.integer(1, 3),
        "padding": draw.choice(["valid", "same", draw.integer(0, 4), *paddings]),
        "dilation": draw.integer(1, 2) if min(grid) > 4 else 1,
        "groups": groups,
    }
    return kernel, (*grid, channels), options


def draw_kernel(draw, axes, groups):
    """A kernel of at most 3 taps an axis, and the number of the input's channels."""
    sizes = [draw.integer(1, 3) for _ in range(axes)]
    kernel = draw.array((*sizes, draw.integer(1, 2), groups * draw.integer(1, 2)))
    return np.ascontiguousarray(kernel), kernel.shape[-2] * groups


@given(strategies.drawn(convolution_around))
def test_circular_norm_is_that_of_the_dense_matrix(drawn):
    kernel, shape, options = drawn
    expected = top(matrix_of(around(kernel, **options), shape))
    assert abs(circular_spectral_norm(kernel, shape, **options) - expected) < 1e-9


@given(strategies.drawn(padded_convolution))
def test_zero_padding_lies_between_iteration_and_bound(drawn):
    kernel, shape, options = drawn
    expected = top(matrix_of(spectral.convolution(kernel, **options), shape))
    assert conv_spectral_bound(kernel, shape, **options) >= expected * (1 - 1e-12)
    assert conv_spectral_norm(kernel, shape, **options, steps=5) <= expected * (1 + 1e-12)


PADDINGS = [  # and how many zeros they add at least
    ("valid", 0), ("same", 99), ("causal", 99), (1, 2), (5, 10), ((2, 0), 2), ((0, 1), 1),
]  # fmt: skip


@pytest.mark.parametrize("taps", [[1, -1], [1, -1, 1], [1, 2, -3]])
def test_every_small_geometry(taps):
    """Signs that alternate meet an edge, or themselves, at once where something is left out."""
    kernel = np.array(taps, float)[:, None, None]
    for n, stride, dilation in itertools.product(range(2, 7), (1, 2, 3), (1, 2)):
        options = {"stride": stride, "dilation": dilation}
        if n % stride == 0:
            expected = top(matrix_of(around(kernel, **options), (n, 1)))
            assert abs(circular_spectral_norm(kernel, (n, 1), **options) - expected) < 1e-9
        for padding, added in PADDINGS:
            if n + added <= dilation * (len(taps) - 1):
                continue  # no output
            f = spectral.convolution(kernel, padding=padding, **options)
            bound = conv_spectral_bound(kernel, (n, 1), padding=padding, **options)
            assert top(matrix_of(f, (n, 1))) <= bound * (1 + 1e-12), (n, options, padding)


@pytest.mark.parametrize("sizes, grid, stride", [((2, 3), (4, 6), 1), ((3, 2), (6, 4), (3, 2))])
def test_both_axes_keep_their_places(sizes, grid, stride):
    kernel, shape = np.random.default_rng(0).normal(size=(*sizes, 2, 3)), (*grid, 2)
    kernel -= kernel.mean((0, 1))  # constants would hide which tap is which
    expected = top(matrix_of(around(kernel, stride=stride), shape))
    assert abs(circular_spectral_norm(kernel, shape, stride) - expected) < 1e-9
    options = {"stride": stride, "padding": ((0, 1), (2, 0))}
    expected = top(matrix_of(spectral.convolution(kernel, **options), shape))
    assert expected <= conv_spectral_bound(kernel, shape, **options)


EXAMPLES = [
    ((3, 2, 3), (8, 2), {"padding": "same"}),
    ((3, 1, 4), (9, 2), {"padding": "causal", "groups": 2, "stride": 2}),
    ((3, 3, 1, 2), (5, 6, 1), {"padding": "same"}),
    ((3, 2, 2, 3), (6, 5, 2), {"stride": (2, 1), "padding": ((1, 0), (2, 1))}),
]


@pytest.mark.parametrize("sizes, shape, options", EXAMPLES)
def test_iteration_converges(sizes, shape, options, device):
    kernel = np.random.default_rng(1).normal(1, size=sizes)
    expected = top(matrix_of(spectral.convolution(kernel, **options), shape))
    found = conv_spectral_norm(to_device(kernel, device), shape, **options, steps=200)
    assert abs(float(found) - expected) < 1e-4 * expected
    bound = conv_spectral_bound(kernel, shape, **options)
    assert expected <= bound < 1.3 * expected


def test_iteration_finds_the_circular_norm():
    kernel, shape = rng.normal(size=(3, 3, 2, 2)), (6, 6, 2)

    def f(x):
        widths = ((0, 0), (0, 2), (0, 2), (0, 0))
        return md.conv2d(md.pad(x, widths, mode="wrap"), kernel)

    sigma, _, _ = operator_power_iteration(f, starting_vector(shape, kernel), 400)
    expected = circular_spectral_norm(kernel, shape)
    assert abs(float(sigma[0]) - expected) < 1e-4 * expected


def test_every_item_iterates_by_itself():
    """The second start is blind to the larger group; the largest of all is the norm."""
    kernel = np.stack([np.ones((1, 3)), 2 * np.ones((1, 3))], axis=-1).transpose(1, 0, 2)
    f = spectral.convolution(kernel, groups=2)
    starts = starting_vector((9, 2), kernel, groups=2)
    sigma, u, v = operator_power_iteration(f, starts, 200)
    norms = [top(matrix_of(spectral.convolution(kernel[:, :, i : i + 1]), (9, 1))) for i in (0, 1)]
    np.testing.assert_allclose(sigma.numpy(), norms, rtol=1e-6)
    assert not u.numpy()[0, :, 1].any() and v.shape == (2, 7, 2)
    assert abs(conv_spectral_norm(kernel, (9, 2), groups=2, steps=200) - norms[1]) < 1e-6


def test_gradient_of_the_operator_norm():
    kernel, direction = np.random.default_rng(2).normal(size=(2, 3, 2, 2))
    kernel += 1  # and the largest stands apart

    def exact(kernel):
        return top(matrix_of(spectral.convolution(kernel, padding="same"), (4, 2)))

    x = md.tensor(kernel, requires_grad=True)
    (g,) = md.grad(conv_spectral_norm(x, (4, 2), padding="same", steps=200), [x])
    slope = (exact(kernel + 1e-6 * direction) - exact(kernel - 1e-6 * direction)) / 2e-6
    assert abs((g.numpy() * direction).sum() - slope) < 1e-5


def test_the_reshaped_kernel_does_not_bound_the_convolution():
    mean = np.full((3, 1, 1), 1 / 3)
    assert abs(spectral_norm(as_matrix(mean)) - 3**-0.5) < 1e-12
    assert conv_spectral_norm(mean, (50, 1), padding="same") > 0.99  # constants pass as they are
    assert 1 <= conv_spectral_bound(mean, (50, 1), padding="same") < 1 + 1e-12


def test_no_synchronisation():
    w = to_device(rng.normal(size=(8, 6)).astype(np.float32), "strict")
    kernel = md.tensor(to_device(rng.normal(size=(3, 2, 4)).astype(np.float32), "strict"), True)
    with strict.forbid_sync():
        sigma, _, _ = power_iteration(w, starting_vector((8,), w)[0], 3)
        norm = conv_spectral_norm(kernel, (7, 2), padding="same", steps=3)
        norm.backward()
    assert to_host(sigma) > 0 and kernel.grad.device == "strict"


def test_conv_refusals():
    kernel = np.ones((3, 2, 4))
    with pytest.raises(ShapeError, match="leave out the batch"):
        conv_spectral_norm(kernel, (1, 9, 2))
    with pytest.raises(ShapeError, match="expected 4 channels"):
        conv_spectral_bound(kernel, (9, 2), groups=2)
    with pytest.raises(ShapeError, match=r"expected sizes that \(2,\) divide, got \(9,\)"):
        circular_spectral_norm(kernel, (9, 2), stride=2)
    with pytest.raises(ShapeError, match="kernel: expected"):
        spectral.convolution(np.ones((3, 3)))
    with pytest.raises(ValueError, match="conv_spectral_bound: padding: expected 'valid'"):
        conv_spectral_bound(kernel, (9, 2), padding="full")
    with pytest.raises(ShapeError, match="conv_spectral_bound: padding: expected 0 or more"):
        conv_spectral_bound(kernel, (9, 2), padding=-1)


def test_paddings_that_differ_in_kind_by_axis():
    kernel, shape = rng.normal(size=(3, 2, 2, 1)), (5, 4, 2)
    for padding in (("same", 1), (2, "valid"), ((1, 0), "same")):
        expected = top(matrix_of(spectral.convolution(kernel, padding=padding), shape))
        bound = conv_spectral_bound(kernel, shape, padding=padding)
        assert expected * (1 - 1e-12) <= bound < 1.3 * expected


def test_a_kernel_of_integers():
    kernel = np.ones((3, 3, 1, 1), int)
    norm = conv_spectral_norm(kernel, (8, 8, 1), padding="same")
    np.testing.assert_allclose(
        norm, top(matrix_of(spectral.convolution(kernel, padding="same"), (8, 8, 1))), rtol=1e-6
    )
