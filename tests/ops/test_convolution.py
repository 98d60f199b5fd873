import itertools

import numpy as np
import pytest

import minidl as md
from minidl import ops
from minidl.errors import ShapeError
from minidl.ops import convolution, windows
from minidl.ops.convolution import conv1d, convolution_definition


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def arrays(batch, time, size, groups, channels=2, filters=3, dtype=np.float64):
    return (
        normal(batch, time, groups * channels, dtype=dtype),
        normal(size, channels, groups * filters, seed=1, dtype=dtype),
        normal(groups * filters, seed=2, dtype=dtype),
    )


def both(inputs, **options):
    """Output and gradients of the op and of its definition, for one random cotangent."""
    results = []
    for function in (conv1d, convolution_definition):
        tensors = [md.tensor(a, requires_grad=True) for a in inputs]
        out = function(*tensors, **options)
        cotangent = md.tensor(normal(*out.shape, seed=3, dtype=inputs[0].dtype))
        results.append([out, *md.grad(out, tensors, cotangent)])
    return results


GEOMETRIES = [
    {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    for stride, padding, dilation, groups in itertools.product(
        (1, 2, 3), ("valid", "same", "causal", 1, (0, 3), (7, 5)), (1, 2), (1, 2)
    )
]


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: "-".join(map(str, g.values())))
def test_op_is_its_definition(geometry, activation):
    for size, time in ((1, 5), (3, 8), (4, 7)):
        inputs = arrays(3, time, size, geometry["groups"])
        fast, plain = both(inputs, activation=activation, **geometry)
        for one, other in zip(fast, plain, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 2, 4])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_op_is_torchs(stride, padding, dilation, groups):
    torch = pytest.importorskip("torch")
    x, kernel, bias = arrays(3, 9, 3, groups)
    tensors = [md.tensor(a, requires_grad=True) for a in (x, kernel, bias)]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    out = conv1d(*tensors, activation="relu", **options)
    cotangent = normal(*out.shape, seed=3)
    found = md.grad(out, tensors, md.tensor(cotangent))
    twins = [torch.tensor(a, requires_grad=True) for a in (x, kernel, bias)]
    inputs = (twins[0].transpose(1, 2), twins[1].permute(2, 1, 0), twins[2])
    other = torch.relu(torch.nn.functional.conv1d(*inputs, **options)).transpose(1, 2)
    np.testing.assert_allclose(out.numpy(), other.detach().numpy(), rtol=1e-11, atol=1e-12)
    other.backward(torch.tensor(cotangent))
    for gradient, twin in zip(found, twins, strict=True):
        np.testing.assert_allclose(gradient.numpy(), twin.grad.numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even")
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_same_padding_is_torchs_where_it_has_it(size, dilation):
    torch = pytest.importorskip("torch")
    x, kernel, bias = arrays(2, 7, size, 1)
    out = conv1d(x, kernel, bias, padding="same", dilation=dilation)
    turned = [torch.tensor(a) for a in (x.swapaxes(1, 2), kernel.transpose(2, 1, 0), bias)]
    other = torch.nn.functional.conv1d(*turned, padding="same", dilation=dilation)
    np.testing.assert_allclose(out, other.numpy().swapaxes(1, 2), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("time", "size", "stride", "widths"),
    [(5, 3, 1, (1, 1)), (5, 2, 1, (0, 1)), (5, 4, 1, (1, 2)), (6, 3, 2, (0, 1)), (7, 2, 3, (0, 1)),
     (6, 1, 3, (0, 0))],
)  # fmt: skip
def test_same_padding_puts_the_odd_one_on_the_right(time, size, stride, widths):
    x, kernel, _ = arrays(2, time, size, 1)
    out = conv1d(x, kernel, stride=stride, padding="same")
    assert out.shape[1] == -(-time // stride)
    np.testing.assert_array_equal(out, conv1d(x, kernel, stride=stride, padding=widths))


def test_causal_padding_does_not_see_the_future():
    x, kernel, _ = arrays(1, 8, 3, 1)
    changed = x.copy()
    changed[:, 5:] += 1
    one, other = (conv1d(a, kernel, padding="causal", dilation=2) for a in (x, changed))
    assert one.shape[1] == 8
    np.testing.assert_array_equal(one[:, :5], other[:, :5])
    assert (one[:, 5:] != other[:, 5:]).all()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("block", [1, 700, 1 << 20])
def test_blocks_and_halves_do_not_matter(groups, stride, block, monkeypatch):
    inputs = arrays(7, 9, 3, groups)
    options = {"stride": stride, "padding": "same", "groups": groups, "activation": "relu"}
    whole, _ = both(inputs, **options)
    monkeypatch.setattr(windows, "BLOCK", block)
    monkeypatch.setattr(windows, "SPLIT", 1)
    calls = []
    in_two = windows.in_two
    monkeypatch.setattr(windows, "in_two", lambda *f: calls.append(f) or in_two(*f))
    for threads in (1, 2):
        with md.threads(threads):
            parts, _ = both(inputs, **options)
        for one, other in zip(parts, whole, strict=True):
            np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-12, atol=1e-12)
    assert len(calls) >= 4


def test_results_do_not_depend_on_threads():
    inputs = arrays(16, 40, 3, 1, channels=64, filters=64, dtype=np.float32)
    one, plain = both(inputs, padding="same", activation="relu")
    with md.threads(2):
        two, _ = both(inputs, padding="same", activation="relu")
    for a, b, c in zip(one, two, plain, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
        np.testing.assert_allclose(a.numpy(), c.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"groups": 2, "padding": (4, 1)}])
def test_strict_stand_in_gives_the_same(options):
    inputs = arrays(3, 8, 3, options.get("groups", 1))
    results = []
    for device in ("cpu", "strict"):
        tensors = [md.tensor(a, requires_grad=True, device=device) for a in inputs]
        out = conv1d(*tensors, activation="relu", **options)
        results.append([out, *md.grad((out * out).sum(), tensors)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("time", [0, 4])
@pytest.mark.parametrize(("channels", "filters"), [(0, 3), (2, 0), (2, 3)])
def test_empty_arrays(batch, time, channels, filters):
    inputs = arrays(batch, time, 3, 1, channels, filters)
    for stride in (1, 2):
        fast, plain = both(inputs, stride=stride, padding="same")
        for one, other in zip(fast, plain, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"padding": "same"}, {"stride": 2, "groups": 2}])
def test_a_gradient_penalty_is_that_of_the_definition(options):
    inputs = arrays(2, 6, 3, options.get("groups", 1))
    results = []
    for function in (conv1d, convolution_definition):
        tensors = [md.tensor(a, requires_grad=True) for a in inputs]
        out = function(*tensors, activation="relu", **options)
        slopes = md.grad((out * out).sum(), tensors, create_graph=True)
        penalty = sum((slope * slope).sum() for slope in slopes)
        results.append(md.grad(penalty, tensors))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-11, atol=1e-11)


def test_the_gradient_of_relu_at_0_is_0():
    tensors = [md.tensor(np.zeros(s), requires_grad=True) for s in ((1, 4, 2), (3, 2, 2), (2,))]
    for g in md.grad(conv1d(*tensors, activation="relu").sum(), tensors):
        assert not g.numpy().any()


def test_single_precision_stays_and_inputs_too():
    inputs = arrays(2, 6, 3, 1, dtype=np.float32)
    copies = [a.copy() for a in inputs]
    (out, *gradients), _ = both(inputs, padding="same", activation="relu")
    assert {a.dtype for a in (out, *gradients)} == {np.dtype(np.float32)}
    for array, copy in zip(inputs, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_unneeded_gradients_cost_nothing(monkeypatch):
    x, kernel, bias = (md.tensor(a) for a in arrays(2, 6, 3, 1))
    kernel.requires_grad = True

    def refuse(*args):
        raise AssertionError("computed the input's gradient")

    monkeypatch.setattr(convolution, "transpose", refuse)
    for activation in (None, "relu"):
        md.grad(conv1d(x, kernel, bias, activation=activation).sum(), [kernel])


@pytest.mark.parametrize(
    ("shapes", "options", "words"),
    [
        (((5, 2), (3, 2, 4)), {}, "x: expected .batch, time, channels."),
        (((1, 5, 2), (3, 2)), {}, "kernel: expected .size"),
        (((1, 5, 2), (0, 2, 4)), {}, "kernel: expected .size"),
        (
            ((3, 5, 8), (3, 4, 16)),
            {},
            r"kernel: expected shape \(3, 8, 16\), got \(3, 4, 16\); make",
        ),
        (((1, 5, 3), (3, 1, 4)), {"groups": 2}, "groups: expected a divisor"),
        (((1, 5, 2), (3, 1, 3)), {"groups": 2}, "groups: expected a divisor"),
        (((1, 5, 2), (3, 2, 4)), {"groups": 0}, "groups: expected a divisor"),
        (((1, 5, 2), (3, 2, 4), (2,)), {}, "bias: expected shape"),
        (((1, 5, 2), (3, 2, 4)), {"stride": 0}, "stride: expected 1 or more"),
        (((1, 5, 2), (3, 2, 4)), {"dilation": 3}, "x: expected at least 7 steps"),
        (((1, 5, 2), (3, 2, 4)), {"padding": -1}, "padding: expected 0 or more"),
        (((1, 5, 2), (3, 2, 4)), {"padding": "full"}, "padding: expected 'valid'"),
        (((1, 5, 2), (3, 2, 4)), {"activation": "tanh"}, "activation: expected None"),
    ],
)
def test_errors_name_the_argument_and_the_mend(shapes, options, words):
    with pytest.raises(ValueError, match=f"conv1d: {words}") as caught:
        conv1d(*(md.tensor(normal(*shape)) for shape in shapes), **options)
    named = {"padding": "full", "activation": "tanh"}
    expected = ShapeError if not options.items() & named.items() else ValueError
    assert isinstance(caught.value, expected)


def test_it_is_public():
    assert ops.conv1d is conv1d
