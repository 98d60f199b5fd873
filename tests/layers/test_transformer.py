"""Transformer blocks: against PyTorch, gradients, masks, and decoding by caches."""

import numpy as np
import pytest

import minidl as md
from minidl.errors import ShapeError
from minidl.layers import TransformerDecoderBlock, TransformerEncoderBlock
from minidl.testing import check_gradients, strict


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomized(block):
    for i, p in enumerate(block.parameters()):
        p.assign_(0.4 * normal(*p.shape, seed=i + 5) + (1 if "gamma" in (p.name or "") else 0))
    return block


def encoder(**options):
    return randomized(TransformerEncoderBlock(6, 2, input_size=4, **options))


def decoder(**options):
    return randomized(TransformerDecoderBlock(6, 2, input_size=4, **options))


def load_torch(block, theirs):
    """Write a block's weights into PyTorch's encoder or decoder layer."""
    import torch

    def attention(ours, twin):
        names = "query", "key", "value"
        kernels = [getattr(ours, f"{n}_kernel").numpy().T for n in names]
        twin.in_proj_weight.copy_(torch.tensor(np.concatenate(kernels)))
        biases = [getattr(ours, f"{n}_bias").numpy() for n in names]
        twin.in_proj_bias.copy_(torch.tensor(np.concatenate(biases)))
        twin.out_proj.weight.copy_(torch.tensor(ours.output_kernel.numpy().T.copy()))
        twin.out_proj.bias.copy_(torch.tensor(ours.output_bias.numpy().copy()))

    def simple(twin, weight, bias):
        twin.weight.copy_(torch.tensor(weight.numpy().T.copy()))
        twin.bias.copy_(torch.tensor(bias.numpy().copy()))

    with torch.no_grad():
        attention(block.attention, theirs.self_attn)
        norms = [block.attention_norm]
        if hasattr(theirs, "multihead_attn"):
            attention(block.cross_attention, theirs.multihead_attn)
            norms.append(block.cross_attention_norm)
        for i, norm in enumerate([*norms, block.output_norm]):
            simple(getattr(theirs, f"norm{i + 1}"), norm.gamma, norm.beta)
        simple(theirs.linear1, block.intermediate.kernel, block.intermediate.bias)
        simple(theirs.linear2, block.output.kernel, block.output.bias)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_blocks_are_torchs(kind, first):
    torch = pytest.importorskip("torch")
    x, memory = normal(2, 5, 4), normal(2, 6, 4, seed=1)
    mask = np.arange(5) < np.array([[5], [3]])
    options = {"norm_first": first, "batch_first": True, "dropout": 0.0}
    a, b = md.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    padding = torch.tensor(~mask)
    if kind == "encoder":
        block, theirs = (
            encoder(normalize_first=first),
            torch.nn.TransformerEncoderLayer(4, 2, 6, **options),
        )
        load_torch(block, theirs)
        out, expected = block(a, mask), theirs(b, src_key_padding_mask=padding)
    else:
        block, theirs = (
            decoder(normalize_first=first),
            torch.nn.TransformerDecoderLayer(4, 2, 6, **options),
        )
        load_torch(block, theirs)
        later = torch.ones(5, 5, dtype=bool).triu(1)
        out = block(a, md.tensor(memory), mask=mask)
        expected = theirs(b, torch.tensor(memory), tgt_mask=later, tgt_key_padding_mask=padding)
    cotangent = normal(*out.shape, seed=3)
    out.backward(md.tensor(cotangent))
    expected.backward(torch.tensor(cotangent))
    np.testing.assert_allclose(out.numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"dropout": 0.3}, {"normalize_first": False}])
@pytest.mark.parametrize("time", [1, 4])
def test_gradients(options, time):
    mask = np.arange(time) < np.array([[0], [time]])
    x, memory = normal(2, time, 4), normal(2, 3, 4, seed=1)
    block = encoder(activation="tanh", attention_dropout=0.2, **options)
    check_gradients(lambda x: block(x, mask), x, parameters=block)
    block = decoder(activation="tanh", **options)
    check_gradients(lambda x, m: block(x, m, mask), x, memory, parameters=block)


@pytest.mark.parametrize("options", [{}, {"rotary": True}, {"pattern": "local", "window": 2}])
def test_padding_never_matters(options):
    block = encoder(**options)
    x, mask = normal(2, 6, 4), np.arange(6) < np.array([[6], [3]])
    changed = x.copy()
    changed[1, 3:] = 9
    one, other = (block(a, mask).numpy() for a in (x, changed))
    np.testing.assert_allclose(one[0], other[0])
    np.testing.assert_allclose(one[1, :3], other[1, :3], rtol=1e-5, atol=1e-6)


def test_a_decoder_cannot_see_the_future():
    block, x, memory = decoder(), normal(2, 6, 4), normal(2, 3, 4, seed=1)
    changed = x.copy()
    changed[:, 4:] += 1
    one, other = (block(a, memory).numpy() for a in (x, changed))
    np.testing.assert_allclose(one[:, :4], other[:, :4], rtol=1e-6, atol=1e-6)
    assert (one[:, 4:] != other[:, 4:]).any()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("cross", [True, False])
@pytest.mark.parametrize("rotary", [True, False])
def test_a_cache_is_recomputation(first, cross, rotary, device):
    block = decoder(normalize_first=first, cross_attention=cross, rotary=rotary).to(device)
    x = md.tensor(normal(2, 5, 4), device=device)
    memory = md.tensor(normal(2, 3, 4, seed=1), device=device) if cross else None
    seen = md.tensor(np.arange(3) < np.array([[3], [1]]), device=device) if cross else None
    whole = block(x, memory, memory_mask=seen).numpy()
    cache, parts = block.empty_cache(2, memory), []
    for start, end in ((0, 1), (1, 4), (4, 5)):
        out, cache = block(x[:, start:end], memory_mask=seen, cache=cache)
        parts.append(out.numpy())
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-6, atol=2e-6)


def test_a_memory_of_another_size():
    block = decoder(memory_size=7)
    assert block(normal(2, 3, 4), normal(2, 5, 7)).shape == (2, 3, 4)


def test_steps_do_not_synchronise():
    blocks = encoder(dropout=0.1).to("strict"), decoder(dropout=0.1).to("strict")
    x = md.tensor(normal(2, 3, 4), device="strict")
    with strict.forbid_sync():
        blocks[1](x, blocks[0](x)).sum().backward()


def test_errors():
    with pytest.raises(ShapeError, match="num_heads: expected a divisor of the input's size 5"):
        TransformerEncoderBlock(6, 2)(normal(1, 2, 5))
    with pytest.raises(ValueError, match="memory: expected the encoder's output, got None"):
        decoder()(normal(1, 2, 4))
    with pytest.raises(ValueError, match=r"memory: expected None, .*got shape"):
        decoder(cross_attention=False)(normal(1, 2, 4), normal(1, 2, 4))
