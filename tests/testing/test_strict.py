"""The strict stand-in: what it refuses, what it counts, and that it computes as NumPy does."""

import contextvars
import copy
import json
import operator
import threading
import warnings

import numpy as np
import pytest

import minidl as md
from minidl import backend
from minidl.testing import snapshot, strict
from minidl.testing.strict import xp


def device(values, dtype=np.float32):
    return xp.asarray(np.asarray(values, dtype))


@pytest.fixture
def x():
    return device([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]])


def host(value):
    if isinstance(value, (tuple, list)):
        return [host(part) for part in value]
    return value.get() if isinstance(value, strict.StrictArray) else value


# --- Refusals: no way from and to NumPy without saying so


@pytest.mark.parametrize(
    "convert",
    [
        np.asarray,
        np.array,
        np.float32,
        lambda x: np.asarray([x[0], x[1]]),
        lambda x: np.zeros((2, 3)).__setitem__(slice(None), x),
        lambda x: np.concatenate([x, x]),
        lambda x: np.sum(x),
        lambda x: np.exp(x),
        lambda x: np.add.reduce(x),
        lambda x: np.multiply(x, x, out=np.zeros((2, 3))),
        lambda x: np.zeros(3) + x,
        lambda x: np.zeros(3) == x,
        lambda x: np.zeros((2, 3)) @ x.T,
        lambda x: operator.iadd(np.zeros((2, 3)), x),
    ],
)
def test_numpy_gets_no_device_array(x, convert):
    with pytest.raises(TypeError):
        convert(x)


@pytest.mark.parametrize("other", [np.zeros(3), np.zeros(()), [1, 2, 3], (1, 2, 3), "1", object()])
@pytest.mark.parametrize(
    "mix",
    [
        lambda x, other: x + other,
        lambda x, other: x * other,
        lambda x, other: x < other,
        lambda x, other: x == other,
        lambda x, other: x @ other,
        lambda x, other: operator.isub(x, other),
        lambda x, other: xp.add(x, other),
        lambda x, other: xp.add(other, x),
        lambda x, other: xp.where(x > 0, x, other),
        lambda x, other: x.__setitem__(0, other),
        lambda x, other: x.fill(other),
        lambda x, other: xp.sum(other),
        lambda x, other: xp.max(other, axis=0),
        lambda x, other: xp.add.at(x, 0, other),
        lambda x, other: xp.concatenate([x, other]),
        lambda x, other: xp.tensordot(x, other, 1),
        lambda x, other: xp.einsum("ij,j->i", x, other),
        lambda x, other: xp.copyto(x, other),
        lambda x, other: xp.add(x, 1, out=other),
    ],
)
def test_operands_are_device_arrays_or_numbers(x, mix, other):
    with pytest.raises(TypeError):
        mix(x, other)


def test_shapes_and_dtypes_may_be_asked_by_numpys_functions(x):
    with strict.counting() as counts:
        assert np.shape(x) == xp.shape(x) == (2, 3)
        assert np.ndim(x) == 2
        assert np.size(x) == 6
        assert np.result_type(x, np.float64) == np.float64
    assert counts.calls == counts.synchronisations == 0


def test_the_reason_and_the_mend_are_named(x):
    with pytest.raises(TypeError, match=r"mix.*to_device"):
        x + np.zeros(3)
    with pytest.raises(TypeError, match=r"implicit conversion.*to_host"):
        np.asarray(x)
    with pytest.raises(TypeError, match=r"dispatch.*namespace"):
        np.sum(x)
    with pytest.raises(TypeError, match=r"asarray, once"):
        x + [1, 2, 3]


@pytest.mark.parametrize(
    "name",
    ["errstate", "block", "insert", "vecdot", "unstack", "nditer", "einsum_path", "no_such_name"],
)
def test_names_that_cupy_lacks(name):
    with pytest.raises(AttributeError, match=name):
        getattr(xp, name)
    assert not hasattr(xp.linalg, "svdvals")
    assert not hasattr(strict.special, "no_such_name")


@pytest.mark.parametrize(
    "call",
    [
        lambda x: xp.add(x, x, where=x > 0),
        lambda x: xp.sum(x, where=x > 0),
        lambda x: xp.sum(x, initial=0.0),
        lambda x: x.max(initial=0.0),
        lambda x: xp.take(x, 0, mode="clip"),
        lambda x: xp.einsum("ij->i", x, out=xp.zeros(2)),
        lambda x: xp.reshape(x, shape=(3, 2)),
        lambda x: xp.take_along_axis(x, xp.zeros((2, 1), int)),
        lambda x: xp.clip(x, min=0.0, max=1.0),
        lambda x: x.astype("f8", casting="same_kind"),
        lambda x: xp.sum(x, 0, None, None, False, 0.0),
        lambda x: xp.sum(x, axis=device(0, int)),
        lambda x: xp.zeros(device(2, int)),
        lambda x: xp.exp(x, x, x),
        lambda x: xp.transpose(),
        lambda x: xp.sqrt(x, subok=False),
        lambda x: xp.sum(2.0),
        lambda x: xp.mean(np.float64(2.0)),
        lambda x: 1.0 in x,
        lambda x: operator.imatmul(x, x),
        lambda x: operator.index(device(1, int)),
        lambda x: range(device(1, int)),
        lambda x: hash(x),
        lambda x: len(device(1.0)),
        lambda x: xp.matmul(x, x.T, subok=False),
    ],
)
def test_keywords_and_positions_that_cupy_lacks(x, call):
    with pytest.raises(TypeError):
        call(x)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: xp.maximum.reduce(x),
        lambda x: xp.maximum.accumulate(x),
        lambda x: xp.logaddexp.reduce(x),
        lambda x: xp.multiply.reduceat(x, [0]),
        lambda x: xp.multiply.at(x, 0, 2.0),
    ],
)
def test_ufunc_methods_that_cupy_lacks(x, call):
    with pytest.raises(NotImplementedError, match="not supported by CuPy"):
        call(x)


def test_scattering_has_the_dtypes_of_atomic_operations(x):
    with pytest.raises(TypeError, match="atomic"):
        xp.add.at(xp.zeros(3, bool), 0, True)
    with pytest.raises(TypeError, match="atomic"):
        xp.maximum.at(xp.zeros(3, np.float16), 0, 1.0)


def test_sort_is_stable_and_nothing_else(x):
    with pytest.raises(ValueError, match="stable"):
        xp.sort(x, kind="quicksort")
    ties = device(np.arange(100) % 2, np.int64)
    order = xp.argsort(ties).get()
    assert (np.diff(order[:50]) > 0).all()
    assert (np.diff(order[50:]) > 0).all()


def test_dtypes_and_padding_that_cupy_lacks(x):
    for values in (["a"], np.array([object()]), np.zeros(2, np.longdouble)):
        with pytest.raises(ValueError, match="dtype"):
            xp.asarray(values)
    with pytest.raises(ValueError, match="median"):
        xp.pad(x, 1, mode="median")


def test_attributes_that_cupy_lacks(x):
    for name in ("ctypes", "setflags", "newbyteorder", "flat", "data"):
        assert not hasattr(x, name)
    assert not hasattr(x.flags, "writeable")
    with pytest.raises(AttributeError):
        x.note = 1


# --- Refusals of what CuPy lets pass


def test_indices_out_of_range(x):
    wrong = device([0, 7], int)
    for read in (
        lambda: x[wrong],
        lambda: x[:, wrong],
        lambda: x.__setitem__(wrong, 0.0),
        lambda: x[device([-9], int)],
    ):
        with pytest.raises(IndexError, match="wrap around"):
            read()
    with pytest.raises(IndexError):
        xp.take(x, wrong, axis=0)
    with pytest.raises(IndexError):
        xp.add.at(x, wrong, 1.0)
    with pytest.raises(IndexError):
        x[5]


def test_an_element_is_written_once(x):
    with pytest.raises(ValueError, match="more than once"):
        x[device([0, 0], int)] = x
    with pytest.raises(ValueError, match="more than once"):
        x[:, device([2, -1], int)] = x[:, :2]
    with pytest.raises(ValueError, match="more than once"):
        x[device([0, 0], int)] += x
    with pytest.raises(ValueError, match="more than once"):
        xp.put_along_axis(x, device([[0, 0]], int), x[:, :2], axis=1)
    x[device([0, 0], int)] = 7.0  # one value: the order does not matter
    x[device([0, 1], int), device([0, 0], int)] = device([8.0, 9.0])
    assert x.tolist() == [[8.0, 7.0, 7.0], [9.0, 5.0, -6.0]]
    xp.add.at(x, device([1, 1], int), x[:1])
    assert x[1].tolist() == [25.0, 19.0, 8.0]


def test_overlapping_copies():
    v = device(np.arange(6))
    with pytest.raises(ValueError, match="overlap"):
        v[1:] = v[:-1]
    v[1:] = v[:-1].copy()
    v[:] = v
    assert v.tolist() == [0, 0, 1, 2, 3, 4]


# --- Counting


def counts_of(action):
    with strict.counting() as counts:
        action()
    return counts.synchronisations, counts.uploads


@pytest.mark.parametrize(
    ("action", "synchronisations", "uploads"),
    [
        (lambda x: float(x[0, 0]), 1, 0),
        (lambda x: int(x[0, 0]), 1, 0),
        (lambda x: bool(x[0, 0] > 0), 1, 0),
        (lambda x: x[0, 0].item(), 1, 0),
        (lambda x: x.tolist(), 1, 0),
        (lambda x: x.get(), 1, 0),
        (lambda x: xp.asnumpy(x), 1, 0),
        (lambda x: backend.to_host(x), 1, 0),
        (lambda x: repr(x), 1, 0),
        (lambda x: str(x), 1, 0),
        (lambda x: f"{x[0, 0]:.2f}", 1, 0),
        (lambda x: x[x > 0], 1, 0),
        (lambda x: x.__setitem__(x > 0, 0.0), 1, 0),
        (lambda x: xp.nonzero(x), 1, 0),
        (lambda x: x.nonzero(), 1, 0),
        (lambda x: xp.where(x > 0), 1, 0),
        (lambda x: xp.where(x > 0, x, 0.0), 0, 0),
        (lambda x: xp.copyto(x, 0.0, where=x > 0), 0, 0),
        (lambda x: xp.unique(x), 1, 0),
        (lambda x: xp.bincount(xp.arange(3)), 2, 0),
        (lambda x: xp.repeat(x, 2, axis=0), 0, 0),
        (lambda x: xp.repeat(x, xp.arange(2), axis=0), 2, 0),
        (lambda x: xp.average(x), 0, 0),
        (lambda x: xp.average(x, weights=x), 1, 0),
        (lambda x: x[[0, 1]], 0, 1),
        (lambda x: x[np.array([0, 1])], 0, 1),
        (lambda x: x[np.array([True, False])], 1, 1),
        (lambda x: x.__setitem__([0, 1], x), 0, 1),
        (lambda x: xp.take(x, [0, 1], axis=0), 0, 1),
        (lambda x: xp.take(x, xp.arange(2), axis=0), 0, 0),
        (lambda x: xp.asarray(np.zeros(3)), 0, 1),
        (lambda x: xp.array([1, 2]), 0, 1),
        (lambda x: backend.to_device(np.zeros(3), "strict"), 0, 1),
        (lambda x: xp.asarray(x), 0, 0),
        (lambda x: xp.asarray(2.0), 0, 0),
        (lambda x: xp.array([x, x]), 0, 0),
        (lambda x: xp.zeros((2, 3)) + xp.arange(3), 0, 0),
        (lambda x: x[1:, 0] + len(x) + x.shape[0] + x.ndim, 0, 0),
        (lambda x: x[xp.arange(2), xp.arange(2)], 0, 0),
        (lambda x: xp.linalg.inv(x[:, :2]), 0, 0),
        (lambda x: list(x), 0, 0),
    ],
)
def test_what_synchronises_and_what_uploads(x, action, synchronisations, uploads):
    assert counts_of(lambda: action(x)) == (synchronisations, uploads)


def test_every_call_counts(x):
    with strict.counting() as counts:
        y = x + 1
        y *= 2
        y = -y[0]
        xp.exp(y, out=y)
        y.sum(axis=0)
        xp.concatenate([x, x])
        _ = y.shape, y.dtype, xp.float32, xp.ndim(y)
    assert counts.calls == 7
    assert (counts.synchronisations, counts.uploads) == (0, 0)


def test_counts_nest_and_end(x):
    with strict.counting() as outer:
        float(x[0, 0])
        with strict.counting() as inner:
            float(x[0, 0])
    float(x[0, 0])
    assert (outer.synchronisations, inner.synchronisations) == (2, 1)


def test_sites_name_the_line(x):
    with strict.counting() as counts:
        float(x[0, 0])
    (site,) = counts.sites
    assert site.startswith("float() at ")
    assert "test_strict.py" in site
    assert "test_sites_name_the_line" in site


def test_forbidden_synchronisation_says_what_and_where(x):
    with strict.forbid_sync():
        xp.exp(x).sum()
        xp.asarray(np.zeros(3))
        for wait in (float, bool, lambda v: v.item(), lambda v: xp.unique(v)):
            with pytest.raises(strict.SynchronisationError, match=r"test_strict\.py"):
                wait(x[0, 0])
        with strict.forbid_sync(False):
            assert float(x[0, 0]) == 1.0
        with pytest.raises(strict.SynchronisationError, match="an index by a boolean mask"):
            x[x > 0]
    assert float(x[0, 0]) == 1.0


def test_counting_inside_forbidding_keeps_the_ban(x):
    with strict.forbid_sync(), strict.counting() as counts:
        with pytest.raises(strict.SynchronisationError):
            x.tolist()
        xp.exp(x)
    assert counts.calls == 1


def test_threads_count_when_they_carry_the_context(x):
    def work():
        for _ in range(500):
            float(x[0, 0])

    with strict.counting() as counts:
        carrying = [
            threading.Thread(target=contextvars.copy_context().run, args=(work,)) for _ in range(3)
        ]
        others = [threading.Thread(target=work)]
        for thread in carrying + others:
            thread.start()
        for thread in carrying + others:
            thread.join()
    assert counts.synchronisations == 1500
    assert counts.calls == 1500


# --- What is computed


def test_reductions_give_arrays(x):
    for result in (x.sum(), xp.max(x), x[0] @ x[1], xp.argmax(x), x[0, 0], xp.vdot(x, x)):
        assert type(result) is strict.StrictArray
        assert result.shape == ()
    assert type(xp.allclose(x, x)) is strict.StrictArray
    assert type(xp.count_nonzero(x)) is strict.StrictArray


def test_floats_never_warn(x):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = x[:0].mean(axis=0)
        results = [x / 0.0, -x / 0, xp.log(x * 0), xp.exp(x * 1e9), (x / 0.0 - x / 0.0).sum()]
        x /= 0.0
    assert np.isnan(empty.get()).all()
    assert not np.isfinite(results[0].get()).any()
    with pytest.warns(RuntimeWarning):
        np.ones(1) / np.zeros(1)


def test_scalars_are_weak(x):
    for result in (x + 2.0, 2.0 * x, x**2, xp.maximum(x, 0), xp.where(x > 0, x, 0.0), xp.exp(x)):
        assert result.dtype == np.float32
    assert (x + np.float64(2.0)).dtype == np.float64
    assert (np.float64(2.0) * x).dtype == np.float64
    assert (x.sum() * np.float32(1)).dtype == np.float32
    assert (device([1, 2], np.int32) + 1).dtype == np.int32
    assert (x.sum() + device([1.0], np.float64)).dtype == np.float64  # 0-d arrays are not weak


def test_views_share_memory(x):
    for view in (x[0], x[0, 0], x.T, x.mT, x.reshape(-1), xp.transpose(x), x[:, None], x.ravel()):
        assert xp.may_share_memory(view, x)
    row = x[0]
    row[...] = 9.0
    row += 1.0
    x[1, 2][...] = 5.0
    assert x.tolist() == [[10.0, 10.0, 10.0], [4.0, 5.0, 5.0]]
    assert x.base is None
    assert xp.shares_memory(row.base, x)
    for fresh in (x[xp.arange(2)], x[device(0, int)], x.copy(), x.astype(x.dtype), xp.array(x)):
        assert not xp.may_share_memory(fresh, x)
    assert x.astype(x.dtype, copy=False) is x
    assert xp.asarray(x) is x


def test_out_and_in_place_return_the_array_itself(x):
    y, z = xp.empty_like(x), xp.empty(3, np.float32)
    assert xp.add(x, 1, out=y) is y
    assert xp.add(x, 1, y) is y
    assert xp.sum(x, axis=0, out=z) is z
    assert x.sum(0, None, z) is z
    assert xp.take(x, xp.arange(2), axis=0, out=y) is y
    with pytest.raises(TypeError, match="dtype"):
        xp.take(x, xp.arange(2), axis=0, out=xp.empty((2, 3)))
    same = x
    x += 1
    x -= 0.5
    x *= x
    assert x is same
    mantissa, exponent = xp.frexp(x)
    outputs = xp.empty_like(mantissa), xp.empty_like(exponent)
    assert xp.frexp(x, out=outputs)[1] is outputs[1]


CASES = [
    lambda m, a, i: a + a * 2 - a / 3 % 2 // 1,
    lambda m, a, i: abs(-a) ** 2 + 2**a - (a > 0) * (a <= 1),
    lambda m, a, i: (a > 0) & (a < 2) | ~(a != 1) ^ (a == 2),
    lambda m, a, i: (i << 1, i >> 1, divmod(i, 2), 7 % (i + 1)),
    lambda m, a, i: 3 - a + 1 / a,
    lambda m, a, i: m.maximum(a, 0) + m.tanh(a) - m.log1p(m.exp(a)),
    lambda m, a, i: m.sum(a, axis=(0, 1), keepdims=True),
    lambda m, a, i: (a.mean(0), a.var(axis=1, ddof=1), a.std(), m.median(a, axis=1)),
    lambda m, a, i: (a.argmax(axis=1), m.argmin(a), m.cumsum(a, 1), m.logaddexp(a, a)),
    lambda m, a, i: m.concatenate([a, a], axis=1) @ m.stack([a, a]).reshape(-1, 6).mT,
    lambda m, a, i: m.einsum("ij,kj->ik", a, a, optimize=True),
    lambda m, a, i: m.tensordot(a, a, axes=[[1], [1]]),
    lambda m, a, i: (m.where(a > 0, a, 0.0), m.clip(a, 0.0, 1.0), m.select([a > 0], [a], 5.0)),
    lambda m, a, i: (m.take(a, i, axis=1), m.take_along_axis(a, m.argsort(a, axis=1), 1)),
    lambda m, a, i: (a[0], a[:, ::-1], a[..., None, 1], a[i], a[i, i], a[1][2], a[None][0, 1]),
    lambda m, a, i: (a[a > 0], m.nonzero(a), m.unique(i), m.bincount(i), m.repeat(a, 2, 0)),
    lambda m, a, i: m.pad(a, ((1, 0), (2, 2)), mode="edge"),
    lambda m, a, i: (m.split(a, 3, axis=1), m.moveaxis(a[None], 0, -1), m.expand_dims(a, 0)),
    lambda m, a, i: (m.broadcast_to(a, (4, 2, 3)), m.broadcast_arrays(a, i), m.meshgrid(i, i)),
    lambda m, a, i: m.lib.stride_tricks.sliding_window_view(a, 2, axis=1),
    lambda m, a, i: m.lib.stride_tricks.as_strided(a, (2, 2), a.strides),
    lambda m, a, i: (m.linalg.svd(a), m.linalg.eigh(a @ a.T), m.linalg.norm(a, axis=1)),
    lambda m, a, i: m.linalg.solve(a @ a.T, a) + m.linalg.slogdet(a @ a.T)[1],
    lambda m, a, i: (m.fft.rfft(a), m.fft.ifft(a[0]).real),
    lambda m, a, i: (m.arange(5), m.linspace(0, 1, 3), m.eye(3, 2), m.full((2,), 3.0), m.tri(3)),
    lambda m, a, i: (m.tril(a), m.triu_indices(3, 1), m.diagonal(a), m.roll(a, 1, axis=1)),
    lambda m, a, i: (m.zeros_like(a), m.ones((2, 2), m.int64), m.ones_like(a, dtype=m.float64)),
    lambda m, a, i: (m.result_type(a, 2.0), m.ndim(a), m.shape(a), m.finfo(a.dtype).eps),
    lambda m, a, i: (m.add.reduce(a), m.multiply.reduce(a, axis=1), m.add.outer(a, i)),
    lambda m, a, i: (m.add.accumulate(a, axis=1), m.add.reduceat(a, i[:1] + 1, axis=0)),
    lambda m, a, i: (m.isfinite(a / 0.0), m.log(a * 0.0), m.sqrt(-abs(a))),
    lambda m, a, i: (a.T.flags.f_contiguous, a.nbytes, a.strides, len(a), a.itemsize),
]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_results_are_numpys(case):
    a = np.array([[1.5, -2.0, 0.5], [0.25, 1.0, 2.0]], np.float32)
    i = np.array([0, 1, 1])
    with np.errstate(all="ignore"):
        expected = case(np, a.copy(), i.copy())
    actual = host(case(xp, device(a), device(i, np.int64)))

    def compare(expected, actual):
        if isinstance(expected, (tuple, list)):
            assert len(expected) == len(actual)
            for pair in zip(expected, actual):
                compare(*pair)
        elif isinstance(expected, (np.ndarray, np.generic)) and isinstance(actual, np.ndarray):
            assert actual.dtype == expected.dtype
            np.testing.assert_array_equal(actual, expected)
        else:
            assert actual == expected

    compare(expected, actual)


@pytest.mark.parametrize(
    "call",
    [
        lambda s, a: s.erf(a) + s.expit(a) + s.gammaln(abs(a)),
        lambda s, a: s.xlogy(a, abs(a)),
        lambda s, a: s.logsumexp(a, axis=1, keepdims=True),
        lambda s, a: s.softmax(a, axis=-1) + s.log_softmax(a, axis=-1),
    ],
)
def test_special_functions(x, call):
    scipy_special = pytest.importorskip("scipy.special")
    np.testing.assert_array_equal(call(strict.special, x).get(), call(scipy_special, x.get()))
    assert backend.special(x) is strict.special


def test_the_backend_knows_it(x):
    assert backend.namespace(x) is xp
    assert backend.device_of(x) == "strict"
    moved = backend.to_device(np.ones(3), "strict")
    assert type(moved) is strict.StrictArray
    source = np.ones(3)
    assert not np.shares_memory(backend.to_host(backend.to_device(source, "strict")), source)


def test_a_class_with_its_own_operators_gets_its_turn(x):
    class Own:
        __array_ufunc__ = None

        def __radd__(self, other):
            return "own"

    assert x + Own() == "own"
    with pytest.raises(TypeError):
        x - Own()


def test_copies(x):
    for duplicate in (copy.copy(x), copy.deepcopy(x)):
        assert type(duplicate) is strict.StrictArray
        assert not xp.may_share_memory(duplicate, x)


# --- The snapshot


def test_the_snapshot_is_that_of_the_installed_cupy():
    cupy = pytest.importorskip("cupy")
    kept = json.loads(snapshot.FILE.read_text(encoding="utf-8"))
    if kept["cupy"] != cupy.__version__:
        pytest.skip(f"CuPy {cupy.__version__} is installed, the snapshot is of {kept['cupy']}")
    assert snapshot.take_snapshot() == kept


def test_all_modelled_names_can_be_made():
    made = {name for name in dir(xp) if hasattr(xp, name)}
    assert {"add", "sum", "einsum", "float32", "pi", "pad", "matmul", "newaxis"} <= made
    for module in (xp.linalg, xp.fft, xp.lib.stride_tricks, strict.special):
        assert any(hasattr(module, name) for name in dir(module))


def test_forbid_sync_in_all_steps_of_a_fit():
    def fit(loss):
        with md.device("strict"):
            model = md.layers.Dense(1, input_size=2)
        batches = md.data.Batches(np.ones((4, 2), np.float32), np.ones((4, 1), np.float32), 2)
        optimizer = md.optimizers.SGD(model)
        return md.fit(
            model,
            loss,
            optimizer,
            batches,
            epochs=2,
            callbacks=[strict.ForbidSync()],
            verbose=False,
            allocator=False,
        )

    def waiting(targets, output):
        assert float(md.sum(output)) is not None
        return md.mean(md.square(output - targets))

    assert len(fit(md.losses.MeanSquaredError())["loss"]) == 2
    with pytest.raises(strict.SynchronisationError):
        fit(waiting)
    assert float(md.tensor(1.0, device="strict")) == 1  # and waiting is allowed again
