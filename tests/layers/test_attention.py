"""MultiHeadAttention: against PyTorch, gradients, masks, caches, patterns, errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.errors import BuildError, DtypeError, ShapeError
from minidl.functional.attention import attention
from minidl.layers import MultiHeadAttention
from minidl.testing import check_gradients, strict

PATTERNS = [("local", 2, None), ("atrous", None, 3), ("sparse", 1, 3)]


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def made(heads=2, key_dim=3, sizes=(5, 5, 5), **options):
    """A layer with random weights, biases too."""
    layer = MultiHeadAttention(heads, key_dim, input_size=sizes, **options)
    for i, p in enumerate(layer.parameters()):
        p.assign_(0.5 * normal(*p.shape, seed=i + 10))
    return layer


def lengths(*counts, time):
    return np.arange(time) < np.array(counts)[:, None]


def like_torch(layer, theirs):
    """Write the layer's weights into PyTorch's."""
    import torch

    names = ("query", "key", "value")
    with torch.no_grad():
        kernels = [getattr(layer, f"{n}_kernel").numpy().T for n in names]
        if theirs.in_proj_weight is not None:
            theirs.in_proj_weight.copy_(torch.tensor(np.concatenate(kernels)))
        else:
            for n, kernel in zip("qkv", kernels, strict=True):
                getattr(theirs, f"{n}_proj_weight").copy_(torch.tensor(kernel.copy()))
        biases = [getattr(layer, f"{n}_bias").numpy() for n in names]
        theirs.in_proj_bias.copy_(torch.tensor(np.concatenate(biases)))
        theirs.out_proj.weight.copy_(torch.tensor(layer.output_kernel.numpy().T.copy()))
        theirs.out_proj.bias.copy_(torch.tensor(layer.output_bias.numpy().copy()))


@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_it_is_torchs(cross, masked, causal):
    torch = pytest.importorskip("torch")
    size, inner = 8, 6 if cross else 8
    layer = made(2, 4, (size, inner, inner))
    options = {"kdim": inner, "vdim": inner} if cross else {}
    theirs = torch.nn.MultiheadAttention(size, 2, batch_first=True, **options)
    like_torch(layer, theirs)
    arrays = [normal(3, 7, size)] + [normal(3, 7, inner, seed=1)] * cross
    ours = [md.tensor(a, requires_grad=True) for a in arrays]
    twins = [torch.tensor(a, requires_grad=True) for a in arrays]
    mask = lengths(7, 4, 1, time=7) if masked else None
    out = layer(*ours, value_mask=mask, use_causal_mask=causal)
    later = torch.ones(7, 7, dtype=bool).triu(1) if causal else None
    padding = torch.tensor(~mask) if masked else None
    memory = twins[-1]
    expected, _ = theirs(twins[0], memory, memory, key_padding_mask=padding, attn_mask=later)
    cotangent = normal(*out.shape, seed=5)
    out.backward(md.tensor(cotangent))
    expected.backward(torch.tensor(cotangent))
    names = "query", "key", "value"
    kernels = np.concatenate([getattr(layer, f"{n}_kernel").grad.numpy().T.ravel() for n in names])
    weights = [theirs.in_proj_weight]
    if cross:
        weights = [getattr(theirs, f"{n}_proj_weight") for n in "qkv"]
    pairs = [
        (out.numpy(), expected.detach()),
        *((a.grad.numpy(), b.grad) for a, b in zip(ours, twins, strict=True)),
        (kernels, np.concatenate([w.grad.numpy().ravel() for w in weights])),
        (
            np.concatenate([getattr(layer, f"{n}_bias").grad.numpy() for n in names]),
            theirs.in_proj_bias.grad,
        ),
        (layer.output_kernel.grad.numpy().T, theirs.out_proj.weight.grad),
        (layer.output_bias.grad.numpy(), theirs.out_proj.bias.grad),
    ]
    for found, wanted in pairs:
        wanted = np.asarray(wanted)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * abs(wanted).max())


@given(data=st.data())
def test_gradients(data, device):
    """Self and cross, every mask, widths of all kinds; a row that sees nothing, a single step."""
    batch, time, source = 2, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    cross = data.draw(st.booleans())
    source = source if cross else time
    value_dim, output_dim = data.draw(st.sampled_from([(None, None), (2, 4)]))
    sizes = (3, 4, 4) if cross else (3, 3, 3)
    options = {"rotary": data.draw(st.booleans()), "use_bias": data.draw(st.booleans())}
    layer = made(2, 2, sizes, value_dim=value_dim, output_dim=output_dim, **options)
    inputs = [normal(batch, time, 3)] + [normal(batch, source, 4, seed=1)] * cross
    masks = {"use_causal_mask": data.draw(st.booleans())}
    if data.draw(st.booleans()):
        masks["value_mask"] = lengths(0, source, time=source)
    if data.draw(st.booleans()):
        masks["query_mask"] = lengths(time, time - 1, time=time)
    if data.draw(st.booleans()):
        masks["attention_mask"] = normal(batch, time, source, seed=2) > 0
    check_gradients(lambda *x: layer(*x, **masks), *inputs, parameters=layer, device=device)


@pytest.mark.parametrize(("pattern", "window", "stride"), PATTERNS)
def test_gradients_of_patterns(pattern, window, stride):
    layer = made(2, 2, (3, 3, 3), pattern=pattern, window=window, stride=stride)
    mask = lengths(0, 4, time=5)
    check_gradients(lambda x: layer(x, value_mask=mask), normal(2, 5, 3), parameters=layer)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize(("pattern", "window", "stride"), PATTERNS)
def test_patterns_are_full_attention_under_a_mask(pattern, window, stride, rotary):
    layer = made(key_dim=4, pattern=pattern, window=window, stride=stride, rotary=rotary)
    full = made(key_dim=4, rotary=rotary)
    x, mask = normal(2, 20, 5), lengths(20, 11, time=20)
    distance = np.abs(np.arange(20) - np.arange(20)[:, None])
    near = distance <= (-1 if window is None else window)
    far = distance % stride == 0 if stride else near
    pairs = np.broadcast_to(near | far, (2, 20, 20))
    found = layer(x, value_mask=mask, use_causal_mask=True)
    expected = full(x, value_mask=mask, attention_mask=pairs, use_causal_mask=True)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_by_hand():
    layer = made(heads=2, key_dim=3, value_dim=4, output_dim=6)
    x = normal(2, 5, 5)

    def heads(name):
        mapped = (
            x @ getattr(layer, f"{name}_kernel").numpy() + getattr(layer, f"{name}_bias").numpy()
        )
        return mapped.reshape(2, 5, 2, -1).transpose(0, 2, 1, 3)

    out = attention(heads("query"), heads("key"), heads("value"))
    out = out.transpose(0, 2, 1, 3).reshape(2, 5, 8)
    out = out @ layer.output_kernel.numpy() + layer.output_bias.numpy()
    np.testing.assert_allclose(layer(x).numpy(), out, rtol=1e-5, atol=1e-6)


def test_scores_are_the_probabilities():
    layer = made()
    x, mask = normal(2, 6, 5), lengths(6, 3, time=6)
    out, scores = layer(x, value_mask=mask, return_attention_scores=True)
    np.testing.assert_allclose(out.numpy(), layer(x, value_mask=mask).numpy(), rtol=1e-5)
    assert scores.shape == (2, 2, 6, 6) and not scores.numpy()[1, ..., 3:].any()
    np.testing.assert_allclose(scores.numpy().sum(axis=-1), 1, rtol=1e-6)


def test_masked_queries_give_zeros():
    layer = made()
    mask = lengths(6, 3, time=6)
    out = layer(normal(2, 6, 5), query_mask=mask, value_mask=mask).numpy()
    assert not out[1, 3:].any() and out[1, :3].all()


def test_padding_never_matters_and_a_batch_is_its_items(device):
    layer = made().to(device)
    x, mask = normal(2, 6, 5), lengths(6, 3, time=6)
    changed = x.copy()
    changed[1, 3:] = 50
    one, other = (layer(md.tensor(a, device=device), value_mask=mask).numpy() for a in (x, changed))
    np.testing.assert_allclose(one[1, :3], other[1, :3], rtol=1e-5, atol=1e-6)
    short = layer(md.tensor(x[1:, :3], device=device)).numpy()
    np.testing.assert_allclose(one[1:, :3], short, rtol=1e-5, atol=1e-6)


def test_attention_masks_may_differ_by_head():
    layer = made()
    x, mask = normal(2, 4, 5), normal(2, 2, 4, 4, seed=3) > -1
    _, scores = layer(x, attention_mask=mask, return_attention_scores=True)
    assert not scores.numpy()[~mask].any()


# --- Dropout --------------------------------------------------------------------------------------


def test_dropout_drops_probabilities_in_training_only():
    layer = made(dropout=0.4)
    x = normal(2, 6, 5)
    md.seed(3)
    one, other = layer(x).numpy(), layer(x).numpy()
    md.seed(3)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(layer(x).numpy(), one)
    layer.eval()
    np.testing.assert_array_equal(layer(x).numpy(), made()(x).numpy())


def test_dropout_keeps_the_mean():
    layer = made(dropout=0.5)
    x = np.repeat(normal(1, 6, 5), 3000, axis=0)
    mean = layer(x).numpy().mean(axis=0)
    np.testing.assert_allclose(mean, layer.eval()(x[:1]).numpy()[0], atol=0.08)


def test_gradients_with_dropout():
    layer = made(2, 2, (3, 3, 3), dropout=0.4)
    check_gradients(layer, normal(2, 4, 3))


# --- Caches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(1,) * 6, (3, 1, 2), (6,)])
@pytest.mark.parametrize("rotary", [False, True])
def test_a_cache_is_recomputation(steps, rotary, device):
    layer = made(key_dim=4, value_dim=2, rotary=rotary).to(device)
    x = md.tensor(normal(2, 6, 5), device=device)
    whole = layer(x, use_causal_mask=True).numpy()
    cache, start, parts = layer.empty_cache(2), 0, []
    for n in steps:
        part = x[:, start : start + n]
        before = cache.key.shape
        out, cache = layer(part, use_causal_mask=True, cache=cache)
        assert before[2] == start and cache.value.shape == (2, 2, start + n, 2)
        parts.append(out.numpy())
        start += n
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-6, atol=1e-6)


def test_an_older_cache_goes_on_being_good():
    layer, x = made(), normal(2, 4, 5)
    _, cache = layer(x, cache=layer.empty_cache(2))
    first, _ = layer(x[:, :1], cache=cache)
    layer(x[:, 1:2], cache=cache)
    np.testing.assert_array_equal(layer(x[:, :1], cache=cache)[0].numpy(), first.numpy())


def test_a_cache_with_a_mask():
    layer, x = made(), normal(2, 6, 5)
    mask = lengths(6, 4, time=6)
    _, cache = layer(x[:, :5], cache=layer.empty_cache(2))
    out, _ = layer(x[:, 5:], value_mask=mask, cache=cache)
    expected = layer(x, value_mask=mask, use_causal_mask=True).numpy()[:, 5:]
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_a_fixed_cache_is_the_memory():
    layer = made(sizes=(5, 4, 4))
    x, memory, mask = normal(2, 3, 5), normal(2, 6, 4), lengths(6, 2, time=6)
    cache = layer.fixed_cache(memory)
    out, same = layer(x, value_mask=mask, cache=cache)
    assert same is cache
    expected = layer(x, memory, value_mask=mask).numpy()
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_gradients_through_a_cache():
    layer = made(2, 2, (3, 3, 3))

    def two_steps(x):
        first, cache = layer(x[:, :2], use_causal_mask=True, cache=layer.empty_cache(2))
        second, _ = layer(x[:, 2:], use_causal_mask=True, cache=cache)
        return first.sum() + md.square(second).sum()

    check_gradients(two_steps, normal(2, 3, 3), parameters=layer, dtypes=False)


# --- The rest -------------------------------------------------------------------------------------


def test_it_builds_at_the_first_call():
    layer = MultiHeadAttention(2, 3)
    assert layer.unbuilt()
    with pytest.raises(BuildError):
        layer.empty_cache(1)
    assert layer(normal(2, 4, 5), normal(2, 6, 7), normal(2, 6, 8)).shape == (2, 4, 5)
    shapes = {name: p.shape for name, p in layer.named_parameters() if "kernel" in name}
    assert shapes == {
        "query_kernel": (5, 6),
        "key_kernel": (8, 6),
        "value_kernel": (7, 6),
        "output_kernel": (6, 5),
    }


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtypes(dtype):
    layer = made(dropout=0.2).astype(dtype)
    x = md.tensor(normal(2, 4, 5).astype(dtype), requires_grad=True)
    out = layer(x, value_mask=lengths(4, 2, time=4))
    out.sum().backward()
    assert {out.dtype, x.grad.dtype, layer.key_kernel.grad.dtype} == {np.dtype(dtype)}


def test_a_step_does_not_synchronise():
    layer = made(dropout=0.2).to("strict")
    x = md.tensor(normal(2, 4, 5), device="strict")
    mask = md.tensor(lengths(4, 2, time=4), device="strict")
    with strict.forbid_sync():
        out = layer(x, query_mask=mask, value_mask=mask, use_causal_mask=True)
        out.sum().backward()
        layer(x, x * 2.0, value_mask=mask)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"num_heads": 0}, ShapeError, "num_heads, key_dim, value_dim: expected 1 or more"),
        ({"rotary": True}, ShapeError, "key_dim: expected an even number for rotary"),
        ({"dropout": 1.0}, ValueError, "dropout: expected a number"),
        ({"pattern": "dilated"}, ValueError, "pattern: expected one of full, local"),
        ({"pattern": "local"}, ValueError, "pattern 'local' takes window, got none"),
        ({"pattern": "full", "stride": 2}, ValueError, "pattern 'full' takes neither"),
        ({"pattern": "local", "window": 2, "dropout": 0.1}, ValueError, "dropout: expected 0"),
    ],
)
def test_errors_of_options(options, error, words):
    with pytest.raises(error, match=f"MultiHeadAttention: {words}"):
        MultiHeadAttention(**{"num_heads": 2, "key_dim": 3, **options})


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"query": normal(4, 5)}, ShapeError, "query: expected .*batch, steps, inputs"),
        ({"value": normal(4, 5)}, ShapeError, "value: expected .*batch, steps, inputs"),
        ({"value_mask": np.ones((2, 4))}, DtypeError, "value_mask: expected booleans"),
        ({"value_mask": np.ones((2, 5), bool)}, ShapeError, "value_mask: expected shape"),
        ({"query_mask": np.ones((4,), bool)}, ShapeError, "query_mask: expected shape"),
        ({"attention_mask": np.ones((2, 4, 5), bool)}, ShapeError, "attention_mask: expected"),
        ({"cache": 3}, TypeError, "cache: expected empty_cache"),
    ],
)
def test_errors_of_calls(options, error, words):
    with pytest.raises(error, match=f"MultiHeadAttention: {words}"):
        made()(**{"query": normal(2, 4, 5), **options})


def test_patterns_refuse_what_they_cannot_do():
    layer = made(pattern="local", window=1)
    x = normal(2, 4, 5)
    for options in (
        {"value": x * 2},
        {"return_attention_scores": True},
        {"cache": made().empty_cache(2)},
    ):
        with pytest.raises(ValueError, match="use pattern 'full'"):
            layer(x, **options)
