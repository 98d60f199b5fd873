"""Tensor: data, protocols, immutability, versions."""

import copy
import gc
import weakref

import numpy as np
import pytest

import minidl as md
from minidl.errors import DtypeError, GradientError, ShapeError
from minidl.graph import Leaf


def test_tensor_copies_and_keeps_an_arrays_dtype():
    array = np.arange(3.0)
    x = md.tensor(array)
    array[0] = 9
    assert x.dtype == np.float64 and x.numpy()[0] == 0


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(2.0, "float32"), ([1, 2.5], "float32"), ([1, 2], "int64"), (True, "bool"),
     (np.float64(2), "float64"), (np.float16(2), "float16")],
)  # fmt: skip
def test_dtype_of_python_values(value, dtype):
    assert md.tensor(value).dtype == dtype


def test_default_dtype_is_a_context():
    with md.default_dtype("float64"):
        assert md.tensor(1.5).dtype == np.float64
    assert md.tensor(1.5).dtype == np.float32
    with pytest.raises(DtypeError, match="float dtype"), md.default_dtype("int32"):
        pass


@pytest.mark.parametrize("value", [1j, "text", [object()]])
def test_what_tensors_do_not_take(value):
    with pytest.raises(DtypeError, match="real numbers"):
        md.tensor(value)


def test_integers_never_require_gradients():
    with pytest.raises(DtypeError, match="astype"):
        md.tensor([1, 2], requires_grad=True)


def test_data_and_numpy_are_read_only_views():
    x = md.tensor([1.0, 2.0])
    for view in (x.data, x.numpy()):
        assert np.shares_memory(view, x._data)
        with pytest.raises(ValueError):
            view[0] = 5
    assert np.asarray(x).flags.writeable and not np.shares_memory(np.asarray(x), x._data)


def test_setitem_names_the_functional_op():
    x = md.tensor([1.0, 2.0])
    with pytest.raises(TypeError, match="index_put"):
        x[0] = 3.0


def test_iadd_rebinds():
    x = y = md.tensor([1.0, 2.0])
    x += 1
    assert y.tolist() == [1, 2] and x.tolist() == [2, 3]


def test_protocols():
    x = md.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert len(x) == 2 and [row.tolist() for row in x] == [[1, 2], [3, 4]]
    assert float(x[0, 0]) == 1 and int(md.tensor(3)) == 3 and [7, 8, 9][md.tensor(1)] == 8
    assert (x == x).tolist() == [[True, True], [True, True]] and not (x == x).requires_grad
    assert len({x, x}) == 1
    assert x.T.tolist() == [[1, 3], [2, 4]] and x.mT.shape == (2, 2)
    with pytest.raises(ValueError, match="any"):
        bool(x)
    with pytest.raises(TypeError):
        len(md.tensor(1.0))
    with pytest.raises(ShapeError, match="one element"):
        x.item()


def test_reflected_operators_with_arrays_and_numbers():
    x = md.tensor([1.0, 2.0])
    array = np.array([3.0, 4.0], np.float32)
    for result, expected in [
        (array + x, [4, 6]), (array - x, [2, 2]), (2 * x, [2, 4]), (2 / x, [2, 1]),
        (2**x, [2, 4]), (array @ x, 11), (3 - x, [2, 1]),
    ]:  # fmt: skip
        assert isinstance(result, md.Tensor) and result.dtype == np.float32
        np.testing.assert_allclose(result.numpy(), expected)


def test_repr_shows_value_shape_dtype_device_and_op():
    x = md.tensor([1.0, 2.0], requires_grad=True)
    assert repr(x) == (
        "tensor([1., 2.], shape=(2,), dtype=float32, device='cpu', requires_grad=True)"
    )
    assert repr(x.exp()).endswith("op=exp)")
    assert repr(md.Parameter(np.zeros(1), "bias")).startswith("parameter(name='bias', [0.]")


def test_assign_writes_in_place_and_backward_then_raises():
    x = md.tensor([1.0, 2.0], requires_grad=True)
    loss = (x * x).sum()
    memory = x._data
    x.assign_([5.0, 6.0])
    assert x._data is memory and x.tolist() == [5, 6]
    with pytest.raises(GradientError, match="changed in place"):
        loss.backward()


def test_assign_through_a_view_is_seen():
    x = md.tensor(np.ones((2, 3)), requires_grad=True)
    y = md.tensor(np.ones((2, 3)), requires_grad=True)
    loss = (x.T * y.T).sum()  # saves views of x and y
    x.assign_(np.zeros((2, 3)))
    with pytest.raises(GradientError, match="changed in place"):
        loss.backward()
    left, _ = md.split(x, 2)  # views too, several at once
    loss = (left * left).sum()
    x.assign_(np.ones((2, 3)))
    with pytest.raises(GradientError, match="changed in place"):
        loss.backward()


def test_assign_where_the_old_value_is_not_needed_is_no_error():
    x = md.tensor([1.0], requires_grad=True)
    loss = (x + 1).sum()
    x.assign_([3.0])
    loss.backward()
    assert x.grad.tolist() == [1]


def test_assign_refuses():
    x = md.tensor([1.0, 2.0], requires_grad=True)
    with pytest.raises(GradientError, match="multiply"):
        (x * 2).assign_([1.0, 2.0])
    with pytest.raises(ShapeError, match=r"expected shape \(2,\)"):
        x.assign_([1.0])


def test_users_arrays_may_change_after_the_call():
    x = md.tensor([1.0, 2.0], requires_grad=True)
    factor, index = np.array([3.0, 4.0], np.float32), np.array([0, 0])
    loss = (x * factor).sum() + x[index].sum() + x[(index,)].sum()
    factor[:] = 0
    index[:] = 1
    loss.backward()
    assert x.grad.tolist() == [3 + 4, 4]


def test_requires_grad_can_be_set_on_leaves_only():
    x = md.tensor([1.0])
    x.requires_grad = True
    assert isinstance(x._node, Leaf)
    y = x * 2
    with pytest.raises(GradientError, match="detach"):
        y.requires_grad = False
    x.requires_grad = False
    assert not (x * 2).requires_grad


def test_deepcopy_gives_a_leaf_of_its_own():
    p = md.Parameter(np.ones(2), "w")
    q = copy.deepcopy(p)
    q.assign_([5.0, 5.0])
    assert p.tolist() == [1, 1] and q.name == "w" and q.requires_grad and type(q) is md.Parameter


def test_no_reference_cycles():
    gc.collect()
    gc.disable()
    try:
        x = md.tensor([1.0, 2.0], requires_grad=True)
        x.register_hook(lambda g: None)
        loss = ((x * x).exp().sum() + md.softmax(x).max()).tanh()
        node = weakref.ref(loss._node)
        (first,) = md.grad(loss, [x], create_graph=True)
        (second,) = md.grad(first.sum(), [x], retain_graph=True)
        leaf = weakref.ref(x._node)
        del loss, first, second
        assert node() is None
        del x
        assert leaf() is None
    finally:
        gc.enable()


def test_to_is_differentiable_and_free_on_the_same_device():
    x = md.tensor([1.0, 2.0], requires_grad=True)
    assert x.to("cpu") is x
    y = x.to("strict")
    assert y.device == "strict"
    (y * y).sum().backward()
    assert x.grad.device == "cpu" and x.grad.tolist() == [2, 4]


def test_boolean_operators_are_for_booleans():
    mask = md.tensor([True, False])
    assert (~mask).tolist() == [False, True] and (mask & [True, True]).tolist() == [True, False]
    assert (mask | ~mask).numpy().all() and not (mask ^ mask).numpy().any()
    for wrong in (lambda: ~md.tensor([0, 1]), lambda: mask & md.tensor([1, 0])):
        with pytest.raises(DtypeError, match="compare first"):
            wrong()


def test_lists_of_tensors_are_refused_rather_than_detached():
    x = md.tensor([1.0, 2.0], requires_grad=True)
    for wrong in (
        lambda: md.tensor([x, x]),
        lambda: md.sum([x, x]),
        lambda: md.add(x, [x[0], x[1]]),
    ):
        with pytest.raises(TypeError, match=r"md\.stack"):
            wrong()
    assert md.sum([1.0, 2.0]) == 3


def test_format_of_one_element():
    assert f"{md.tensor(1.25):.1f}" == "1.2" and f"{md.tensor(1)}".startswith("tensor(1")


def test_habits_from_elsewhere_get_the_mend():
    x = md.tensor([1.0])
    with pytest.raises(AttributeError, match=r"'view'; use x\.reshape"):
        x.view(1, 1)
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'$"):
        _ = x.nonsense
    assert not hasattr(x, "numpy_") and not hasattr(md, "nonsense")
    with pytest.raises(AttributeError, match=r"use md\.concatenate"):
        _ = md.cat
    with pytest.raises(TypeError, match="'dim'; use axis"):
        x.sum(dim=0)
