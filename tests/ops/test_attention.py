"""The fused op against its definition: tiles, masks, biases, dropout, dtypes."""

import itertools

import numpy as np
import pytest

import minidl as md
from minidl.ops import attention
from minidl.ops.attention import attend, attend_packed, attention_definition

BATCH = (2, 3)


def normal(*shape, seed=0, size=1.0):
    return np.random.default_rng(seed).normal(size=shape) * size


def arrays(time, source, size=1.0):
    shapes = (time, 4), (source, 4), (source, 3)
    return [normal(*BATCH, *s, seed=i, size=size) for i, s in enumerate(shapes)]


def results(function, inputs, bias=None, mask=None, kept=None, device="cpu", **options):
    """Outputs and gradients for one random cotangent; the logarithms' is 0 where they are -inf."""
    options = {"causal": False, "scale": 0.5, "rate": 0.3, "block": None, **options}
    tensors = [md.tensor(a, requires_grad=True, device=device) for a in inputs]
    if bias is not None:
        bias = md.tensor(bias, requires_grad=True, device=device)
    mask, kept = (None if m is None else md.tensor(m, device=device) for m in (mask, kept))
    out, logs = function(*tensors, bias, mask, kept, *options.values())
    by_logs = np.where(np.isfinite(logs.numpy()), normal(*logs.shape, seed=8), 0)
    cotangents = [normal(*out.shape, seed=9), by_logs]
    cotangents = [md.tensor(c.astype(out.dtype), device=device) for c in cotangents]
    wanted = tensors if bias is None else [*tensors, bias]
    found = [out, logs, *md.grad([out, logs], wanted, cotangents)]
    return [x.numpy() for x in found]


def assert_same(found, expected, tolerance=1e-10):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def cases():
    """Every pair of options meets, roughly: a fixed choice of the product."""
    sizes = [(7, 5), (5, 7), (1, 1), (40, 33), (0, 3), (3, 0)]
    masks = [None, "source", "batch", "pairs", "all"]
    biases = [None, "pairs", "heads", "column"]
    product = list(
        itertools.product(sizes, masks, biases, (0, 1), (0, 1), (None, 2, 16), (1.0, 30.0))
    )
    chosen = np.random.default_rng(0).permutation(len(product))[:70]
    return [product[i] for i in chosen]


def drawn(time, source, mask, bias, dropout):
    rng = np.random.default_rng(1)
    masks = {
        "source": (1, 1, 1, source),
        "batch": (2, 1, 1, source),
        "pairs": (time, source),
        "all": (*BATCH, time, source),
    }
    biases = {"pairs": (time, source), "heads": (3, 1, source), "column": (2, 1, time, 1)}
    found = {}
    if mask:
        found["mask"] = rng.random(masks[mask]) < 0.6
    if bias:
        shape = biases[bias]
        found["bias"] = np.where(rng.random(shape) < 0.2, -np.inf, rng.normal(size=shape))
    if dropout:
        found["kept"] = rng.random((*BATCH, time, source)) < 0.7
    return found


@pytest.mark.parametrize(
    ("tile", "side"), [(20, 3), (60, 9), (130, 9), (200, 9), (1 << 18, 1 << 10)]
)
def test_op_is_its_definition(tile, side, device, monkeypatch):
    monkeypatch.setattr(attention, "TILE", tile)
    monkeypatch.setattr(attention, "SIDE", side)
    for (time, source), mask, bias, dropout, causal, block, size in cases():
        options = drawn(time, source, mask, bias, dropout)
        inputs = arrays(time, source, size)
        options |= {"causal": bool(causal), "block": block, "device": device}
        with np.errstate(all="raise", under="ignore"):
            found = results(attend, inputs, **options)
        assert_same(found, results(attention_definition, inputs, **options))


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_rows_that_see_nothing_are_zero_and_give_no_gradient(size, device):
    inputs = arrays(4, 5, size)
    mask = np.ones((4, 5), bool)
    mask[2] = False
    bias = np.zeros((4, 5))
    bias[1] = -np.inf
    out, logs, *gradients = results(attend, inputs, mask=mask, bias=bias, device=device)
    assert not out[:, :, 1:3].any() and (logs[:, :, 1:3] == -np.inf).all()
    assert out[:, :, [0, 3]].all() and all(np.isfinite(g).all() for g in gradients)
    assert not gradients[0][:, :, 1:3].any() and not gradients[3][1:3].any()


def test_halves_and_threads_do_not_matter(monkeypatch):
    inputs = arrays(9, 8)
    options = {"bias": normal(3, 9, 8, seed=5), "causal": True}
    whole = results(attend, inputs, **options)
    monkeypatch.setattr(attention, "TILE", 1)
    monkeypatch.setattr(attention, "SPLIT", 1)
    calls = []
    in_two = attention.in_two
    monkeypatch.setattr(attention, "in_two", lambda *f: calls.append(f) or in_two(*f))
    for threads in (1, 2):
        with md.threads(threads):
            assert_same(results(attend, inputs, **options), whole)
    assert len(calls) == 4


def test_batches_broadcast():
    query, key, value = arrays(4, 5)
    key, value = key[:1], value[:, :1]
    mask = normal(3, 1, 5) > 0
    found = results(attend, (query, key, value), mask=mask)
    assert_same(found, results(attention_definition, (query, key, value), mask=mask))


def test_packed_heads_are_its_definition(device):
    packed = normal(2, 5, 3 * (4 + 4 + 2))
    mask, kept = normal(2, 1, 1, 5) > 0, normal(2, 3, 5, 5) > -1
    found = []
    for function in (attend_packed, attend_packed.definition):
        x = md.tensor(packed, requires_grad=True, device=device)
        out = function(
            x, md.tensor(mask, device=device), md.tensor(kept, device=device), 3, 4, True, 0.5, 0.2
        )
        g = md.tensor(normal(*out.shape, seed=3), device=device)
        found.append([out.numpy(), md.grad(out, [x], g)[0].numpy()])
    assert found[0][0].shape == (2, 5, 6)
    assert_same(*found)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_narrow_dtypes_stay(dtype, device):
    inputs = [a.astype(dtype) for a in arrays(6, 5)]
    out, _, *gradients = results(attend, inputs, device=device)
    assert {x.dtype for x in (out, *gradients)} == {np.dtype(dtype)}
    expected = results(attention_definition, [a.astype("float64") for a in inputs], device=device)
    tolerance = {"float16": 1e-2, "float32": 1e-5}[dtype]
    assert_same((out, *gradients), (expected[0], *expected[2:]), tolerance)


def test_the_second_derivative_takes_the_definition(device):
    inputs = arrays(3, 4)
    mask = np.array([True, True, False, True])
    both = []
    for function in (attend, attention_definition):
        tensors = [md.tensor(a, requires_grad=True, device=device) for a in inputs]
        out = function(*tensors, None, md.tensor(mask, device=device), None, True, 0.5, 0.0, None)
        slopes = md.grad(md.square(out[0]).sum(), tensors, create_graph=True)
        penalty = sum(md.square(slope).sum() for slope in slopes)
        both.append([x.numpy() for x in (*slopes, *md.grad(penalty, tensors))])
    assert_same(*both)


def test_what_is_kept_is_linear_in_the_length():
    tensors = [md.tensor(normal(1, 100, 4), requires_grad=True) for _ in range(3)]
    out, _ = attend(*tensors, None, None, None, False, 0.5, 0.0, None)
    node = out._node.parents[0]
    arrays = [x for v in node.saved for x in (v if isinstance(v, tuple) else (v,))]
    kept = sum(x.size for x in arrays if isinstance(x, (np.ndarray, md.Tensor)))
    assert kept == 3 * 400 + 400 + 100  # the arguments, the result and the logarithms


def test_unneeded_gradients_cost_nothing(monkeypatch):
    query, key, value = (md.tensor(a) for a in arrays(4, 5))
    query.requires_grad = True
    products = []
    add = attention._Tiles.add
    monkeypatch.setattr(attention._Tiles, "add", lambda *args: products.append(args) or add(*args))
    out, _ = attend(query, key, value, None, None, None, False, 0.5, 0.0, None)
    md.grad(out.sum(), [query])
    assert len(products) == 1


def test_one_sequence_in_tiles_too_large_for_one(monkeypatch):
    query, key, value = (normal(20, 4, seed=i) for i in range(3))
    inputs = query, np.tile(key, (2, 1)), np.tile(value, (2, 1))
    options = {"causal": False, "scale": 0.5, "rate": 0.0, "block": None}
    expected = attention_definition(*inputs, **options)
    monkeypatch.setattr(attention, "TILE", 64)
    for found, right in zip(attend(*inputs, None, None, None, *options.values()), expected):
        np.testing.assert_allclose(found, right)


def test_integers_are_taken_as_floats():
    whole = np.random.default_rng(0).integers(-3, 4, (3, 5, 4))
    found = md.functional.attention.attention(whole, whole, whole)
    assert found.dtype.kind == "f"
    exact = md.functional.attention.attention(*[whole.astype(np.float32)] * 3)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)
    packed = attend_packed(np.tile(whole, 3), None, None, 1, 4, False, 0.5, 0.0)
    np.testing.assert_allclose(packed, exact, rtol=1e-5, atol=1e-6)
