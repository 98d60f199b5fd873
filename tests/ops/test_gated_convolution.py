"""gated_conv1d against its definition, PyTorch and itself. Gradients: test_registry too."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.errors import DtypeError, ShapeError
from minidl.testing import check_gradients

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def lengths_mask(time, *lengths):
    return np.arange(time) < np.array(lengths)[:, None]


@given(
    time=st.integers(1, 7),
    dilation=st.integers(1, 3),
    skip=st.booleans(),
    padding=st.sampled_from(["same", "causal"]),
    data=st.data(),
)
def test_gradients_to_second_order(time, dilation, skip, padding, data):
    lengths = data.draw(st.lists(st.integers(0, time), min_size=2, max_size=2))
    mask = lengths_mask(time, *lengths)
    gate_mask = rng.random((2, time, 3)) < 0.7 if data.draw(st.booleans()) else None
    x, kernel, bias = (rng.normal(size=s) for s in ((2, time, 3), (3, 3, 6), (6,)))

    def f(x, kernel, bias):
        return md.gated_conv1d(x, kernel, bias, mask, padding, dilation, skip, gate_mask, 0.3)

    check_gradients(f, x, kernel, bias)


LARGE = [(5, 61, 1), (5, 64, 4), (70, 20, 2)]  # uneven halves and blocks; time not a multiple


@pytest.mark.parametrize("batch, time, dilation", LARGE)
@pytest.mark.parametrize("skip", [True, False])
def test_fused_and_definition_at_size(batch, time, dilation, skip, device):
    channels = 64
    mask = lengths_mask(time, *rng.integers(0, time + 1, batch - 2), 0, time)
    gate_mask = rng.random((batch, time, channels)) < 0.7
    arrays = [normal(batch, time, channels), 0.1 * normal(3, channels, 2 * channels)]
    arrays.append(normal(2 * channels))
    weight = md.tensor(normal(batch, time, channels), device=device)
    masks = [md.tensor(m, device=device) for m in (mask, gate_mask)]

    def gradients(create_graph):
        leaves = [md.tensor(a, requires_grad=True, device=device) for a in arrays]
        with md.threads(2):
            out = md.gated_conv1d(*leaves, masks[0], "same", dilation, skip, masks[1], 0.3)
            found = md.grad(out, leaves, weight, create_graph=create_graph)
        return [out.numpy(), *(g.numpy() for g in found)]

    for a, b in zip(gradients(False), gradients(True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("batch, time, dilation", [(2, 9, 2), *LARGE])
def test_pytorch(batch, time, dilation):
    torch = pytest.importorskip("torch")
    channels = 64
    mask = lengths_mask(time, *rng.integers(0, time + 1, batch - 1), time)
    arrays = [normal(batch, time, channels), 0.1 * normal(3, channels, 2 * channels)]
    arrays.append(normal(2 * channels))
    weight = normal(batch, time, channels)
    ours = [md.tensor(a, requires_grad=True) for a in arrays]
    with md.threads(2):
        out = md.gated_conv1d(*ours, mask, dilation=dilation)
        found = [out, *md.grad(out, ours, md.tensor(weight))]
    x, kernel, bias = theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    x = x * torch.tensor(mask)[:, :, None]
    pair = torch.nn.functional.conv1d(
        x.mT, kernel.permute(2, 1, 0), bias, padding=dilation, dilation=dilation
    ).mT
    value, gate = pair[:, :, :channels], torch.sigmoid(pair[:, :, channels:])
    y = (x * (1 - gate) + value * gate) * torch.tensor(mask)[:, :, None]
    expected = [y.detach(), *torch.autograd.grad(y, theirs, torch.tensor(weight))]
    for a, b in zip(found, expected, strict=True):
        b = b.numpy()
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("channels", [4, 128])  # windows, Winograd
def test_padding_never_matters_and_the_batch_is_its_items(channels):
    time = 40
    mask = lengths_mask(time, 40, 17, 0)
    kernel, bias = 0.2 * normal(3, channels, 2 * channels), normal(2 * channels)
    clean, weight = normal(3, time, channels), normal(3, time, channels)
    dirty = np.where(mask[:, :, None], clean, np.float32(np.nan))
    whole = []
    for x in (clean, dirty):
        leaf = md.tensor(x, requires_grad=True)
        out = md.gated_conv1d(leaf, kernel, bias, mask, dilation=2)
        (g,) = md.grad(out, [leaf], md.tensor(weight))
        assert not out.numpy()[~mask].any() and not g.numpy()[~mask].any()
        whole.append((out.numpy(), g.numpy()))
    np.testing.assert_array_equal(whole[0], whole[1])
    alone = md.gated_conv1d(clean[1:2, :17], kernel, bias, dilation=2)
    np.testing.assert_allclose(whole[0][0][1, :17], alone[0], rtol=1e-5, atol=1e-5)


def test_blocks_and_threads_do_not_change_a_bit():
    arrays = [normal(40, 50, 64), 0.1 * normal(3, 64, 128), normal(128)]
    results = []
    for threads in (1, 2):
        with md.threads(threads):
            leaves = [md.tensor(a, requires_grad=True) for a in arrays]
            out = md.gated_conv1d(*leaves)
            results.append([out.numpy(), *(g.numpy() for g in md.grad(out.sum(), leaves))])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_dtype(dtype):
    arrays = [a.astype(dtype) for a in (normal(2, 5, 3), normal(3, 3, 6), normal(6))]
    leaves = [md.tensor(a, requires_grad=True) for a in arrays]
    out = md.gated_conv1d(*leaves)
    assert {out.dtype, *(g.dtype for g in md.grad(out.sum(), leaves))} == {np.dtype(dtype)}
    exact = md.gated_conv1d(*(a.astype(float) for a in arrays))
    np.testing.assert_allclose(out.numpy().astype(float), exact, atol=2e-2)


def test_far_scores_close_and_open_the_gate():
    x, kernel = np.ones((1, 1, 1), np.float32), np.zeros((1, 1, 2), np.float32)
    for score, expected in ((-1e4, 1.0), (1e4, 5.0)):
        with np.errstate(all="raise"):
            out = md.gated_conv1d(x, kernel, np.array([5.0, score], np.float32))
        assert out.item() == expected


def test_errors():
    x = np.ones((2, 5, 4))
    with pytest.raises(ShapeError, match=r"kernel: expected 2 \* 4 filters.*skip=False"):
        md.gated_conv1d(x, np.ones((3, 4, 6)))
    with pytest.raises(ShapeError, match="an even number of filters"):
        md.gated_conv1d(x, np.ones((3, 4, 5)), skip=False)
    with pytest.raises(ShapeError, match="gated_conv1d: x: expected"):
        md.gated_conv1d(x[0], np.ones((3, 4, 8)))
    with pytest.raises(ShapeError, match=r"mask: expected shape \(2, 5\), got \(5,\)"):
        md.gated_conv1d(x, np.ones((3, 4, 8)), mask=np.ones(5, bool))
    with pytest.raises(DtypeError, match="mask: expected booleans"):
        md.gated_conv1d(x, np.ones((3, 4, 8)), mask=np.ones((2, 5)))
    with pytest.raises(ValueError, match="gated_conv1d: rate: expected a number"):
        md.gated_conv1d(x, np.ones((3, 4, 8)), gate_mask=np.ones((2, 5, 4), bool), rate=1.0)
    with pytest.raises(ValueError, match="'same' or 'causal', got 'valid'"):
        md.gated_conv1d(x, np.ones((3, 4, 8)), padding="valid")
    with pytest.raises(ShapeError, match="dilation"):
        md.gated_conv1d(x, np.ones((3, 4, 8)), dilation=0)
