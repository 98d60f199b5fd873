"""Pooling in windows and of whole sequences and images, beside loops. PyTorch: ops/test_pooling."""

import numpy as np
import pytest

import minidl as md
from minidl import backend
from minidl.errors import DtypeError, ShapeError
from minidl.layers import (
    AveragePooling1D,
    AveragePooling2D,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalMaxPooling1D,
    GlobalMaxPooling2D,
    MaxPooling1D,
    MaxPooling2D,
)

rng = np.random.default_rng(0)
WINDOWS = {MaxPooling1D: np.max, AveragePooling1D: np.mean}
WHOLE = {GlobalMaxPooling1D: np.max, GlobalAveragePooling1D: np.mean}


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def windows(x, size, stride, padding):
    """What each output sees of one channel."""
    if padding == "valid":
        return [x[i : i + size] for i in range(0, len(x) - size + 1, stride)]
    steps = -(-len(x) // stride)
    left = max((steps - 1) * stride + size - len(x), 0) // 2
    starts = [i * stride - left for i in range(steps)]
    return [x[max(0, i) : i + size] for i in starts]


class TestWindows:
    @pytest.mark.parametrize("kind", WINDOWS)
    @pytest.mark.parametrize("padding", ["valid", "same"])
    @pytest.mark.parametrize("size, stride", [(2, None), (3, 1), (2, 3), (5, 2)])
    def test_against_a_loop(self, kind, padding, size, stride, device):
        x = normal(2, 7, 3)
        layer = kind(size, stride, padding)
        out = layer(md.tensor(x, device=device)).numpy()
        for b, c in np.ndindex(2, 3):
            seen = windows(x[b, :, c], size, stride or size, padding)
            np.testing.assert_allclose(out[b, :, c], [WINDOWS[kind](w) for w in seen], rtol=1e-6)

    def test_ties_share(self, device):
        x = md.tensor([[[1.0], [1.0], [0.0], [2.0]]], requires_grad=True, device=device)
        md.sum(MaxPooling1D(2)(x)).backward()
        assert x.grad.numpy().ravel().tolist() == [0.5, 0.5, 0, 1]
        x.grad = None
        md.sum(MaxPooling1D(3, 1)(x)).backward()
        assert x.grad.numpy().ravel().tolist() == [0.5, 0.5, 0, 1]

    def test_large_inputs_go_in_two_halves(self):
        x = normal(4, 300, 100)
        weights = normal(4, 149, 100)

        def run(x):
            x = md.tensor(x, requires_grad=True)
            out = MaxPooling1D(3, 2)(x)
            out.backward(md.tensor(weights[: len(out)]))
            return out.numpy(), x.grad.numpy()

        with md.threads(2):
            whole = run(x)
        for all_items, first in zip(whole, run(x[:1]), strict=True):
            np.testing.assert_array_equal(all_items[:1], first)

    def test_errors(self):
        with pytest.raises(ShapeError, match="at least 3 steps for a window of size 3, got 2"):
            MaxPooling1D(3)(normal(1, 2, 1))
        with pytest.raises(ShapeError, match=r"expected .batch, time, channels., got"):
            MaxPooling1D()(normal(4, 2))
        with pytest.raises(ValueError, match="'valid' or 'same', got 'full'"):
            AveragePooling1D(padding="full")(normal(1, 4, 1))
        with pytest.raises(ShapeError, match="stride: expected 1 or more"):
            AveragePooling1D(2, 0)(normal(1, 4, 1))

    def test_no_steps_and_no_items(self):
        for kind in WINDOWS:
            for shape in [(2, 0, 3), (0, 4, 3)]:
                x = md.tensor(np.zeros(shape, np.float32), requires_grad=True)
                out = kind(2)(x)
                assert out.shape == (shape[0], shape[1] // 2, 3)
                md.sum(out).backward()
                assert x.grad.shape == shape


class TestWhole:
    @pytest.mark.parametrize("kind", WHOLE)
    def test_against_a_loop(self, kind, device):
        x = normal(5, 6, 3)
        mask = np.arange(6) < np.array([6, 3, 1, 0, 5])[:, None]
        mask[4] = [True, False, True, True, False, True]  # gaps
        out = kind()(
            md.tensor(x, device=device), backend.to_device(mask, device)
        ).numpy()  # fmt: skip
        expected = [WHOLE[kind](x[b][mask[b]], axis=0) if mask[b].any() else 0 for b in range(5)]
        for got, row in zip(out, expected, strict=True):
            np.testing.assert_allclose(got, np.broadcast_to(row, 3), rtol=1e-5)
        np.testing.assert_allclose(kind()(x), WHOLE[kind](x, axis=1), rtol=1e-5)

    @pytest.mark.parametrize("kind", WHOLE)
    @pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30])
    def test_what_is_masked_does_not_matter(self, kind, junk, device):
        clean, mask = normal(3, 4, 2), np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]], bool)
        dirty = np.where(mask[:, :, None], clean, np.float32(junk))
        results = []
        for x in (clean, dirty):
            x = md.tensor(x, requires_grad=True, device=device)
            out = kind()(x, backend.to_device(mask, device))
            md.sum(out * out).backward()
            results.append((out.numpy(), x.grad.numpy()))
        for one, other in zip(*results, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
        assert (results[1][1][~mask] == 0).all()

    def test_steps_that_tie_share(self, device):
        x = md.tensor([[[1.0], [1.0], [1.0]]], requires_grad=True, device=device)
        mask = backend.to_device(np.array([[True, False, True]]), device)
        md.sum(GlobalMaxPooling1D()(x, mask)).backward()
        assert x.grad.numpy().ravel().tolist() == [0.5, 0, 0.5]

    def test_a_tie_beside_an_empty_row(self, device):
        """As many entries equal their maximum as there are results."""
        x = md.tensor([[[1.0], [1.0]], [[1.0], [2.0]]], requires_grad=True, device=device)
        mask = backend.to_device(np.array([[True, True], [False, False]]), device)
        md.sum(GlobalMaxPooling1D()(x, mask)).backward()
        assert x.grad.numpy().ravel().tolist() == [0.5, 0.5, 0, 0]

    @pytest.mark.parametrize("kind", WHOLE)
    def test_errors(self, kind):
        with pytest.raises(ShapeError, match=r"mask: expected shape \(2, 4\), got \(2, 3\)"):
            kind()(normal(2, 4, 1), np.ones((2, 3), bool))
        with pytest.raises(DtypeError, match=r"expected booleans .True = keep., got int64"):
            kind()(normal(2, 4, 1), np.ones((2, 4), np.int64))


class TestImages:
    @pytest.mark.parametrize("kind, reduce", [(MaxPooling2D, np.max), (AveragePooling2D, np.mean)])
    @pytest.mark.parametrize("padding", ["valid", "same"])
    @pytest.mark.parametrize("size, stride", [(2, None), ((3, 2), 1), ((1, 4), (2, 3))])
    def test_against_a_loop(self, kind, reduce, padding, size, stride, device):
        x = normal(2, 7, 6, 2)
        out = kind(size, stride, padding)(md.tensor(x, device=device)).numpy()
        (rows, columns), strides = np.broadcast_to(size, 2), np.broadcast_to(stride or size, 2)
        for b, c in np.ndindex(2, 2):
            seen = [  # the windows of rows, and in each those of columns
                windows(np.stack(part, 1), columns, strides[1], padding)
                for part in windows(x[b, :, :, c], rows, strides[0], padding)
            ]
            expected = [[reduce(w) for w in line] for line in seen]
            np.testing.assert_allclose(out[b, :, :, c], expected, rtol=1e-5, atol=1e-6)

    def test_of_the_whole(self, device):
        x = normal(3, 4, 5, 2)
        for kind, reduce in ((GlobalMaxPooling2D, np.max), (GlobalAveragePooling2D, np.mean)):
            out = kind()(md.tensor(x, device=device)).numpy()
            np.testing.assert_allclose(out, reduce(x, axis=(1, 2)), rtol=1e-5, atol=1e-6)
            kept = kind(keepdims=True)(md.tensor(x, device=device)).numpy()
            np.testing.assert_array_equal(kept[:, 0, 0], out)

    def test_ties_of_the_whole_share(self, device):
        x = md.tensor(np.ones((1, 2, 2, 1)), requires_grad=True, device=device)
        md.sum(GlobalMaxPooling2D()(x)).backward()
        assert x.grad.numpy().ravel().tolist() == [0.25] * 4

    def test_errors(self):
        with pytest.raises(ShapeError, match=r"GlobalMaxPooling2D: x: expected .batch, height, w"):
            GlobalMaxPooling2D()(normal(2, 3, 4))
