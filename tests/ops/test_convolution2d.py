"""conv2d and the transposed convolutions: their definitions, the adjoint identity, PyTorch."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import minidl as md
from minidl import ops
from minidl.errors import DtypeError, ShapeError
from minidl.ops import windows
from minidl.ops.convolution import convolution_definition, transpose_definition
from minidl.testing import check_gradients

OPS = {
    "conv1d": (ops.conv1d, convolution_definition),
    "conv2d": (ops.conv2d, convolution_definition),
    "conv1d_transpose": (ops.conv1d_transpose, transpose_definition),
    "conv2d_transpose": (ops.conv2d_transpose, transpose_definition),
}


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def arrays(op, batch, sides, sizes, groups=1, channels=2, filters=3, dtype=np.float64):
    """x, kernel and bias; so many channels and filters in each group."""
    last = (channels, groups * filters)
    if op.endswith("transpose"):
        last = (filters, groups * channels)
    return (
        normal(batch, *sides, groups * channels, dtype=dtype),
        normal(*sizes, *last, seed=1, dtype=dtype),
        normal(groups * filters, seed=2, dtype=dtype),
    )


def both(op, inputs, device="cpu", **options):
    """Output and gradients, and the gradients of these gradients' squares, of the op and of its
    definition."""
    results = []
    for function in OPS[op]:
        tensors = [md.tensor(a, requires_grad=True, device=device) for a in inputs]
        out = function(*tensors, **options)
        gradients = md.grad((out * out).sum(), tensors, create_graph=True)
        penalty = sum((g * g).sum() for g in gradients)
        results.append([out, *gradients, *md.grad(penalty, tensors)])
    return results


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        scale = np.abs(other.numpy()).max(initial=1.0)
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-9, atol=1e-11 * scale)


# --- Definitions ----------------------------------------------------------------------------------


@st.composite
def cases(draw):
    """An op, its arrays, and a geometry, however odd, that fits them."""
    op = draw(st.sampled_from(sorted(OPS)))
    axes = int(op[4])
    each = {
        "stride": draw(st.tuples(*[st.integers(1, 4)] * axes)),
        "dilation": draw(st.tuples(*[st.integers(1, 3)] * axes)),
    }
    sizes = draw(st.tuples(*[st.integers(1, 4)] * axes))
    widths = st.tuples(st.integers(0, 5), st.integers(0, 5))
    padding = draw(st.sampled_from(["valid", "same", 1, None]))
    padding = draw(st.tuples(*[widths] * axes)) if padding is None else padding
    groups = draw(st.integers(1, 2))
    sides = draw(st.tuples(*[st.integers(1, 7)] * axes))
    options = {**each, "padding": padding}
    if axes == 1:
        options = {k: v[0] if isinstance(v, tuple) else v for k, v in options.items()}
    if op.endswith("transpose") and draw(st.booleans()):
        least = min(each["stride"])
        options["output_padding"] = draw(st.integers(0, least - 1))
    options |= {"groups": groups, "activation": draw(st.sampled_from([None, "relu"]))}
    sizes_of = [draw(st.integers(1, 2)), draw(st.integers(1, 2))]
    return op, arrays(op, draw(st.integers(0, 2)), sides, sizes, groups, *sizes_of), options


@hypothesis.given(cases())
def test_ops_are_their_definitions(device, case):
    op, inputs, options = case
    try:
        found, expected = both(op, inputs, device, **options)
    except ShapeError as error:  # no whole window, or more padding than there is to cut off
        assert "x: expected at least" in str(error) or "padding: expected less" in str(error)
        hypothesis.reject()
    assert_same(found, expected)


GEOMETRIES = [
    {"stride": 3},
    {"stride": (1, 3), "padding": ((4, 3), (0, 5))},
    {"stride": (2, 1), "padding": "same", "groups": 2},
    {"stride": 2, "dilation": (1, 2), "padding": 1},
    {"padding": (3, 0), "dilation": 2, "activation": "relu"},
]


@pytest.mark.parametrize("op", ["conv2d", "conv2d_transpose"])
@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
@pytest.mark.parametrize("sizes", [(3, 3), (1, 2), (5, 4)])
def test_chosen_geometries(op, options, sizes):
    inputs = arrays(op, 2, (9, 11), sizes, options.get("groups", 1))
    assert_same(*both(op, inputs, **options))


@pytest.mark.parametrize("op", ["conv2d", "conv2d_transpose"])
@pytest.mark.parametrize(
    "shape", [(0, (4, 5), 1, 2, 3), (2, (4, 5), 1, 0, 3), (2, (4, 5), 1, 2, 0)], ids=str
)
def test_empty_arrays(op, shape):
    batch, sides, groups, channels, filters = shape
    for stride in (1, 2):
        inputs = arrays(op, batch, sides, (3, 2), groups, channels, filters)
        assert_same(*both(op, inputs, stride=stride, padding="same"))


@pytest.mark.parametrize("block", [1, 4000])
@pytest.mark.parametrize("op", sorted(OPS))
def test_blocks_and_halves_do_not_matter(op, block, monkeypatch):
    axes = int(op[4])
    for stride, padding, groups, channels in (
        (1, "same", 1, 2), (1, "valid", 1, 2), (2, "same", 1, 2), (2, "valid", 2, 2),
        (1, "same", 3, 1), (2, "valid", 3, 1),
    ):  # fmt: skip
        inputs = arrays(op, 5, (9, 6)[:axes], (3, 2)[:axes], groups, channels)
        options = {"stride": stride, "padding": padding, "groups": groups, "activation": "relu"}
        whole, _ = both(op, inputs, **options)
        with monkeypatch.context() as patch, md.threads(2):
            patch.setattr(windows, "BLOCK", block)
            patch.setattr(windows, "SPLIT", 1)
            parts, _ = both(op, inputs, **options)
        assert_same(parts, whole)


def test_results_do_not_depend_on_threads():
    inputs = arrays("conv2d", 16, (14, 14), (3, 3), 1, 32, 64, dtype=np.float32)
    results = []
    for threads in (1, 2):
        with md.threads(threads):
            x, kernel, bias = (md.tensor(a, requires_grad=True) for a in inputs)
            hidden = md.conv2d(x, kernel, bias, activation="relu")
            out = md.conv2d(hidden, kernel.reshape((3, 3, 64, 32)), stride=2)
            results.append([hidden, out, *md.grad((out * out).sum(), [x, kernel, bias])])
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())


def test_one_axis_is_two_with_one_row():
    x, kernel, bias = arrays("conv1d", 2, (9,), (3,))
    one = md.conv1d(x, kernel, bias, stride=2, padding=(1, 2))
    two = md.conv2d(x[:, None], kernel[None], bias, stride=(1, 2), padding=(0, (1, 2)))
    np.testing.assert_allclose(one, two[:, 0], rtol=1e-12)


def test_single_precision_stays():
    for op in OPS:
        axes = int(op[4])
        inputs = arrays(op, 2, (6, 6)[:axes], (3, 3)[:axes], dtype=np.float32)
        found, _ = both(op, inputs, stride=2, activation="relu")
        assert {a.dtype for a in found} == {np.dtype(np.float32)}


def test_unneeded_gradients_cost_nothing(monkeypatch):
    inputs = [md.tensor(a) for a in arrays("conv2d", 2, (6, 6), (3, 3))]
    inputs[1].requires_grad = True
    out = md.conv2d(*inputs, activation="relu")
    monkeypatch.setattr(windows, "_scatter", None)
    monkeypatch.setattr(windows, "transpose", None)
    md.grad(out.sum(), [inputs[1]])


# --- Derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", sorted(OPS))
@pytest.mark.parametrize("stride", [1, 2])
def test_third_derivatives(op, stride):
    """The first two derivatives of a gradient penalty."""
    axes = int(op[4])
    x, kernel, _ = arrays(op, 1, (4, 3)[:axes], (3, 2)[:axes], 1, 1, 2)

    def penalty(x, kernel):
        y = md.tanh(OPS[op][0](x, kernel, stride=stride, padding="same"))
        (slope,) = md.grad(y.sum(), [x], create_graph=True)
        return (slope * slope).sum()

    check_gradients(penalty, x, kernel, directions=1)


@pytest.mark.parametrize("axes", [1, 2])
def test_transposes_are_adjoint(axes, device):
    """<conv(x), y> = <x, conv_transpose(y)>, for every length of x that gives y's."""
    forward, back = (
        (md.conv1d, md.conv1d_transpose) if axes == 1 else (md.conv2d, md.conv2d_transpose)
    )
    for stride, padding, dilation, groups in itertools.product(
        (1, 2, 3), ("valid", "same", 1), (1, 2), (1, 2)
    ):
        for length in (6, 7, 8):
            sides = (length, length + 1)[:axes]
            x, kernel, _ = arrays("conv", 2, sides, (3, 2)[:axes], groups)
            x, kernel = (md.backend.to_device(a, device) for a in (x, kernel))
            options = {
                "stride": stride, "padding": padding, "dilation": dilation, "groups": groups
            }  # fmt: skip
            out = forward(x, kernel, **options)
            y = md.backend.to_device(normal(*out.shape, seed=3), device)
            least = back(y, kernel, output_padding=0, **options).shape[1:-1]
            more = tuple(n - m for n, m in zip(sides, least, strict=True))
            other = back(y, kernel, output_padding=more[0] if axes == 1 else more, **options)
            assert other.shape == x.shape
            np.testing.assert_allclose(float((out * y).sum()), float((x * other).sum()))


# --- PyTorch --------------------------------------------------------------------------------------


def turned(a):
    """(batch, ..., channels) as (batch, channels, ...)."""
    return a.movedim(-1, 1)


def assert_torchs(op, inputs, ours, theirs):
    """Output and all gradients, to 1e-5 in float32."""
    torch = pytest.importorskip("torch")
    tensors = [md.tensor(a, requires_grad=True) for a in inputs]
    twins = [torch.tensor(a, requires_grad=True) for a in inputs]
    out = OPS[op][0](*tensors, **ours)
    x, kernel, bias = twins
    axes = kernel.ndim - 2
    weight = kernel.permute(axes + 1, axes, *range(axes))
    function = getattr(torch.nn.functional, f"conv{'_transpose' if 'tr' in op else ''}{axes}d")
    other = function(turned(x), weight, bias, **theirs).movedim(1, -1)
    cotangent = normal(*out.shape, seed=3, dtype=np.float32)
    other.backward(torch.tensor(cotangent))
    found = [out, *md.grad(out, tensors, md.tensor(cotangent))]
    for one, twin in zip(found, [other.detach(), *(t.grad for t in twins)], strict=True):
        assert one.shape == tuple(twin.shape)
        assert np.abs(one.numpy() - twin.numpy()).max() <= 1e-5 * twin.abs().max() + 1e-6


@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize("padding", [0, 1, (2, 3)])
@pytest.mark.parametrize("dilation", [1, (2, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv2d_is_torchs(stride, padding, dilation, groups):
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    inputs = arrays("conv2d", 3, (9, 8), (3, 2), groups, dtype=np.float32)
    assert_torchs("conv2d", inputs, options, options)


@pytest.mark.parametrize("op", ["conv1d_transpose", "conv2d_transpose"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_transposes_are_torchs(op, stride, padding, dilation, groups):
    axes = int(op[4])
    inputs = arrays(op, 2, (5, 4)[:axes], (3, 4)[:axes], groups, dtype=np.float32)
    for more in {0, stride - 1}:
        options = {
            "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
            "output_padding": more,
        }  # fmt: skip
        assert_torchs(op, inputs, options, options)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even")
@pytest.mark.parametrize("sizes", [(3, 3), (1, 4), (2, 5)])
def test_same_padding_is_torchs_where_it_has_it(sizes):
    inputs = arrays("conv2d", 2, (7, 6), sizes, dtype=np.float32)
    options = {"padding": "same", "dilation": (1, 2)}
    assert_torchs("conv2d", inputs, options, options)


@pytest.mark.parametrize(
    ("size", "stride", "padding", "length"),
    [(3, 2, "same", 10), (3, 2, "valid", 11), (5, 1, "same", 5), (2, 3, "valid", 15),
     (4, 2, "same", 10), (4, 2, 1, 10), (1, 2, 0, 9)],
)  # fmt: skip
def test_lengths_of_transposes(size, stride, padding, length):
    x, kernel = normal(1, 5, 2), normal(size, 3, 2)
    assert md.conv1d_transpose(x, kernel, stride=stride, padding=padding).shape == (1, length, 3)


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "shapes", "options", "words"),
    [
        ("conv2d", ((5, 5, 2), (3, 3, 2, 4)), {}, r"x: expected \(batch, height, width"),
        ("conv2d", ((1, 5, 5, 2), (3, 2, 4)), {}, r"kernel: expected \(height, width"),
        ("conv2d", ((1, 5, 5, 2), (3, 0, 2, 4)), {}, r"kernel: expected \(height, width"),
        (
            "conv2d",
            ((3, 5, 5, 8), (3, 3, 4, 16)),
            {},
            r"kernel: expected shape \(3, 3, 8, 16\), got \(3, 3, 4, 16\); make kernel.shape\[2\]",
        ),
        ("conv2d", ((1, 5, 5, 3), (3, 3, 1, 4)), {"groups": 2}, "groups: expected a divisor"),
        ("conv2d", ((1, 5, 5, 2), (3, 3, 2, 4), (2,)), {}, r"bias: expected shape \(4,\)"),
        ("conv2d", ((1, 5, 5, 2), (3, 3, 2, 4)), {"stride": 0}, "stride: expected 1 or more"),
        ("conv2d", ((1, 5, 5, 2), (3, 3, 2, 4)), {"stride": (1, 2, 3)}, "stride: expected a num"),
        ("conv2d", ((1, 5, 2, 2), (3, 3, 2, 4)), {}, "x: expected at least 3 columns"),
        ("conv2d", ((1, 2, 5, 2), (3, 3, 2, 4)), {}, "x: expected at least 3 rows"),
        ("conv2d", ((1, 5, 5, 2), (3, 3, 2, 4)), {"padding": "causal"}, "padding: .* got 'causal'"),
        ("conv2d", ((1, 5, 5, 2), (3, 3, 2, 4)), {"padding": (1, 1, 1)}, "padding: expected .n, m"),
        ("conv2d", ((1, 5, 5, 2), (3, 3, 2, 4)), {"activation": "tanh"}, "activation: expected"),
        (
            "conv2d_transpose",
            ((1, 5, 5, 2), (3, 3, 4, 3)),
            {},
            r"kernel: expected shape \(3, 3, 4, 2\), got \(3, 3, 4, 3\); make kernel.shape\[3\]",
        ),
        ("conv2d_transpose", ((1, 5, 5, 2), (3, 3, 4, 2), (2,)), {}, r"bias: expected shape \(4,"),
        ("conv1d_transpose", ((1, 5, 2), (3, 4, 2)), {"groups": 3}, "groups: expected a divisor"),
        (
            "conv1d_transpose",
            ((1, 5, 2), (3, 4, 2)),
            {"stride": 2, "output_padding": 2},
            "output_padding: expected less than the stride, 2, got 2",
        ),
        ("conv1d_transpose", ((1, 1, 2), (3, 4, 2)), {"padding": 2}, "padding: expected less than"),
        ("conv1d_transpose", ((5, 2), (3, 4, 2)), {}, "x: expected .batch, time, channels."),
    ],
)  # fmt: skip
def test_errors_name_the_argument_and_the_mend(op, shapes, options, words):
    with pytest.raises(ValueError, match=f"^{op}: {words}"):
        OPS[op][0](*(md.tensor(normal(*shape)) for shape in shapes), **options)


def test_they_are_public():
    assert {"conv2d", "conv1d_transpose", "conv2d_transpose"} <= set(ops.__all__)


def test_mixed_numbers_become_what_all_of_them_fit_in():
    whole = np.ones((1, 3, 3, 1), int), np.ones((2, 2, 1, 1), int)
    assert md.conv2d(*whole, np.array([0.5])).tolist() == [[[[4.5]] * 2] * 2]
    x, kernel = np.ones((1, 3, 3, 1), np.float32), np.ones((2, 2, 1, 1), np.float32)
    assert md.conv2d(x, kernel, np.zeros(1)).dtype == np.float64
    wide = np.random.default_rng(0).standard_normal((4, 14, 14, 32), np.float32)
    half = np.random.default_rng(1).standard_normal((3, 3, 32, 64)).astype(np.float16)
    same = md.conv2d(wide, half.astype(np.float32))
    np.testing.assert_array_equal(md.conv2d(wide, half), same)


@pytest.mark.parametrize(
    ("op", "shape", "options", "error", "message"),
    [
        (md.conv1d, (1, 4, 1), {"padding": (1, 2, 3)}, ShapeError, r"n or \(before, after\)"),
        (md.conv2d, (1, 4, 4, 1), {"padding": (1, (1, 2, 3))}, ShapeError, "along an axis"),
        (md.conv2d, (1, 4, 4, 1), {"padding": ("causal", 1)}, ValueError, "got 'causal'"),
        (md.conv1d_transpose, (1, 4, 1), {"padding": "causal"}, ValueError, "got 'causal'"),
        (md.conv2d, (1, 4, 4, 1), {"padding": np.ones(3)}, DtypeError, "expected an integer"),
        (md.conv2d, (1, 4, 4, 1), {"stride": -1}, ShapeError, "expected 1 or more, got -1"),
        (md.conv2d, (1, 4, 4, 1), {"groups": 1.0}, DtypeError, "groups: expected an integer"),
    ],
)
def test_options_that_are_none(op, shape, options, error, message):
    kernel = np.ones((*(2,) * (len(shape) - 2), 1, 1))
    with pytest.raises(error, match=message):
        op(np.ones(shape), kernel, **options)


def test_layers_without_filters_are_refused():
    for make in (
        lambda: md.layers.Conv2D(0, 3),
        lambda: md.layers.Conv2D(-2, 3),
        lambda: md.layers.DepthwiseConv2D(3, depth_multiplier=0),
    ):
        with pytest.raises(ShapeError, match="expected 1 or more"):
            make()
