"""The largest singular value of linear maps: of matrices, of kernels as matrices, of convolutions.

A singular value of a map is how much it stretches some vector; the largest is its Lipschitz
constant in the Euclidean norm. Power iteration finds it from below, a decomposition exactly;
`conv_spectral_bound` proves a number above it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minidl import ops
from minidl.autodiff import no_grad, primitive, stop_gradient
from minidl.backend import Array, namespace, to_host
from minidl.derivatives import vjp
from minidl.errors import ShapeError
from minidl.graph import Tensor, unwrap, wrap
from minidl.ops.geometry import paddings
from minidl.ops.shape import shape_of
from minidl.samples import Draw, call, samples

# --- Matrices -------------------------------------------------------------------------------------


def as_matrix(kernel: Any) -> Any:
    """A kernel (..., outputs) as one matrix (inputs, outputs) of all its other axes."""
    shape = shape_of(kernel)
    if not shape:
        raise ShapeError("as_matrix: kernel: expected one axis or more, got a scalar")
    if len(shape) == 2:
        return kernel
    return ops.reshape(kernel, (math.prod(shape[:-1]), shape[-1]))


def spectral_norm(w: Any) -> Any:
    """The largest singular value of matrices (..., m, n), by decomposition: (...).

    The gradient is u v^T of the singular vectors, where one value is the largest; zero for a matrix
    without entries. Raises ShapeError for fewer than 2 dimensions.
    """
    if 0 in shape_of(w)[-2:]:
        return ops.sum(w, axis=(-2, -1))
    return ops.svdvals(w)[..., 0]


def singular_value(w: Any, u: Any, v: Any) -> Any:
    """u^T w v of matrices (..., m, n) and vectors (..., m) and (..., n): (...).

    At unit vectors it is at most the largest singular value, and that one at its vectors: as it
    does not change there to first order with u and v, they may be held fixed in its gradient.
    """
    return ops.sum(u * ops.matmul(w, v[..., None])[..., 0], axis=-1)


def power_iteration(w: Any, u: Any, steps: int = 1) -> tuple[Any, Any, Any]:
    """(sigma, u, v) after `steps` power iterations on matrices `w` (..., m, n) from `u` (..., m).

    Each is v = normalized w^T u, u = normalized w v, and sigma = u^T w v, which is never above the
    largest singular value. u and v are constants: the gradient of sigma is u v^T. They take the
    dtype of w, float32 at least. Of a zero matrix v and sigma are 0, and u stays as it was. Raises
    ShapeError when the shapes do not fit, ValueError for fewer than 1 step. Miyato et al. 2018,
    algorithm 1.
    """
    shape = shape_of(w)
    if len(shape) < 2 or shape_of(u) != shape[:-1]:
        raise ShapeError(
            f"power_iteration: u: expected w's shape without the last axis, got {shape_of(u)} for "
            f"w of {shape}; for a kernel, give as_matrix(kernel)"
        )
    u, v = singular_vectors(w, u, steps)
    return singular_value(w, u, v), u, v


def singular_vectors(w: Any, u: Any, steps: int = 1) -> tuple[Any, Any]:
    """The u and v of `power_iteration`."""
    matrix, start = _wide(unwrap(w)), unwrap(u)
    xp = namespace(matrix)
    if matrix.ndim == 2:
        u, v = _iterate(matrix.T.__matmul__, matrix.__matmul__, start, steps)
    else:
        u, v = _iterate(
            lambda u: xp.matmul(u[..., None, :], matrix)[..., 0, :],
            lambda v: xp.matmul(matrix, v[..., None])[..., 0],
            start,
            steps,
        )
    return _like(w, u), _like(w, v)


def _wide(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array


def _like(x: Any, array: Array) -> Any:
    """`array` as a constant Tensor where `x` is a Tensor."""
    return wrap(array, None, None) if isinstance(x, Tensor) else array


def _iterate(
    forward: Callable[[Array], Array], backward: Callable[[Array], Array], u: Array, steps: int
) -> tuple[Array, Array]:
    """u and v after `steps` iterations with a map and its transpose; vectors are the last axis."""
    if steps < 1:
        raise ValueError(f"power iteration: steps: expected 1 or more, got {steps}")
    xp = namespace(u)
    for _ in range(steps):
        v, _ = _unit(forward(u))
        new, norm = _unit(backward(v))
        u = xp.where(norm > 0, new, u)
    return u, v


def _unit(x: Array) -> tuple[Array, Array]:
    """x / |x| over the last axis, zeros for zeros, and |x|."""
    norm = namespace(x).sqrt((x * x).sum(axis=-1, keepdims=True))
    return x / (norm + (norm == 0)), norm


# --- Kernels divided by their norm ----------------------------------------------------------------


def normalize(w: Any, u: Any, v: Any, coefficient: float = 1.0) -> Any:
    """coefficient * w / sigma with sigma = u^T w v, of one matrix (m, n), u (m,) and v (n,).

    u and v are constants. Where sigma is 0 the result is w. Raises ShapeError for other shapes.
    Miyato et al. 2018, section 2.
    """
    shape = shape_of(w)
    if len(shape) != 2 or shape_of(u) != shape[:1] or shape_of(v) != shape[1:]:
        raise ShapeError(
            f"normalize: expected w (m, n), u (m,) and v (n,), got {shape}, {shape_of(u)} and "
            f"{shape_of(v)}; for a kernel, give as_matrix(kernel)"
        )
    return _normalize(w, u, v, coefficient)


def scale_for(sigma: Any, coefficient: float = 1.0) -> Any:
    """What to multiply a kernel by: coefficient / sigma, and 1 where sigma is 0."""
    zero = unwrap(sigma) == 0
    return ops.where(zero, 1.0, coefficient / ops.where(zero, 1.0, sigma))


@primitive(floats=True, residuals=True)
def _normalize(w, u, v, coefficient):
    """The fused op, two passes over w; keeps 1 / sigma (0 for 0) and coefficient / sigma."""
    wide = _wide(w)
    sigma = u @ (wide @ v)
    zero = sigma == 0
    inverse = (1 - zero) / (sigma + zero)
    scale = (coefficient * inverse + zero).astype(wide.dtype)
    return (wide * scale).astype(w.dtype, copy=False), (inverse.astype(wide.dtype), scale)


def _normalize_rule(g, u, v, out, kept):
    """scale * (g + slope u v^T): scale * slope = -<g, out> / sigma is the gradient by sigma."""
    inverse, scale = kept
    slope = namespace(g).vdot(_wide(g), _wide(out)) * (-inverse / scale)
    by_w = _outer(slope * u, v)
    by_w += g
    by_w *= scale
    return by_w


def _outer(u: Array, v: Array) -> Array:
    """u v^T, as the product of (u 0) and (v 0): NumPy gives BLAS the product of two columns, which
    takes a third of the time of its own loops for one."""
    xp = namespace(u)
    return xp.matmul(xp.stack([u, xp.zeros_like(u)], 1), xp.stack([v, xp.zeros_like(v)]))


_normalize.defvjp(w=_normalize_rule)


@_normalize.define
def _(w, u, v, coefficient):
    return w * scale_for(singular_value(w, u, v), coefficient)


# --- Linear maps given as functions, convolutions -------------------------------------------------


def operator_power_iteration(
    f: Callable[[Any], Any], u: Any, steps: int = 1
) -> tuple[Any, Any, Any]:
    """(sigma, u, v) after `steps` power iterations on the linear map `f`, from `u`.

    f takes a batch like `u` to one like v; its transpose is its pullback. The items are vectors of
    their own: u, v (batch, ...), sigma (batch,), and so one batch iterates from several starts.
    What f takes from outside, such as a kernel, gets its gradient from sigma; u and v are
    constants. Raises ValueError for fewer than 1 step.
    """
    u, v = operator_singular_vectors(f, u, steps)
    return operator_singular_value(f, u, v), u, v


def operator_singular_vectors(
    f: Callable[[Any], Any], u: Any, steps: int = 1
) -> tuple[Tensor, Tensor]:
    """The u and v of `operator_power_iteration`."""
    start = _wide(unwrap(u))
    found: list = []  # the map's value at u, and its pullback

    def flat(x: Any) -> Array:
        return unwrap(x).reshape(len(start), -1)

    def forward(u: Array) -> Array:
        found[:] = vjp(f, wrap(u.reshape(start.shape), None, None))
        return flat(found[0])

    def backward(v: Array) -> Array:
        y, pullback = found
        return flat(pullback(wrap(v.reshape(y.shape), None, None))[0])

    with no_grad():
        flat_u, flat_v = _iterate(forward, backward, flat(start), steps)
    v = wrap(flat_v.reshape(found[0].shape), None, None)
    return wrap(flat_u.reshape(start.shape), None, None), v


def operator_singular_value(f: Callable[[Any], Any], u: Any, v: Any) -> Any:
    """<f(u), v> of each item: (batch,)."""
    return ops.sum(f(u) * v, axis=tuple(range(1, len(shape_of(v)))))


def starting_vector(shape: Sequence[int], like: Any, groups: int = 1) -> Array:
    """Vectors (groups, *shape) to start from: the same each time, and of no pattern that a kernel
    has. Each is 0 but in its group's share of the last axis, and of length 1."""
    array = unwrap(like)
    xp, size = namespace(array), math.prod(shape)
    dtype = np.result_type(array.dtype, np.float32)  # of integers all would be 0
    phase = xp.arange(1, size + 1, dtype=np.float64)
    values = xp.sin(phase * phase).astype(dtype).reshape(*shape[:-1], groups, -1)
    own = xp.eye(groups, dtype=dtype).reshape(groups, *(1 for _ in shape[:-1]), groups, 1)
    return _unit((values * own).reshape(groups, size))[0].reshape(groups, *shape)


def convolution(
    kernel: Any, stride: Any = 1, padding: Any = "valid", dilation: Any = 1, groups: int = 1
) -> Callable[[Any], Any]:
    """The linear map x -> conv(x, kernel), of as many axes as the kernel has."""
    axes = len(shape_of(kernel)) - 2
    if axes not in (1, 2):
        raise ShapeError(
            "convolution: kernel: expected (size, channels, filters) or (height, width, channels, "
            f"filters), got {shape_of(kernel)}"
        )
    conv = ops.conv1d if axes == 1 else ops.conv2d
    return lambda x: conv(
        x, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups
    )


def conv_spectral_norm(
    kernel: Any,
    input_shape: Sequence[int],
    stride: Any = 1,
    padding: Any = "valid",
    dilation: Any = 1,
    groups: int = 1,
    steps: int = 100,
) -> Any:
    """The largest singular value of a convolution, as of a map from items to items: a scalar.

    Found by `steps` power iterations of the convolution and its transpose, and so from below:
    certify with `conv_spectral_bound`. kernel, stride, padding, dilation and groups are those of
    conv1d or conv2d; input_shape (*sizes, channels) is an item's. The transposed convolution with
    this kernel and the sizes of its output has the same. Differentiable in `kernel`. Raises
    ShapeError when kernel and input_shape do not fit.
    """
    channels = _check_conv("conv_spectral_norm", shape_of(kernel), input_shape, groups)
    start = starting_vector((*input_shape[:-1], channels), kernel, groups)
    f = convolution(kernel, stride, padding, dilation, groups)
    frozen = convolution(stop_gradient(kernel), stride, padding, dilation, groups)
    sigma = ops.max(operator_singular_value(f, *operator_singular_vectors(frozen, start, steps)))
    return sigma if isinstance(kernel, Tensor) else sigma._data


def circular_spectral_norm(
    kernel: Any, input_shape: Sequence[int], stride: Any = 1, dilation: Any = 1, groups: int = 1
) -> float:
    """The largest singular value of a convolution whose padding goes round, exactly, in float64.

    Such a convolution does not mix the frequencies of an item, but for those that a stride makes
    alike: the answer is the largest over all frequencies of the kernel's Fourier transform, a
    matrix for each. No gradient. Raises ShapeError unless the strides divide the sizes. Sedghi,
    Gupta and Long 2019 (for stride 1).
    """
    shape = shape_of(kernel)
    _check_conv("circular_spectral_norm", shape, input_shape, groups)
    strides, dilations = (_per_axis(value, len(shape) - 2) for value in (stride, dilation))
    grid = tuple(input_shape[:-1])
    if any(size % step for size, step in zip(grid, strides, strict=True)):
        raise ShapeError(
            f"circular_spectral_norm: input_shape: expected sizes that {strides} divide, got "
            f"{grid}; there is no such convolution otherwise"
        )
    taps = to_host(unwrap(kernel)).astype(np.float64)
    if not np.isfinite(taps).all():
        return math.nan  # where a decomposition would raise, or a maximum overlook it
    taps = taps.reshape(-1, shape[-2], groups, shape[-1] // groups)
    largest = 0.0
    for phases in _phases(shape[:-2], grid, strides, dilations, taps[0].size):
        symbols = np.tensordot(phases, taps, 1)  # (frequencies, aliases, channels, groups, filters)
        symbols = np.moveaxis(symbols, 3, 1)
        symbols = symbols.reshape(*symbols.shape[:2], -1, symbols.shape[-1])
        turned = symbols.conj().swapaxes(-1, -2)
        short = symbols.shape[-2] < symbols.shape[-1]
        gram = symbols @ turned if short else turned @ symbols
        if gram.size:
            largest = max(largest, float(np.linalg.eigvalsh(gram)[..., -1].max()))
    return math.sqrt(largest / math.prod(strides))


def _phases(
    sizes: Sequence[int], grid: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    matrix: int,
) -> Iterator[np.ndarray]:  # fmt: skip
    """exp(-2 pi i frequency . tap): (frequencies of the output, those of the input that the stride
    makes alike, taps), in chunks. Of two conjugate frequencies one is left out."""
    axes = []  # for each axis (frequencies of the output, alike, taps)
    for size, n, step, dilation in zip(sizes, grid, strides, dilations, strict=True):
        coarse = n // step
        frequencies = np.arange(coarse)[:, None] + coarse * np.arange(step)
        turns = frequencies[..., None] * (dilation * np.arange(size)) % n
        axes.append(np.exp(-2j * math.pi / n * turns))
    axes[0] = axes[0][: len(axes[0]) // 2 + 1]
    every = list(itertools.product(*(range(len(axis)) for axis in axes)))
    chunk = max(1, (1 << 20) // max(1, matrix * math.prod(strides)))
    for first in range(0, len(every), chunk):
        picked = np.array(every[first : first + chunk])
        out = axes[0][picked[:, 0]]
        for axis, index in zip(axes[1:], picked.T[1:], strict=True):
            other = axis[index]
            out = (out[:, :, None, :, None] * other[:, None, :, None, :]).reshape(
                len(picked), out.shape[1] * other.shape[1], -1
            )
        yield out


def conv_spectral_bound(
    kernel: Any,
    input_shape: Sequence[int],
    stride: Any = 1,
    padding: Any = "valid",
    dilation: Any = 1,
    groups: int = 1,
) -> float:
    """A number that the largest singular value of a convolution with zero padding is never above.

    On a grid with as many zeros behind the input as the kernel reaches beyond it (n + k - 1 at
    most), going round meets zeros only, as zero padding does: the outputs are among those of the
    circular convolution there, so its norm is an upper bound. In float64, exact but for rounding
    (1e-12). Arguments as in `conv_spectral_norm`. No gradient.
    """
    shape = shape_of(kernel)
    channels = _check_conv("conv_spectral_bound", shape, input_shape, groups)
    count = len(shape) - 2
    strides, dilations = _per_axis(stride, count), _per_axis(dilation, count)
    grid = []
    for axis, (size, n) in enumerate(zip(shape, input_shape[:-1], strict=False)):
        wide = n + _overhang(padding, axis, count, dilations[axis] * (size - 1))
        grid.append(-(-wide // strides[axis]) * strides[axis])
    return circular_spectral_norm(kernel, (*grid, channels), strides, dilations, groups)


def _overhang(padding: Any, axis: int, count: int, reach: int) -> int:
    """How many of the zeros beside the input one output can see at most."""
    if count > 1 and isinstance(padding, (tuple, list)):
        padding = padding[axis]
    if padding == "same":
        return (reach + 1) // 2
    return min(reach, max(paddings(padding, 0, reach + 1, 1, 1, "conv_spectral_bound")))


def _per_axis(value: Any, count: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,) * count


def _check_conv(
    op: str, kernel: tuple[int, ...], input_shape: Sequence[int], groups: int
) -> int:  # fmt: skip
    """The number of the input's channels, if kernel and input fit."""
    if len(kernel) < 3 or len(input_shape) != len(kernel) - 1:
        raise ShapeError(
            f"{op}: input_shape: expected (*sizes, channels) for a kernel (*sizes, channels // "
            f"groups, filters), got {tuple(input_shape)} for {kernel}; leave out the batch"
        )
    channels = kernel[-2] * groups
    if input_shape[-1] not in (None, channels) or kernel[-1] % groups:
        raise ShapeError(
            f"{op}: input_shape: expected {channels} channels for a kernel {kernel} and {groups} "
            f"groups, got {tuple(input_shape)}"
        )
    return channels


@samples(singular_value)
def _(draw: Draw):
    *batch, m, n = draw.shape(min_dims=2, max_side=3)
    return call(draw.array((*batch, m, n)), draw.array((*batch, m)), draw.array((*batch, n)))


def _normalize_ones(w: Any, coefficient: float) -> Any:
    """`normalize` at u and v of ones."""
    u, v = (_like(w, namespace(unwrap(w)).ones(n, w.dtype)) for n in shape_of(w))
    return normalize(w, u, v, coefficient)


@samples(_normalize_ones)
def _(draw: Draw):
    shape = draw.shape(min_dims=2, max_dims=2, min_side=1, max_side=3)
    return call(draw.array(shape, 0.3, 1.0), draw.choice([1.0, 0.7]))


@samples(spectral_norm)
def _(draw: Draw):
    *batch, m, n = draw.shape(min_dims=2, max_dims=3, max_side=3)
    w = draw.array((*batch, m, n), -0.4, 0.4)
    if m and n:
        w[..., 0, 0] += 4.0  # one singular value is the largest
    return call(w)
