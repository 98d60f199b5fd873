import numpy as np
import pytest

import minidl as md
from minidl import backend
from minidl.errors import DeviceError, DtypeError, ShapeError
from minidl.ops import indexing
from minidl.testing import check_gradients
from minidl.testing.strict import forbid_sync

SHAPE = (3, 4, 5)
MASK = np.arange(60).reshape(SHAPE) % 7 < 3
INDICES = {
    "int": 1,
    "negative int": -1,
    "numpy int": np.int64(2),
    "0-d array": np.array(1),
    "several ints": (1, -2, 3),
    "slice": slice(1, None),
    "negative step": slice(None, None, -2),
    "empty slice": slice(2, 1),
    "slices and int": (slice(None), 2, slice(0, 4, 3)),
    "ellipsis": Ellipsis,
    "ellipsis first": (Ellipsis, 1),
    "ellipsis between": (1, Ellipsis, slice(2)),
    "newaxis": None,
    "newaxes": (None, 1, None, Ellipsis, None),
    "nothing": (),
    "full mask": MASK,
    "mask of rows": np.array([True, False, True]),
    "mask of two axes": MASK[:, :, 0],
    "mask of the last axis": (Ellipsis, np.array([True, False, False, True, True])),
    "mask of nothing": np.zeros(SHAPE, bool),
    "list mask": [True, False, True],
    "True": True,
    "False": False,
    "array": np.array([2, 0]),
    "array with repeats": np.array([1, 1, -2, 0, 1]),
    "list": [0, 2, 2],
    "empty list": [],
    "array of two axes": np.array([[0, 2], [2, 2]]),
    "array later": (slice(None), np.array([3, 3, 0])),
    "array last": (Ellipsis, np.array([[4], [4]])),
    "arrays": (np.array([0, 1, 0]), np.array([3, -1, 3])),
    "arrays that broadcast": (np.array([[0], [2]]), np.array([1, 1, 3])),
    "arrays for all axes": (np.array([0, 0]), np.array([1, 1]), np.array([-1, 4])),
    "arrays later": (slice(None), np.array([0, 0]), np.array([1, 1])),
    "arrays apart": (np.array([0, 0]), slice(None), np.array([1, 1])),
    "array and int": (np.array([0, 0, 2]), 1),
    "int and array apart": (1, slice(None), np.array([1, 1])),
    "array and slice": (np.array([2, 2]), slice(None, None, -1), 3),
    "array and newaxis": (None, np.array([2, 2])),
    "array and mask": (np.array([2, 2]), np.array([True, False, False, True])),
    "array and 0-d array": (np.array([2, 2]), np.array(1)),
    "int8 array": np.array([1, 1], np.int8),
    "unsigned array": np.array([1, 1], np.uint64),
    "tensor": md.tensor(np.array([1, 1])),
    "tensor mask": (slice(None), md.tensor(np.array([True, False, False, True]))),
    "tensor of no axis": md.tensor(np.array(2)),
}


def strict(array):
    return backend.to_device(array, "strict")


def bare(index):
    if isinstance(index, tuple):
        return tuple(map(bare, index))
    return index.numpy() if isinstance(index, md.Tensor) else index


def normal(*shape, dtype=np.float64):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def added_at(shape, index, values):
    """The derivative of x[index], by its definition."""
    out = np.zeros(shape)
    np.add.at(out, bare(index), values)
    return out


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
class TestEveryIndex:
    def test_as_numpy(self, index):
        x = normal(*SHAPE, dtype=np.float32)
        result = md.tensor(x)[index]
        np.testing.assert_array_equal(result.numpy(), x[bare(index)])
        assert result.shape == x[bare(index)].shape
        assert result.dtype == np.float32

    def test_gradients(self, index):
        x = md.tensor(normal(*SHAPE), requires_grad=True)
        y = x[index]
        g = 1 + normal(*y.shape)
        (found,) = md.grad(y, [x], [g])
        np.testing.assert_allclose(found.numpy(), added_at(SHAPE, index, g), rtol=1e-12)
        check_gradients(lambda x: x[index], normal(*SHAPE))

    def test_portable_adjoint_is_the_same(self, index):
        """The body for GPUs, on the stand-in, and NumPy's own with its fast paths."""
        x = normal(*SHAPE)
        entries = indexing._normal("getitem", x, index)
        g = normal(*x[entries].shape)
        found = indexing.getitem_adjoint(g, entries, SHAPE)
        moved = tuple(strict(e) if isinstance(e, np.ndarray) else e for e in entries)
        portable = indexing.getitem_adjoint(strict(g), moved, SHAPE)
        np.testing.assert_array_equal(found, backend.to_host(portable), strict=True)

    def test_scatter_add(self, index):
        x = normal(*SHAPE)
        values = 1 + normal(*x[bare(index)].shape)
        expected = x + added_at(SHAPE, index, values)
        np.testing.assert_allclose(md.scatter_add(x, index, values), expected, rtol=1e-12)
        check_gradients(lambda x, v: md.scatter_add(x, index, v), x, values)
        check_gradients(lambda x, v: md.scatter_add(x, index, v), x, normal())

    def test_index_put(self, index):
        x = normal(*SHAPE)
        values = normal(*x[bare(index)].shape)
        if added_at(SHAPE, index, 1).max() > 1:
            with pytest.raises(IndexError, match=r"index_put: index: .*twice"):
                md.index_put(x, index, values)
            return
        expected = x.copy()
        expected[bare(index)] = values
        np.testing.assert_array_equal(md.index_put(x, index, values), expected, strict=True)
        check_gradients(lambda x, v: md.index_put(x, index, v), x, values)
        check_gradients(lambda x, v: md.index_put(x, index, v), x, normal(1))


class TestGetitem:
    @pytest.mark.parametrize("index", [1, slice(None, None, -1), (None, 2), (1, 2, 3), Ellipsis])
    def test_basic_indexing_gives_views(self, index):
        x = normal(*SHAPE)
        assert np.shares_memory(md.getitem(x, index), x)

    @pytest.mark.parametrize("index", [[0, 1, 2], np.ones(SHAPE, bool), (slice(None), [0, 1])])
    def test_arrays_give_fresh_memory(self, index):
        x = normal(*SHAPE)
        assert not np.shares_memory(md.getitem(x, index), x)

    def test_changing_the_index_array_later_changes_nothing(self):
        x = md.tensor(normal(4), requires_grad=True)
        for index in (np.array([1, 1]), (np.array([1, 1]), None)):
            y = x[index]
            (index[0] if isinstance(index, tuple) else index)[:] = 3
            (g,) = md.grad(y.sum(), [x])
            np.testing.assert_array_equal(g.numpy(), [0, 2, 0, 0])

    def test_empty_arrays(self):
        x = np.zeros((0, 3))
        for index in (slice(None), np.zeros((0,), int), np.zeros((2, 0), int), (slice(None), 1)):
            check_gradients(lambda x, index=index: x[index], x)

    def test_iteration_and_unpacking(self):
        first, second = md.tensor([1.0, 2.0])
        assert (first.item(), second.item(), first.shape) == (1, 2, ())

    @pytest.mark.parametrize("index", [3, (0, 4), [0, -4], (slice(None), [5]), (0, 0, 0, 0)])
    def test_out_of_range(self, index):
        with pytest.raises(IndexError, match=r"(getitem|take): ind\w+: .*x has shape \(3, 4, 5\)"):
            md.tensor(normal(*SHAPE))[index]

    def test_wrong_mask(self):
        with pytest.raises(IndexError, match="getitem: index: boolean"):
            md.tensor(normal(3))[np.array([True, False])]

    @pytest.mark.parametrize("index", [np.array([1.0]), 1.0, md.tensor(1.0)])
    def test_floats_are_no_index(self, index):
        with pytest.raises(DtypeError, match="getitem: index: expected integers or booleans"):
            md.tensor(normal(3))[index]


class TestTake:
    @pytest.mark.parametrize("axis", [None, 0, 1, -1])
    @pytest.mark.parametrize(
        "indices", [2, [0, 0, -3], np.array([[1], [2]]), np.zeros((2, 0), int)]
    )
    def test_as_numpy(self, axis, indices):
        x = normal(*SHAPE)
        found = md.take(md.tensor(x), indices, axis)
        np.testing.assert_array_equal(found.numpy(), np.take(x, indices, axis))
        check_gradients(lambda x: md.take(x, indices, axis), x)

    def test_tensor_ids(self):
        weight, ids = normal(5, 2), md.tensor(np.array([4, 4]))
        np.testing.assert_array_equal(md.take(weight, ids, 0).numpy(), weight[[4, 4]])

    @pytest.mark.parametrize("shape", [(700, 3), (50, 90), (2, 600, 9)])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_sparse_product_agrees_with_add_at(self, shape, dtype):
        axis = len(shape) - 2
        generator = np.random.default_rng(1)
        ids = generator.integers(-shape[axis], shape[axis], (40, 50))
        g = generator.normal(size=shape[:axis] + ids.shape + shape[-1:]).astype(dtype)
        assert g.size >= indexing.SPARSE_FROM
        x = md.tensor(np.zeros(shape, dtype), requires_grad=True)
        (found,) = md.grad(md.take(x, ids, axis), [x], [g])
        expected = np.zeros(shape, dtype)
        np.add.at(expected, (slice(None),) * axis + (ids,), g)
        np.testing.assert_array_equal(found.numpy(), expected, strict=True)  # to the last bit

    @pytest.mark.parametrize("width", [1, 3])
    def test_float16_sums_in_single_precision(self, width):
        x = md.tensor(np.zeros((2, width), np.float16), requires_grad=True)
        (g,) = md.grad(md.take(x, np.zeros(3000, int), 0).sum(axis=0), [x], [np.ones(width)])
        assert g.dtype == np.float16
        np.testing.assert_array_equal(
            g.numpy(), [[3000] * width, [0] * width]
        )  # halves stop at 2048

    @pytest.mark.parametrize("device", ["cpu", "strict"])
    def test_tensor_ids_twice_differentiated(self, device):
        ids = md.tensor(np.array([2, 0, 2]), device=device)
        check_gradients(lambda x: md.take(x, ids, 0) ** 2, normal(3, 2), device=device)

    @pytest.mark.parametrize("indices", [3, [0, -4]])
    def test_out_of_range(self, indices):
        with pytest.raises(IndexError, match=r"take: indices: index .* axis 0 with size 3"):
            md.take(md.tensor(normal(3, 2)), indices, 0)

    def test_errors(self):
        x = md.tensor(normal(3, 2))
        with pytest.raises(DtypeError, match="take: indices: expected integers, got float64"):
            md.take(x, np.array([1.0]), 0)
        with pytest.raises(DtypeError, match="take: indices: expected integers, got bool"):
            md.take(x, np.array([True]), 0)
        with pytest.raises(ShapeError, match="take: axis"):
            md.take(x, [0], 2)


class TestDevices:
    def test_index_arrays_live_where_x_does(self):
        x = md.tensor(normal(3), device="strict")
        with pytest.raises(DeviceError, match="getitem: index: expected an array on strict"):
            x[np.array([0])]
        with pytest.raises(DeviceError, match="take: indices: expected an array on cpu"):
            md.take(normal(3), md.tensor(np.array([0]), device="strict"))
        np.testing.assert_array_equal(x[[0, 2]].numpy(), normal(3)[[0, 2]])  # lists are uploaded

    def test_gathers_and_their_gradients_do_not_synchronise(self):
        weight = md.tensor(normal(5, 4), requires_grad=True, device="strict")
        ids = md.tensor(np.array([[4, 0], [4, 4]]), device="strict")
        with forbid_sync():
            y = md.take(weight, ids, 0)
            y = md.pad(y[:, -1], 2, "reflect") + md.one_hot(ids[0, :1], 8)
            best, _ = md.topk(md.take_along_axis(y, md.argsort(y), -1), 3)
            best = md.scatter_add(best, (slice(None), ids[0, 1:]), 1.0)
            best.sum().backward()
        assert weight.grad.shape == (5, 4)


class TestTakeAlongAxis:
    @pytest.mark.parametrize("axis", [0, 1, -1])
    def test_as_numpy(self, axis):
        x = normal(*SHAPE)
        indices = np.random.default_rng(0).integers(-3, 3, SHAPE)
        found = md.take_along_axis(md.tensor(x), indices, axis)
        np.testing.assert_array_equal(found.numpy(), np.take_along_axis(x, indices, axis))
        check_gradients(lambda x: md.take_along_axis(x, indices, axis), x)

    def test_sides_of_one_broadcast(self):
        x, indices = normal(3, 4), np.array([[0, 0, 3]])
        expected = np.take_along_axis(x, indices, 1)
        np.testing.assert_array_equal(md.take_along_axis(x, indices, 1), expected)
        np.testing.assert_array_equal(md.take_along_axis(x, [2, 2], None), x.ravel()[[2, 2]])

    def test_errors(self):
        x = md.tensor(normal(3, 4))
        for indices in (np.zeros(3, int), np.zeros((2, 4), int)):
            with pytest.raises(ShapeError, match="take_along_axis: indices: expected the shape"):
                md.take_along_axis(x, indices)
        with pytest.raises(IndexError, match="out of bounds"):
            md.take_along_axis(x, np.full((3, 1), 4))
        with pytest.raises(DtypeError, match="take_along_axis: indices"):
            md.take_along_axis(x, np.zeros((3, 1)))


class TestAssignment:
    def test_dtypes(self):
        x = np.zeros(3, np.float32)
        assert md.index_put(x, 0, 0.5).dtype == np.float32
        assert md.scatter_add(x, [0, 0], np.ones(2)).dtype == np.float64
        assert md.scatter_add(md.tensor(x), [0, 0], np.ones(2, int)).dtype == np.float32

    def test_x_is_not_written(self):
        x = np.zeros(3)
        md.index_put(x, 0, 1.0), md.scatter_add(x, 0, 1.0), md.scatter_add(x, [0, 0], 1.0)
        np.testing.assert_array_equal(x, 0)

    def test_leading_ones_of_values(self):
        check_gradients(lambda x, v: md.index_put(x, slice(2), v), normal(3, 4), normal(1, 1, 4))

    @pytest.mark.parametrize("op", [md.index_put, md.scatter_add])
    def test_errors(self, op):
        x = md.tensor(normal(3, 4))
        with pytest.raises(ShapeError, match=rf"{op.__name__}: values: .*got \(3,\)"):
            op(x, slice(2), np.zeros(3))
        with pytest.raises(ShapeError, match=rf"{op.__name__}: values"):
            op(x, [0, 2], np.zeros(3))
        with pytest.raises(IndexError, match=rf"{op.__name__}: index: .*\(3, 4\)"):
            op(x, [0, 3], 1.0)

    def test_tensors_say_what_to_use(self):
        with pytest.raises(TypeError, match="index_put"):
            md.tensor([1.0])[0] = 2.0


class TestOneHot:
    def test_values(self):
        found = md.one_hot(np.array([[0, 2]]), 3)
        np.testing.assert_array_equal(found, [[[1, 0, 0], [0, 0, 1]]])
        assert found.dtype == np.float32
        assert md.one_hot(md.tensor(np.array(1)), 2, np.float64).dtype == np.float64
        assert md.one_hot([], 3).shape == (0, 3)
        assert md.one_hot(1, 3).tolist() == [0, 1, 0]

    @pytest.mark.parametrize("ids", [[0, 3], [-1]])
    def test_out_of_range(self, ids):
        with pytest.raises(IndexError, match=r"one_hot: ids: expected integers in \[0, 3\)"):
            md.one_hot(np.array(ids), 3)

    def test_floats(self):
        with pytest.raises(DtypeError, match="one_hot: ids"):
            md.one_hot(np.array([1.0]), 3)


class TestOrder:
    @pytest.mark.parametrize("axis", [0, 1, -1, None])
    def test_sort(self, axis):
        x = normal(4, 5)
        np.testing.assert_array_equal(md.sort(x, axis), np.sort(x, axis))
        np.testing.assert_array_equal(md.argsort(x, axis), np.argsort(x, axis, kind="stable"))
        check_gradients(lambda x: md.sort(x, axis), x)

    def test_equal_entries_keep_their_order(self):
        x = md.tensor([1.0, 0.0, 1.0, 0.0], requires_grad=True)
        np.testing.assert_array_equal(md.argsort(x).numpy(), [1, 3, 0, 2])
        (g,) = md.grad(md.sort(x), [x], [np.arange(4.0)])
        np.testing.assert_array_equal(g.numpy(), [2, 0, 3, 1])

    @pytest.mark.parametrize("axis", [0, -1])
    @pytest.mark.parametrize("k", [0, 1, 3])
    def test_topk(self, axis, k):
        x = normal(4, 5)
        values, positions = md.topk(md.tensor(x), k, axis)
        descending = np.flip(np.sort(x, axis), axis)
        np.testing.assert_array_equal(values.numpy(), np.take(descending, range(k), axis))
        np.testing.assert_array_equal(
            values.numpy(), np.take_along_axis(x, positions.numpy(), axis)
        )
        check_gradients(lambda x: md.topk(x, k, axis)[0], x)

    def test_topk_of_equal_entries_takes_the_first(self):
        _, positions = md.topk(np.array([0.0, 2.0, 1.0, 2.0, 1.0]), 4)
        np.testing.assert_array_equal(positions, [1, 3, 2, 4])

    def test_topk_of_integers(self):
        values, _ = md.topk(np.array([3, 250, 7], np.uint8), 2)
        np.testing.assert_array_equal(values, [250, 7])

    def test_errors(self):
        with pytest.raises(ShapeError, match="topk: k: expected at most 3"):
            md.topk(normal(3), 4)
        with pytest.raises(ShapeError, match=r"argsort: axis: .*0-d"):
            md.sort(md.tensor(1.0))

    def test_nonzero(self):
        x = md.tensor([[0.0, 2.0], [3.0, 0.0]])
        rows, columns = md.nonzero(x)
        assert (rows.tolist(), columns.tolist()) == ([0, 1], [1, 0])
        with pytest.raises(ShapeError, match="atleast_1d"):
            md.nonzero(md.tensor(1.0))
