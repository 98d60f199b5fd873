import numpy as np
import pytest

import minidl as md
from minidl.errors import DtypeError, ShapeError
from minidl.ops.shape import unbroadcast
from minidl.testing import check_gradients


def arange(*shape, dtype=np.float64):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


AS_NUMPY = [
    ("reshape", (2, 3, 4), ((4, -1),)),
    ("reshape", (2, 3, 4), (24,)),
    ("reshape", (), ((1, 1),)),
    ("reshape", (0, 3), ((3, 0),)),
    ("transpose", (2, 3, 4), ()),
    ("transpose", (2, 3, 4), ((1, -1, 0),)),
    ("transpose", (), ()),
    ("swapaxes", (2, 3, 4), (0, -1)),
    ("moveaxis", (2, 3, 4, 5), (0, -1)),
    ("moveaxis", (2, 3, 4, 5), ((0, -1), (2, 0))),
    ("moveaxis", (2, 3, 4, 5), ((3, 1), (0, 1))),
    ("expand_dims", (2, 3), ((0, -1),)),
    ("expand_dims", (), (0,)),
    ("squeeze", (1, 3, 1), ()),
    ("squeeze", (1, 3, 1), (-1,)),
    ("squeeze", (1, 3, 1), ((0, 2),)),
    ("ravel", (2, 3), ()),
    ("atleast_1d", (), ()),
    ("broadcast_to", (3, 1), ((2, 3, 4),)),
    ("broadcast_to", (1,), (5,)),
    ("flip", (2, 3, 4), ()),
    ("flip", (2, 3, 4), ((0, -1),)),
    ("roll", (2, 3), (4,)),
    ("roll", (2, 3), ((1, 2),)),
    ("roll", (3, 4), ((1, -6), (0, 1))),
    ("roll", (3, 4), (1, (0, 1))),
    ("roll", (3, 4), ((1, 1), (0, 0))),
    ("roll", (0, 4), (3, 0)),
    ("repeat", (2, 3), (2,)),
    ("repeat", (2, 3), (3, -1)),
    ("repeat", (2, 3), (0, 0)),
    ("repeat", (), (3,)),
    ("tile", (2, 3), (2,)),
    ("tile", (3,), ((2, 1, 2),)),
    ("tile", (2, 3, 1), ((2, 3),)),
    ("tile", (), ((),)),
    ("tile", (2, 3), (0,)),
    ("tril", (2, 3, 4), ()),
    ("triu", (4, 3), (-1,)),
    ("triu", (0, 3), (1,)),
]


@pytest.mark.parametrize("name, shape, args", AS_NUMPY)
def test_as_numpy(name, shape, args):
    x = arange(*shape, dtype=np.float32)
    expected = getattr(np, name)(x, *args)
    result = getattr(md, name)(md.tensor(x), *args)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result.numpy(), expected, strict=True)
    check_gradients(lambda x: getattr(md, name)(x, *args), arange(*shape), order=2)


def test_methods_take_loose_numbers():
    x = md.tensor(arange(2, 3, 4))
    assert x.reshape(4, 6).shape == x.reshape((4, 6)).shape == x.reshape([4, 6]).shape == (4, 6)
    assert x.reshape(-1).shape == x.flatten().shape == (24,)
    assert x.transpose(2, 0, 1).shape == x.transpose((2, 0, 1)).shape == (4, 2, 3)
    assert x.transpose().shape == x.T.shape == (4, 3, 2)
    assert x.mT.shape == (2, 4, 3)


def test_bare_arrays_stay_bare():
    assert type(md.reshape(arange(2, 3), (6,))) is np.ndarray
    assert type(md.tile(arange(2, 3), 2)) is np.ndarray


@pytest.mark.parametrize(
    "op",
    [
        lambda x: md.reshape(x, (3, 2)),
        md.transpose,
        lambda x: md.expand_dims(x, 0),
        md.flip,
        lambda x: md.broadcast_to(x, (400, 2, 3)),
    ],
)
def test_views_share_memory(op):
    x = arange(2, 3)
    assert np.shares_memory(op(x), x)


@pytest.mark.parametrize(
    "op", [lambda x: md.roll(x, 0), lambda x: md.roll(x, 0, ()), md.tril, md.triu]
)
def test_other_ops_give_fresh_memory(op):
    x = arange(2, 3)
    assert not np.shares_memory(op(x), x)


def test_integers_pass_through():
    x = md.tensor(np.arange(6).reshape(2, 3))
    for y in (x.T, md.tile(x, 2), md.roll(x, 1), md.tril(x), md.repeat(x, 2)):
        assert y.dtype == np.int64


@pytest.mark.parametrize(
    "call, error, says",
    [
        (lambda x: md.reshape(x, (4, 2)), ShapeError, r"reshape: shape: .*6 entries.*\(4, 2\)"),
        (lambda x: md.reshape(x, (-1, -1)), ShapeError, "at most one side"),
        (lambda x: md.transpose(x, (0, 0)), ShapeError, "transpose: axis: .*once"),
        (lambda x: md.transpose(x, (0,)), ShapeError, "expected all 2 axes"),
        (lambda x: md.swapaxes(x, 0, 2), ShapeError, "swapaxes: axis: .*use -2 to 1"),
        (lambda x: md.moveaxis(x, (0, 1), 0), ShapeError, "moveaxis: destination"),
        (lambda x: md.squeeze(x, 0), ShapeError, r"squeeze: axis: .*length 1.*\(2, 3\)"),
        (lambda x: md.expand_dims(x, 3), ShapeError, "expand_dims: axis"),
        (lambda x: md.broadcast_to(x, (3, 2)), ShapeError, r"broadcast_to: .*\(2, 3\).*\(3, 2\)"),
        (lambda x: md.broadcast_to(x[None], (2, 3)), ShapeError, "broadcast_to: shape"),
        (lambda x: md.flip(md.tensor(1.0), 0), ShapeError, "flip: axis: .*0-d array has none"),
        (lambda x: md.roll(x, (1, 2, 3), (0, 1)), ShapeError, "roll: shift: .*2, one for each"),
        (lambda x: md.repeat(x, [1, 2]), DtypeError, "repeat: repeats: expected an integer"),
        (lambda x: md.tile(x, -1), ShapeError, "tile: reps: expected 0 or more"),
        (lambda x: md.tril(x[0]), ShapeError, r"tril: x: expected \(..., rows, columns\)"),
    ],
)
def test_errors_name_op_and_argument(call, error, says):
    with pytest.raises(error, match=says):
        call(md.tensor(arange(2, 3)))


class TestUnbroadcast:
    def test_equal_shapes_return_the_same_object(self):
        x = arange(2, 3)
        assert unbroadcast(x, (2, 3)) is x

    @pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (1, 4), (2, 1, 1), (1, 3, 4)])
    def test_is_the_adjoint_of_broadcasting(self, shape):
        generator = np.random.default_rng(0)
        g, v = generator.normal(size=(2, 3, 4)), generator.normal(size=shape)
        result = unbroadcast(g, shape)
        assert result.shape == shape
        np.testing.assert_allclose(np.vdot(result, v), np.vdot(g, np.broadcast_to(v, g.shape)))
        np.testing.assert_allclose(unbroadcast(md.tensor(g), shape).numpy(), result)

    def test_empty_sides(self):
        np.testing.assert_array_equal(unbroadcast(arange(0, 3), (3,)), np.zeros(3))
        np.testing.assert_array_equal(unbroadcast(arange(0, 3), (1, 1)), np.zeros((1, 1)))

    def test_keeps_float32(self):
        assert unbroadcast(arange(4, 3, dtype=np.float32), (3,)).dtype == np.float32

    @pytest.mark.parametrize("shape", [(2,), (3, 2, 3), (0, 3)])
    def test_refuses_shapes_that_do_not_broadcast(self, shape):
        with pytest.raises(ShapeError, match=r"unbroadcast: x: .*\(2, 3\)"):
            unbroadcast(arange(2, 3), shape)
