"""Attention and its patterns: against PyTorch, against full attention under a mask, identities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.errors import DtypeError, ShapeError
from minidl.functional.attention import (
    atrous_attention,
    attention,
    attention_weights,
    blockwise_attention,
    local_attention,
    rotary,
    sinusoidal_positions,
    sparse_attention,
)
from minidl.testing import check_gradients


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def three(*leading, time=5, source=6, dtype=np.float64):
    shapes = (*leading, time, 4), (*leading, source, 4), (*leading, source, 3)
    return [normal(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


def with_gradients(function, inputs, *args, device="cpu", **options):
    """The result and the gradients by `inputs`, for one random cotangent."""
    tensors = [md.tensor(a, requires_grad=True, device=device) for a in inputs]
    out = function(*tensors, *args, **options)
    cotangent = md.tensor(normal(*out.shape, seed=7).astype(out.dtype), device=device)
    return [x.numpy() for x in (out, *md.grad(out, tensors, cotangent))]


def assert_same(found, expected, tolerance=1e-10):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", ["", "mask", "bias", "causal", "scale"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_attention_is_torchs(options, dtype):
    torch = pytest.importorskip("torch")
    inputs = three(2, 3, time=6, dtype=dtype)
    ours, theirs = {}, {}
    if options == "mask":
        ours["mask"] = normal(2, 1, 6, 6, seed=5) > -0.5
        ours["mask"][..., 0] = True  # a row that sees nothing is nan there
        theirs["attn_mask"] = torch.tensor(ours["mask"])
    elif options == "bias":
        inputs.append(normal(3, 6, 6, seed=5, dtype=dtype))
    elif options:
        ours = {"causal": {"causal": True}, "scale": {"scale": 0.3}}[options]
        theirs = {"is_causal": True} if options == "causal" else ours
    twins = [torch.tensor(a, requires_grad=True) for a in inputs]
    if options == "bias":
        theirs["attn_mask"] = twins[3]
    expected = torch.nn.functional.scaled_dot_product_attention(*twins[:3], **theirs)
    expected.backward(torch.tensor(normal(*expected.shape, seed=7).astype(dtype)))

    def function(query, key, value, bias=None):
        return attention(query, key, value, bias=bias, **ours)

    tolerance = 1e-5 if dtype == np.float32 else 1e-10
    wanted = [expected.detach().numpy(), *(t.grad.numpy() for t in twins)]
    assert_same(with_gradients(function, inputs), wanted, tolerance)


@pytest.mark.parametrize("block", [1, 4, 6, 100])
@pytest.mark.parametrize("size", [1.0, 40.0])
def test_blockwise_attention_is_attention(block, size, device):
    inputs = [a * size for a in three(2, time=7, source=6)]
    mask, bias = normal(2, 1, 6) > -0.5, normal(7, 6, seed=4)
    mask[1] = False
    for options in ({"mask": mask, "bias": bias}, {"causal": True}, {}):
        options = {
            k: md.tensor(v, device=device) if k != "causal" else v for k, v in options.items()
        }
        expected = with_gradients(attention, inputs, device=device, **options)
        options["block_size"] = block
        assert_same(with_gradients(blockwise_attention, inputs, device=device, **options), expected)


def test_weights_are_what_attention_uses():
    query, key, value = three(2)
    options = {"mask": normal(2, 5, 6, seed=3) > 0, "bias": normal(5, 6, seed=4), "scale": 0.7}
    weights = attention_weights(query, key, **options)
    np.testing.assert_allclose(weights @ value, attention(query, key, value, **options))
    seen = options["mask"].any(axis=-1)
    np.testing.assert_allclose(weights.sum(axis=-1), seen)


# --- Patterns -------------------------------------------------------------------------------------

PATTERNS = [
    (local_attention, (0,)),
    (local_attention, (2,)),
    (local_attention, (40,)),
    (atrous_attention, (1,)),
    (atrous_attention, (3,)),
    (atrous_attention, (50,)),
    (sparse_attention, (0, 3)),
    (sparse_attention, (2, 3)),
    (sparse_attention, (4, 2)),
    (sparse_attention, (20, 7)),
]


def seen(function, reach, time):
    distance = np.abs(np.arange(time) - np.arange(time)[:, None])
    near = distance <= reach[0]
    far = distance % reach[-1] == 0 if function is not local_attention else None
    return {local_attention: near, atrous_attention: far}.get(
        function, near if far is None else near | far
    )


@pytest.mark.parametrize(("function", "reach"), PATTERNS)
@pytest.mark.parametrize("causal", [False, True])
def test_patterns_are_attention_under_a_mask(function, reach, causal, device):
    for time in (1, 5, 16, 37):
        inputs = three(2, 3, time=time, source=time)
        pairs = seen(function, reach, time)
        for mask in (None, normal(2, 1, 1, time, seed=5) > 0):
            full = md.tensor(pairs if mask is None else pairs & mask, device=device)
            own = None if mask is None else md.tensor(mask, device=device)
            expected = with_gradients(attention, inputs, full, causal, device=device)
            found = with_gradients(function, inputs, *reach, own, causal, device=device)
            assert_same(found, expected)


@pytest.mark.parametrize(("function", "reach"), PATTERNS[1::3])
def test_patterns_of_nothing(function, reach):
    assert function(*three(2, time=0, source=0), *reach).shape == (2, 0, 3)


@given(data=st.data())
@pytest.mark.parametrize("function", [local_attention, atrous_attention, sparse_attention])
def test_second_derivatives_of_patterns(function, data):
    time = data.draw(st.integers(1, 6))
    reach = [data.draw(st.integers(1, 3)) for _ in range(1 + (function is sparse_attention))]
    mask, causal = normal(2, 1, time, seed=data.draw(st.integers(0, 9))) > 0, time % 2 == 0
    mask[0] = False
    check_gradients(
        lambda *x: function(*x, *reach, mask, causal), *three(2, time=time, source=time)
    )


# --- Identities -----------------------------------------------------------------------------------

FUNCTIONS = [
    attention,
    lambda *x, **o: blockwise_attention(*x, block_size=3, **o),
    lambda *x, **o: local_attention(*x, 3, **o),
    lambda *x, **o: atrous_attention(*x, 2, **o),
    lambda *x, **o: sparse_attention(*x, 2, 3, **o),
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_causal_attention_cannot_see_the_future(function, device):
    inputs = three(2, time=11, source=11)
    changed = [a.copy() for a in inputs]
    for a in changed:
        a[:, 6:] += 1
    one, other = (
        function(*(md.tensor(a, device=device) for a in x), causal=True).numpy()
        for x in (inputs, changed)
    )
    np.testing.assert_allclose(one[:, :6], other[:, :6], rtol=1e-12)
    assert (one[:, 6:] != other[:, 6:]).any()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("rubbish", [1.0, 1e6])
def test_padding_never_matters(function, rubbish, device):
    inputs = three(2, time=9, source=9)
    mask = np.arange(9) < np.array([[6], [9]])
    changed = [a.copy() for a in inputs]
    for a in changed[1:]:
        a[0, 6:] += rubbish
    padded = md.tensor(mask[:, None], device=device)
    found = [with_gradients(function, x, mask=padded, device=device) for x in (inputs, changed)]
    assert_same(*found)
    assert not found[0][2][0, 6:].any() and not found[0][3][0, 6:].any()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_batch_is_its_items(function):
    inputs = three(3, 2, time=8, source=8)
    mask = normal(3, 1, 1, 8) > -1
    whole = function(*inputs, mask=mask)
    for i in range(3):
        part = function(*(a[i] for a in inputs), mask=mask[i])
        np.testing.assert_allclose(whole[i], part, rtol=1e-12)


def test_causal_with_fewer_queries_than_sources_ends_together():
    query, key, value = three(time=5, source=5)
    whole = attention(query, key, value, causal=True)
    np.testing.assert_allclose(attention(query[3:], key, value, causal=True), whole[3:])


def test_no_synchronisation(device):
    from minidl.testing import strict

    if device != "strict":
        pytest.skip("the stand-in counts")
    tensors = [md.tensor(a, requires_grad=True, device=device) for a in three(2, time=6, source=6)]
    mask = md.tensor(np.ones((2, 1, 6), bool), device=device)
    with strict.forbid_sync():
        for function in FUNCTIONS:
            md.grad(function(*tensors, mask=mask, causal=True).sum(), tensors)
        rotary(tensors[0])


# --- Positions ------------------------------------------------------------------------------------


def test_sinusoidal_positions():
    table = sinusoidal_positions(50, 6).numpy()
    assert table.dtype == np.float32
    for t, i in ((0, 0), (3, 1), (49, 2)):
        angle = t / 10000 ** (2 * i / 6)
        expected = [np.sin(angle), np.cos(angle)]
        np.testing.assert_allclose(table[t, 2 * i : 2 * i + 2], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(sinusoidal_positions(50, 5).numpy().shape, (50, 5))


def test_rotated_products_depend_on_distance_alone(device):
    q, k = (md.tensor(normal(1, 6, seed=i), device=device) for i in range(2))
    ends = [(0, 3), (5, 8), (1000, 1003)]
    products = [(rotary(q, offset=i) * rotary(k, offset=j)).sum().numpy() for i, j in ends]
    np.testing.assert_allclose(products, products[0], rtol=1e-10)
    assert abs(products[0] - (q * k).sum().numpy()) > 1e-3


def test_rotary_turns_pairs_and_keeps_lengths():
    x = normal(2, 7, 6)
    out = rotary(x)
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), np.linalg.norm(x, axis=-1))
    pair, angle = x[1, 4, 2:4], 4 / 10000 ** (2 / 6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    np.testing.assert_allclose(out[1, 4, 2:4], turn @ pair)
    np.testing.assert_allclose(rotary(x[:, 3:], offset=3), out[:, 3:])


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"query": normal(4)}, ShapeError, r"query: expected \(\.\.\., steps, size\)"),
        ({"key": normal(6, 3)}, ShapeError, "key: expected size 4"),
        ({"value": normal(5, 3)}, ShapeError, "value: expected 6 steps"),
        ({"key": normal(3, 6, 4), "query": normal(2, 5, 4)}, ShapeError, "query: expected leading"),
        ({"mask": np.ones((6, 5), bool)}, ShapeError, "mask: expected a shape that broadcasts"),
        ({"mask": np.ones((2, 5, 6), bool)}, ShapeError, "mask: expected a shape"),
        ({"mask": np.ones(6)}, DtypeError, "mask: expected booleans"),
        ({"bias": normal(7)}, ShapeError, "bias: expected a shape"),
        ({"dropout_mask": np.ones(5, bool)}, ShapeError, "dropout_mask: expected a shape"),
        ({"dropout_rate": 1.0}, ValueError, "dropout_rate: expected a number"),
    ],
)
def test_errors_name_the_argument(change, error, words):
    arguments = dict(zip(("query", "key", "value"), three(), strict=True)) | change
    with pytest.raises(error, match=f"attention: {words}"):
        attention(**arguments)


def test_errors_of_patterns():
    with pytest.raises(ShapeError, match="local_attention: key: expected 5 steps"):
        local_attention(*three(), 2)
    same = three(time=6)
    with pytest.raises(ShapeError, match=r"sparse_attention: mask: expected .*use attention"):
        sparse_attention(*same, 2, 2, np.ones((6, 6), bool))
    with pytest.raises(ShapeError, match="atrous_attention: stride: expected 1 or more"):
        atrous_attention(*same, 0)
    with pytest.raises(ShapeError, match="local_attention: window: expected 0 or more"):
        local_attention(*same, -1)
    with pytest.raises(ShapeError, match=r"rotary: x: expected .*even"):
        rotary(normal(3, 5))
    with pytest.raises(ShapeError, match="block_size: expected 1 or more"):
        blockwise_attention(*three(), block_size=0)


def test_reaches_beyond_the_sequence_cost_nothing():
    x = normal(9, 4)
    full = np.asarray(attention(x, x, x))
    np.testing.assert_allclose(local_attention(x, x, x, 10**9), full)
    np.testing.assert_allclose(atrous_attention(x, x, x, 10**9), x)
    np.testing.assert_allclose(sparse_attention(x, x, x, 10**9, 10**9), full)


def test_rotary_of_integers():
    whole = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_allclose(rotary(whole), rotary(whole.astype(np.float32)))
