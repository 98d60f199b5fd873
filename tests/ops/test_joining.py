import numpy as np
import pytest

import minidl as md
from minidl.errors import ShapeError
from minidl.testing import check_gradients


def arange(*shape, dtype=np.float64):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


class TestConcatenate:
    @pytest.mark.parametrize("axis", [0, 1, -1, None])
    def test_as_numpy(self, axis):
        shapes = [(2, 3), (2, 3), (2, 3)]
        shapes[1] = {0: (0, 3), 1: (2, 1), -1: (2, 5), None: (4,)}[axis]
        arrays = [arange(*shape, dtype=np.float32) for shape in shapes]
        result = md.concatenate([md.tensor(a) for a in arrays], axis)
        np.testing.assert_array_equal(result.numpy(), np.concatenate(arrays, axis), strict=True)
        check_gradients(lambda *xs: md.concatenate(xs, axis), *map(np.float64, arrays))

    def test_constants_among_variables(self):
        x = md.tensor(arange(2), requires_grad=True)
        y = md.concatenate([np.ones(1), x, md.tensor(arange(3)), x])
        (g,) = md.grad(y, [x], [arange(8)])
        np.testing.assert_array_equal(g.numpy(), [1 + 6, 2 + 7])

    def test_integers_beside_float32(self):
        x = md.tensor(np.ones(2, np.float32))
        assert md.concatenate([x, np.arange(3)]).dtype == np.float32

    def test_one_array_is_copied(self):
        x = arange(3)
        assert not np.shares_memory(md.concatenate([x]), x)


class TestSplit:
    @pytest.mark.parametrize(
        "cuts, axis", [(3, 1), (1, 0), ([2], 1), ([1, 1, 4], -1), ([-2, 50], 1), ([], 0)]
    )
    def test_as_numpy(self, cuts, axis):
        x = arange(2, 6)
        parts = md.split(md.tensor(x), cuts, axis)
        expected = np.split(x, cuts, axis)
        assert len(parts) == len(expected)
        for part, wanted in zip(parts, expected, strict=True):
            np.testing.assert_array_equal(part.numpy(), wanted, strict=True)
        check_gradients(lambda x: md.split(x, cuts, axis), x)

    def test_parts_are_views(self):
        x = arange(2, 6)
        assert all(np.shares_memory(part, x) for part in md.split(x, 3, 1))

    def test_unused_parts_have_zero_gradient(self):
        x = md.tensor(arange(6), requires_grad=True)
        _, second, _ = md.split(x, 3)
        second.sum().backward()
        np.testing.assert_array_equal(x.grad.numpy(), [0, 0, 1, 1, 0, 0])


class TestStack:
    @pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
    def test_as_numpy_and_back(self, axis):
        arrays = [arange(2, 3) + 10 * i for i in range(4)]
        stacked = md.stack(arrays, axis)
        np.testing.assert_array_equal(stacked, np.stack(arrays, axis), strict=True)
        for part, array in zip(md.unstack(stacked, axis), arrays, strict=True):
            np.testing.assert_array_equal(part, array, strict=True)
            assert np.shares_memory(part, stacked)
        check_gradients(lambda *xs: md.stack(xs, axis), *arrays)
        check_gradients(lambda x: md.unstack(x, axis)[1::2], stacked)

    def test_scalars(self):
        x = md.tensor(2.0, requires_grad=True)
        y = md.stack([x, x * x])
        np.testing.assert_array_equal(y.numpy(), [2, 4])
        assert md.grad(y.sum(), [x])[0].item() == 5
        assert [part.shape for part in md.unstack(y)] == [(), ()]
        assert all(type(part) is np.ndarray for part in md.unstack(y.data))

    def test_nothing_to_unstack(self):
        assert md.unstack(md.tensor(arange(3, 0), requires_grad=True), 1) == ()


class TestPad:
    @pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "symmetric", "wrap"])
    @pytest.mark.parametrize("width", [2, (1, 0), ((0, 3), (2, 1)), 0, ((7, 5), (4, 6))])
    def test_as_numpy(self, mode, width):
        x = arange(3, 4, dtype=np.float32)
        result = md.pad(md.tensor(x), width, mode)
        np.testing.assert_array_equal(result.numpy(), np.pad(x, width, mode), strict=True)
        check_gradients(lambda x: md.pad(x, width, mode), np.float64(x))

    @pytest.mark.parametrize("mode", ["edge", "reflect", "symmetric", "wrap"])
    def test_one_entry(self, mode):
        np.testing.assert_array_equal(md.pad(np.ones(1), 2, mode), np.ones(5))

    def test_constant_values(self):
        x = arange(2, 2)
        result = md.pad(x, 1, constant_values=-np.inf)
        np.testing.assert_array_equal(result, np.pad(x, 1, constant_values=-np.inf))
        assert md.pad(np.zeros((0, 2)), 1).shape == (2, 4)
        assert md.pad(np.float64(3.0).reshape(()), 2) == 3.0


@pytest.mark.parametrize(
    "call, error, says",
    [
        (lambda x: md.concatenate([x, x[:, :2]]), ShapeError, r"concatenate: arrays: .*\(2, 2\)"),
        (lambda x: md.concatenate([]), ShapeError, "at least one"),
        (lambda x: md.concatenate([x], 2), ShapeError, "concatenate: axis"),
        (lambda x: md.concatenate([1.0 * x[0, 0]]), ShapeError, "0-d array has none"),
        (lambda x: md.stack([x, x[:1]]), ShapeError, r"stack: arrays: .*\(1, 3\)"),
        (lambda x: md.stack([]), ShapeError, "at least one"),
        (lambda x: md.split(x, 2, 1), ShapeError, "split: indices_or_sections: .*divisor of 3"),
        (lambda x: md.split(x, [2, 1], 1), ShapeError, "ascending"),
        (lambda x: md.pad(x, -1), ShapeError, "pad: pad_width: expected 0 or more"),
        (lambda x: md.pad(x, (1, 2, 3)), ShapeError, "pad: pad_width: expected a number"),
        (lambda x: md.pad(x[:0], 1, "edge"), ShapeError, "pad: mode: 'edge' needs entries"),
        (lambda x: md.pad(x, 1, "mean"), ValueError, "pad: mode: expected one of"),
    ],
)
def test_errors_name_op_and_argument(call, error, says):
    with pytest.raises(error, match=says):
        call(md.tensor(arange(2, 3)))


def test_numbers_among_stacked_scalars_keep_float32():
    x = md.tensor(2.0, requires_grad=True)
    y = md.stack([1.0, x * x, 3])
    assert y.dtype == np.float32 and y.tolist() == [1.0, 4.0, 3.0]
    assert md.grad(y.sum(), [x])[0].item() == 4.0
    with md.device("strict"):
        assert md.stack([md.tensor(1.0), 2.0]).device == "strict"
