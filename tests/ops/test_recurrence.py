"""The fused recurrent ops against their definitions, which share no code with them."""

import numpy as np
import pytest

import minidl as md
from minidl.backend import to_device
from minidl.functional import recurrent
from minidl.functional.recurrent import GRU, LSTM, SIMPLE_RNN, Direction, scan
from minidl.ops import recurrence
from minidl.testing import strict

CELLS = (SIMPLE_RNN, GRU, LSTM)
EACH = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)


def arrays(cell, batch=4, time=6, inputs=3, units=5, directions=2, seed=0, dtype=np.float64):
    """x, kernel, recurrent_kernel, bias, state of a fused op."""
    draw = np.random.default_rng(seed)
    width = cell.gates * units
    shapes = [
        (batch, time, inputs),
        (directions, inputs, width),
        (directions, units, width),
        (directions, *cell.bias_shape(units)),
        (cell.states, directions, batch, units),
    ]
    return [draw.normal(size=shape).astype(dtype) * 0.7 for shape in shapes]


def random_mask(batch=4, time=6, seed=0):
    """With gaps, an empty row and a full one."""
    mask = np.random.default_rng(seed).random((batch, time)) < 0.6
    mask[0], mask[1] = True, False
    return mask


def weighted(outputs):
    """A scalar to which every entry of the outputs matters differently."""
    draw = np.random.default_rng(9)
    return sum((y * draw.normal(size=y.shape).astype(y.dtype)).sum() for y in outputs)


@EACH
@pytest.mark.parametrize("reverse", [(False,), (True,), (False, True), (True, False, True)])
@pytest.mark.parametrize("left_out", ["nothing", "mask", "bias and state"])
def test_the_fused_op_is_its_definition(cell, reverse, left_out):
    values = arrays(cell, directions=len(reverse))
    if left_out == "bias and state":
        values[3:] = [None, None]
    mask = None if left_out == "mask" else random_mask()
    tensors = [None if a is None else md.tensor(a, requires_grad=True) for a in values]
    leaves = [t for t in tensors if t is not None]
    fused = cell.fused(*tensors, mask, reverse)
    defined = cell.fused.definition(*tensors, mask, reverse)
    for ours, theirs in zip(fused, defined, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-12)
    by_fused = md.grad(weighted(fused), leaves)
    by_definition = md.grad(weighted(defined), leaves)
    for ours, theirs in zip(by_fused, by_definition, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-12)


@EACH
def test_create_graph_gives_the_same_first_gradient(cell):
    leaves = [md.tensor(a, requires_grad=True) for a in arrays(cell)]
    loss = weighted(cell.fused(*leaves, random_mask(), (False, True)))
    plain = md.grad(loss, leaves, retain_graph=True)
    again = md.grad(loss, leaves, retain_graph=True)  # what the op keeps is not used up
    recorded = md.grad(loss, leaves, create_graph=True)
    for first, second, third in zip(plain, again, recorded, strict=True):
        np.testing.assert_array_equal(first.numpy(), second.numpy())
        np.testing.assert_allclose(first.numpy(), third.numpy(), atol=1e-12)


@EACH
@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 0, 2, 2), (2, 3, 0, 2), (2, 3, 2, 0)])
def test_empty_sides(cell, shape):
    leaves = [md.tensor(a, requires_grad=True) for a in arrays(cell, *shape)]
    mask = np.ones(shape[:2], bool)
    outputs, last = cell.fused(*leaves, mask, (False, True))
    batch, time, _, units = shape
    assert outputs.shape == (batch, time, 2, units)
    found = md.grad(outputs.sum() + last.sum(), leaves)
    assert [g.shape for g in found] == [leaf.shape for leaf in leaves]
    if not time:
        np.testing.assert_array_equal(last.numpy(), leaves[4].numpy())


@EACH
def test_large_products_on_two_threads_are_those_on_one(cell):
    """The size at which products are split, and the other direction's go to the helper."""
    values = arrays(cell, 8, 60, 96, 96, dtype=np.float32)
    assert values[1][0].size * 8 * 60 > recurrence.SPLIT or cell is not LSTM
    results = []
    for threads in (1, 2):
        leaves = [md.tensor(a, requires_grad=True) for a in values]
        with md.threads(threads):
            loss = weighted(cell.fused(*leaves, None, (False, True)))
            results.append([loss, *md.grad(loss, leaves)])
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one.numpy(), two.numpy(), rtol=1e-4, atol=1e-5)


@EACH
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes_are_kept(cell, dtype):
    leaves = [md.tensor(a, requires_grad=True) for a in arrays(cell, dtype=dtype)]
    found = cell.fused(*leaves, random_mask(), (False, True))
    gradients = md.grad(weighted(found), leaves)
    assert {a.dtype for a in (*found, *gradients)} == {np.dtype(dtype)}
    exact = cell.fused(*(a.astype(np.float64) for a in arrays(cell, dtype=dtype)), None, (False,))
    near = cell.fused(*arrays(cell, dtype=dtype), None, (False,))
    tolerance = {2: 2e-3, 4: 1e-6, 8: 1e-12}[np.dtype(dtype).itemsize]
    np.testing.assert_allclose(near[0], exact[0], atol=tolerance)


@EACH
def test_long_sequences_and_large_inputs_stay_finite(cell):
    values = arrays(cell, time=400, dtype=np.float32)
    values[0] *= 100
    values[4] = None
    leaves = [md.tensor(a, requires_grad=True) for a in values[:4]]
    outputs, last = cell.fused(*leaves, None, None, (False, True))
    for g in md.grad(outputs.sum() + last.sum(), leaves):
        assert np.isfinite(g.numpy()).all()
    assert np.abs(outputs.numpy()).max() <= 1


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e30])
@EACH
def test_padding_may_hold_anything(cell, junk):
    def found(values, function):
        leaves = [md.tensor(a, requires_grad=True) for a in values]
        outputs, last = function(*leaves, mask, (False, True))
        gradients = md.grad(weighted((outputs, last)), leaves)
        return [a.numpy() for a in (outputs, last, *gradients)]

    values, mask = arrays(cell), random_mask()
    dirty = [np.where(mask[:, :, None], values[0], junk), *values[1:]]
    for function in (cell.fused, cell.fused.definition):
        for one, other in zip(found(values, function), found(dirty, function), strict=True):
            np.testing.assert_array_equal(one, other)


@EACH
def test_arguments_are_not_written_into(cell):
    values, mask = arrays(cell), random_mask()
    before = [a.copy() for a in values]
    leaves = [md.tensor(a, requires_grad=True) for a in values]
    outputs, last = cell.fused(*leaves, mask, (False, True))
    shown = outputs.numpy().copy(), last.numpy().copy()
    md.grad(weighted((outputs, last)), leaves)
    for a, leaf in zip(before, leaves, strict=True):
        np.testing.assert_array_equal(a, leaf.numpy())
    np.testing.assert_array_equal(shown[0], outputs.numpy())
    np.testing.assert_array_equal(shown[1], last.numpy())


@EACH
def test_no_waiting_for_the_device(cell):
    """On the stand-in for CuPy: no synchronisation, and the same numbers."""
    values, mask = arrays(cell), random_mask()
    leaves = [md.tensor(a, requires_grad=True, device="strict") for a in values]
    with strict.forbid_sync():
        loss = weighted_there(cell.fused(*leaves, to_device(mask, "strict"), (False, True)))
        gradients = md.grad(loss, leaves)
    assert {g.device for g in gradients} == {"strict"}
    here = [md.tensor(a, requires_grad=True) for a in values]
    outputs = cell.fused(*here, mask, (False, True))
    expected = md.grad(weighted_there(outputs), here)
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-12)


def weighted_there(outputs):
    return sum((y * y * 0.5 + y).sum() for y in outputs)


@EACH
def test_directions_do_not_see_each_other(cell):
    values, mask = arrays(cell), random_mask()
    both, last = cell.fused(*values, mask, (False, True))
    for d, backwards in enumerate((False, True)):
        x, *weights, state = values
        own = [w[d : d + 1] for w in weights]
        one, end = cell.fused(x, *own, state[:, d : d + 1], mask, (backwards,))
        np.testing.assert_array_equal(both[:, :, d], one[:, :, 0])
        np.testing.assert_array_equal(last[:, d], end[:, 0])


def test_a_state_for_one_direction_alone():
    x, kernel, recurrent_kernel, bias, state = arrays(LSTM)
    weights = [(kernel[d], recurrent_kernel[d], bias[d]) for d in range(2)]
    given = Direction(weights[0], (state[0, 0], state[1, 0]))
    _, ends = scan(LSTM, x, [given, Direction(weights[1], None, True)])
    _, h, c = recurrent.lstm(x, *weights[1], reverse=True)
    np.testing.assert_array_equal(unwrapped(ends[1][0]), unwrapped(h))
    np.testing.assert_array_equal(unwrapped(ends[1][1]), unwrapped(c))


def unwrapped(x):
    return x.numpy() if isinstance(x, md.Tensor) else x
