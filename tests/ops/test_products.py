import numpy as np
import pytest

import minidl as md
from minidl import ops
from minidl.errors import ShapeError
from minidl.ops import products
from minidl.testing import check_gradients


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


# --- Matrix product -------------------------------------------------------------------------------

SHAPES = [
    ((3,), (3,)),
    ((3,), (3, 2)),
    ((2, 3), (3,)),
    ((2, 3), (3, 4)),
    ((3,), (5, 3, 2)),
    ((5, 2, 3), (3,)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((5, 1, 2, 3), (6, 3, 4)),
    ((1, 2, 3), (5, 3, 4)),
    ((5, 0, 3), (3, 4)),
    ((5, 2, 0), (0, 4)),
    ((0, 2, 3), (0, 3, 4)),
    ((0,), (0,)),
]


@pytest.mark.parametrize(("x", "y"), SHAPES)
def test_matmul_is_numpys_and_its_gradients_agree_with_differences(x, y):
    x, y = normal(*x), normal(*y, seed=1)
    out = md.tensor(x) @ md.tensor(y)
    assert out.shape == np.matmul(x, y).shape
    np.testing.assert_allclose(out.numpy(), np.matmul(x, y), rtol=1e-13, atol=1e-13)
    check_gradients(ops.matmul, x, y)


@pytest.mark.parametrize(("x", "y"), [*SHAPES, ((), (3,)), ((2, 3), ()), ((2, 3), (4, 5, 3, 2))])
def test_dot_is_numpys(x, y):
    x, y = normal(*x), normal(*y, seed=1)
    try:
        expected = np.dot(x, y)
    except ValueError:
        pytest.skip("dot does not broadcast batches")
    np.testing.assert_allclose(ops.dot(x, y), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ((), (3,), "0-d"),
        ((2, 3), (2, 3), "expected 3 rows"),
        ((3,), (4,), "expected 3 rows"),
        ((2, 2, 3), (3, 3, 4), "batch axes"),
    ],
)
def test_matmul_names_what_does_not_fit(x, y, words):
    with pytest.raises(ShapeError, match=f"matmul: .*{words}"):
        ops.matmul(md.tensor(normal(*x)), md.tensor(normal(*y)))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ((301, 200), (200, 101)),
        ((101, 200), (200, 301)),
        ((3, 100, 200), (200, 120)),
        ((5, 80, 200), (5, 200, 90)),
    ],
)
def test_a_large_product_is_the_same_on_any_number_of_threads(x, y, monkeypatch):
    x, y = normal(*x, dtype=np.float32), normal(*y, seed=1, dtype=np.float32)
    calls = []
    monkeypatch.setattr(products, "in_two", lambda *work: calls.append([f() for f in work]))
    one = ops.matmul(x, y)
    monkeypatch.undo()
    with md.threads(2):
        two = ops.matmul(x, y)
    assert len(calls) == 1
    np.testing.assert_array_equal(one, two)
    np.testing.assert_allclose(one, np.matmul(x.astype(float), y), rtol=1e-4, atol=1e-4)


def test_what_blas_does_not_take_is_the_same_product():
    x = np.random.default_rng(0).normal(size=(5, 1))
    row, ones = x.T[:, :3], np.broadcast_to(2.0, (5, 1))
    np.testing.assert_array_equal(md.matmul(x, row), x @ row)
    np.testing.assert_array_equal(md.matmul(np.stack([x, -x]), row), np.stack([x, -x]) @ row)
    np.testing.assert_allclose(md.matmul(x.T, ones), x.T @ ones, rtol=1e-15)
    bits = np.array([[True], [False]])
    assert md.matmul(bits, bits.T).dtype == bool


def test_products_of_a_batch_with_one_matrix_are_one_product(monkeypatch):
    seen = []
    product = products._product
    monkeypatch.setattr(products, "_product", lambda x, y: seen.append(x.shape) or product(x, y))
    x, w = md.tensor(normal(6, 5, 4), requires_grad=True), md.tensor(normal(4, 3), True)
    md.grad((x @ w).sum(), [x, w])
    assert seen == [(30, 4), (30, 3), (4, 30)]


def test_the_weight_gradient_keeps_the_input_alone():
    x, w = md.tensor(normal(2, 3, 4)), md.tensor(normal(4, 3), requires_grad=True)
    kept = [value for value in (x @ w)._node.saved if not isinstance(value, tuple)]
    assert len(kept) == 1
    assert kept[0].shape == x.shape


@pytest.mark.parametrize(
    ("x", "y", "axes"),
    [
        ((2, 3), (4, 5), 0),
        ((2, 3), (3, 5), 1),
        ((2, 3, 4), (3, 4, 5), 2),
        ((2, 3, 4), (4, 3), ((1, 2), (1, 0))),
        ((2, 3, 4), (2,), (0, 0)),
        ((2, 3, 4), (5, 4), ([-1], [-1])),
        ((2, 0), (0, 3), 1),
        ((3, 4), (3, 4), 2),
    ],
)
def test_tensordot_is_numpys(x, y, axes):
    x, y = normal(*x), normal(*y, seed=1)
    out = ops.tensordot(md.tensor(x), md.tensor(y), axes)
    np.testing.assert_allclose(out.numpy(), np.tensordot(x, y, axes), rtol=1e-13)


def test_tensordot_names_axes_that_do_not_pair():
    with pytest.raises(ShapeError, match="tensordot: axes: expected pairs of equal sides"):
        ops.tensordot(normal(2, 3), normal(2, 3), 1)
    with pytest.raises(ShapeError, match="tensordot: axis"):
        ops.tensordot(normal(2, 3), normal(2, 3), (2, 0))


def test_outer_flattens():
    x, y = normal(2, 3), normal(4)
    np.testing.assert_array_equal(ops.outer(md.tensor(x), md.tensor(y)).numpy(), np.outer(x, y))


# --- Diagonals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", range(-4, 5))
@pytest.mark.parametrize("axes", [(0, 1), (1, 0), (-1, 0), (2, 1)])
def test_diagonal_and_trace_are_numpys(offset, axes):
    x = normal(3, 4, 2)
    out = ops.diagonal(md.tensor(x), offset, *axes)
    np.testing.assert_array_equal(out.numpy(), np.diagonal(x, offset, *axes))
    out = ops.trace(md.tensor(x), offset, *axes)
    np.testing.assert_allclose(out.numpy(), np.trace(x, offset, *axes), rtol=1e-13)
    check_gradients(lambda x: md.tanh(ops.diagonal(x, offset, *axes)), x)


@pytest.mark.parametrize("k", [-2, 0, 3])
@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 4), (0,)])
def test_diag_is_numpys(shape, k):
    x = normal(*shape)
    np.testing.assert_array_equal(ops.diag(md.tensor(x), k).numpy(), np.diag(x, k))


def test_diagonals_need_two_axes():
    with pytest.raises(ShapeError, match="diagonal: axis2"):
        ops.diagonal(md.tensor(normal(2, 3)), 0, 1, -1)
    with pytest.raises(ShapeError, match="diag: x"):
        ops.diag(md.tensor(normal(2, 3, 4)))


# --- Einstein summation ---------------------------------------------------------------------------

SIZES = dict(zip("abcdefghijklmnopqrstuvwxyzI", [2, 3, 4] * 9, strict=True))
EXTRA = [
    "ba,cb", "ijk", "kji->", "Ii,iI", "ij,jk,kl,lm->im", "abc,abd->cd", "abc->b", "iji->j",
    "ijij->ji", "...", "...ab->...b", "...ab,...b->...a", "a...,b...->ab...", "...a->a...", "a,b,c",
    "i , i -> i", "ab,cd->abcd", "ab,ab,ab->", "bij,bj->bi", "bhid,bhjd->bhij", "...,...",
    "ii,ij,j",
]  # fmt: skip


def operands(subscripts, wild=(2, 3)):
    terms = subscripts.replace(" ", "").split("->")[0].split(",")
    shapes = []
    for term in terms:
        before, dots, after = term.partition("...")
        middle = wild if dots else ()
        shapes.append([*(SIZES[a] for a in before), *middle, *(SIZES[a] for a in after)])
    return [normal(*shape, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("subscripts", [*products.SUBSCRIPTS, *EXTRA])
def test_einsum_is_numpys(subscripts):
    if "ii" in subscripts or "Ii" in subscripts or "iji" in subscripts:
        arrays = [np.ones(tuple(2 for _ in x.shape)) * (1 + i) for i, x in
                  enumerate(operands(subscripts))]  # fmt: skip
        arrays = [x + normal(*x.shape, seed=i) for i, x in enumerate(arrays)]
    else:
        arrays = operands(subscripts)
    expected = np.einsum(subscripts, *arrays)
    tensors = [md.tensor(x, requires_grad=True) for x in arrays]
    out = ops.einsum(subscripts, *tensors)
    assert out.shape == np.shape(expected)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-12, atol=1e-12)
    check_gradients(lambda *xs: md.tanh(0.1 * ops.einsum(subscripts, *xs)), *arrays)


@pytest.mark.parametrize(
    ("subscripts", "shapes"),
    [
        ("ij,jk->ik", [(1, 3), (1, 4)]),
        ("ij,ij->ij", [(2, 1), (1, 3)]),
        ("ij,ij", [(2, 3), (1, 1)]),
        ("ij->ij", [(1, 1)]),
        ("ii->i", [(1, 1)]),
        ("...i,...i->...", [(2, 1, 3), (4, 3)]),
        ("...i,...i->...i", [(3,), (4, 2, 3)]),
        ("...i,i->...", [(3,), (3,)]),
        ("...i,...i", [(1, 2), (0, 2)]),
        ("ij,jk", [(2, 0), (0, 3)]),
        ("ij->i", [(2, 0)]),
        ("ij,j->j", [(0, 2), (2,)]),
    ],
)
def test_einsum_broadcasts_sides_of_one_and_sums_empty_ones(subscripts, shapes):
    arrays = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    out = ops.einsum(subscripts, *arrays)
    expected = np.einsum(subscripts, *arrays)
    assert out.shape == np.shape(expected)
    np.testing.assert_allclose(out, expected, rtol=1e-12)
    check_gradients(lambda *xs: ops.einsum(subscripts, *xs), *arrays)


@pytest.mark.parametrize(
    ("subscripts", "shapes", "words"),
    [
        ("ij,jk", [(2, 3)], "one term for each of 1 operands"),
        ("ijk", [(2, 3)], "2 letters for an operand"),
        ("i", [(2, 3)], "2 letters for an operand"),
        ("ij->ik", [(2, 3)], "output letters"),
        ("ij->ii", [(2, 3)], "output letters"),
        ("i1", [(2, 3)], "letters"),
        ("i......", [(2, 3)], "letters"),
        ("...i->i", [(2, 3)], "'...' in the output"),
        ("ij,jk", [(2, 3), (4, 2)], "one length for letter 'j'"),
        ("...i,...i", [(2, 3), (4, 3)], "one length for axis -1"),
        ("ii", [(1, 3)], "equal sides"),
        ([0, 1], [(2, 3)], "a string"),
    ],
)
def test_einsum_names_what_does_not_fit(subscripts, shapes, words):
    with pytest.raises(ShapeError, match=f"einsum: .*{words}"):
        ops.einsum(subscripts, *[md.tensor(normal(*shape)) for shape in shapes])


def test_einsum_result_is_fresh_memory():
    x = md.tensor(normal(3, 3))
    for subscripts in ("ij", "ji", "ii->i"):
        assert not np.shares_memory(ops.einsum(subscripts, x)._data, x._data)


def test_einsum_of_one_tensor_twice():
    x = normal(3, 3)
    check_gradients(lambda x: ops.einsum("ij,jk->ik", x, x), x)
    np.testing.assert_allclose(ops.einsum("ij,ij", x, x), (x * x).sum())


def test_half_precision_sums_accumulate_in_single():
    x = np.full((4096, 2), 1.0, np.float16)
    out = ops.einsum("ij->j", x)
    assert out.dtype == np.float16
    np.testing.assert_array_equal(out, [4096, 4096])


@pytest.mark.parametrize("pair", [(2.0, md.tensor([1.0])), (md.tensor([1.0]), 2)])
def test_matmul_of_a_number_says_multiply(pair):
    with pytest.raises(md.errors.ShapeError, match="use multiply"):
        md.matmul(*pair)
