"""Recurrent nets as functions: against PyTorch, against padding, and their errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.errors import DtypeError, ShapeError
from minidl.functional import recurrent
from minidl.testing import check_gradients

BATCH, TIME, INPUTS, UNITS = 4, 7, 3, 5
FUNCTIONS = {
    "simple_rnn": (recurrent.simple_rnn, recurrent.SIMPLE_RNN, "RNN"),
    "gru": (recurrent.gru, recurrent.GRU, "GRU"),
    "lstm": (recurrent.lstm, recurrent.LSTM, "LSTM"),
}
EACH = pytest.mark.parametrize("name", FUNCTIONS)
BOTH_WAYS = pytest.mark.parametrize("reverse", [False, True])


def weights_of(cell, inputs=INPUTS, units=UNITS, dtype=np.float64, seed=0):
    """kernel, recurrent_kernel, bias."""
    draw = np.random.default_rng(seed)
    width = cell.gates * units
    shapes = (inputs, width), (units, width), cell.bias_shape(units)
    return [draw.normal(size=shape).astype(dtype) * 0.6 for shape in shapes]


def inputs_of(batch=BATCH, time=TIME, dtype=np.float64, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, time, INPUTS)).astype(dtype)


def states_of(cell, dtype=np.float64, batch=BATCH):
    draw = np.random.default_rng(2)
    return tuple(draw.normal(size=(batch, UNITS)).astype(dtype) for _ in range(cell.states))


# --- Gradients ------------------------------------------------------------------------------------


@EACH
@given(st.data())
def test_gradients_to_second_order(name, data):
    """Of drawn sizes and masks, with an empty row, gaps and single steps among them."""
    function, cell, _ = FUNCTIONS[name]
    batch, time = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    units = data.draw(st.integers(1, 3))
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    mask = draw.random((batch, time)) < data.draw(st.sampled_from([0.0, 0.6, 1.0]))
    mask[0] = data.draw(st.booleans())
    reverse = data.draw(st.booleans())
    x = draw.normal(size=(batch, time, 2))
    state = [draw.normal(size=(batch, units)) for _ in range(cell.states)]

    def call(x, kernel, recurrent_kernel, bias, *state):
        return function(x, kernel, recurrent_kernel, bias, state, mask, reverse)

    check_gradients(call, x, *weights_of(cell, 2, units), *state, order=2)


# --- PyTorch --------------------------------------------------------------------------------------


def torch_twin(name, weights, units=UNITS, inputs=INPUTS, both=None):
    """PyTorch's module with our weights; `both`: the weights of the other direction."""
    torch = pytest.importorskip("torch")
    _, cell, kind = FUNCTIONS[name]
    module = getattr(torch.nn, kind)(
        inputs, units, batch_first=True, bidirectional=both is not None
    )
    state = {}
    for suffix, (kernel, recurrent_kernel, bias) in (("", weights), ("_reverse", both or weights)):
        if suffix and both is None:
            continue
        pairs = bias if cell.biases == 2 else (bias, np.zeros_like(bias))
        ours = {"weight_ih": kernel.T, "weight_hh": recurrent_kernel.T}
        ours |= {"bias_ih": pairs[0], "bias_hh": pairs[1]}
        for part, value in ours.items():
            state[f"{part}_l0{suffix}"] = torch.tensor(reordered(name, value))
    module.load_state_dict(state)
    return module


def reordered(name, rows):
    """Our gates' order to PyTorch's, and back: the GRU's z r n are r z n there."""
    if name != "gru":
        return np.ascontiguousarray(rows)
    z, r, n = np.split(rows, 3)
    return np.concatenate([r, z, n])


def torch_gradients(name, module, suffix=""):
    """PyTorch's gradients of the weights, as ours."""
    found = {p: getattr(module, f"{p}_l0{suffix}").grad.numpy() for p in
             ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}  # fmt: skip
    found = {p: reordered(name, g) for p, g in found.items()}
    one = found["bias_ih"]
    bias = np.stack([one, found["bias_hh"]]) if FUNCTIONS[name][1].biases == 2 else one
    return [found["weight_ih"].T, found["weight_hh"].T, bias]


def close(ours, theirs):
    """To 1e-5 of the largest entry."""
    ours = ours.numpy() if isinstance(ours, md.Tensor) else ours
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    scale = max(np.abs(theirs).max(initial=0.0), 1e-3)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale)


@EACH
def test_forwards_as_pytorch(name):
    torch = pytest.importorskip("torch")
    function, cell, _ = FUNCTIONS[name]
    weights = weights_of(cell, dtype=np.float32)
    x, states = inputs_of(dtype=np.float32), states_of(cell, np.float32)
    module = torch_twin(name, weights)
    theirs_x = torch.tensor(x, requires_grad=True)
    theirs_states = [torch.tensor(h[None], requires_grad=True) for h in states]
    start = tuple(theirs_states) if len(states) == 2 else theirs_states[0]
    expected, last = module(theirs_x, start)
    last = last if isinstance(last, tuple) else (last,)
    g = np.random.default_rng(3).normal(size=expected.shape).astype(np.float32)
    ((expected * torch.tensor(g)).sum() + sum((h * h).sum() for h in last)).backward()

    leaves = [md.tensor(a, requires_grad=True) for a in (x, *weights, *states)]
    out, *ends = function(*leaves[:4], leaves[4:])
    ((out * g).sum() + sum((h * h).sum() for h in ends)).backward()
    close(out, expected)
    for ours, theirs in zip(ends, last, strict=True):
        close(ours, theirs[0])
    gradients = [theirs_x.grad, *torch_gradients(name, module)]
    gradients += [h.grad[0] for h in theirs_states]
    for leaf, theirs in zip(leaves, gradients, strict=True):
        close(leaf.grad, theirs)


@EACH
def test_both_directions_of_packed_sequences_as_pytorch(name):
    """Right padding by our mask is PyTorch's packing; the states and the reversal too."""
    torch = pytest.importorskip("torch")
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    _, cell, _ = FUNCTIONS[name]
    there, back = (weights_of(cell, dtype=np.float32, seed=s) for s in (0, 5))
    x, lengths = inputs_of(dtype=np.float32), np.array([7, 1, 4, 6])
    mask = np.arange(TIME) < lengths[:, None]
    module = torch_twin(name, there, both=back)
    theirs_x = torch.tensor(x, requires_grad=True)
    packed = pack_padded_sequence(theirs_x, torch.tensor(lengths), True, enforce_sorted=False)
    expected, last = module(packed)
    expected, _ = pad_packed_sequence(expected, batch_first=True)
    last = last if isinstance(last, tuple) else (last,)
    g = np.random.default_rng(3).normal(size=expected.shape).astype(np.float32)
    ((expected * torch.tensor(g)).sum() + sum((h * h).sum() for h in last)).backward()

    leaves = [md.tensor(a, requires_grad=True) for a in (x, *there, *back)]
    ways = [
        recurrent.Direction(tuple(leaves[1:4])),
        recurrent.Direction(tuple(leaves[4:]), None, True),
    ]
    out, ends = recurrent.scan(cell, leaves[0], ways, mask)
    out = md.reshape(out, (BATCH, TIME, 2 * UNITS))
    ((out * g).sum() + sum((h * h).sum() for end in ends for h in end)).backward()
    close(out, expected)
    for d in range(2):
        for ours, theirs in zip(ends[d], last, strict=True):
            close(ours, theirs[d])
    gradients = [theirs_x.grad, *torch_gradients(name, module)]
    gradients += torch_gradients(name, module, "_reverse")
    for leaf, theirs in zip(leaves, gradients, strict=True):
        close(leaf.grad, theirs)


# --- Padding --------------------------------------------------------------------------------------


@EACH
@BOTH_WAYS
def test_padding_never_matters(name, reverse):
    """Left, right, and in between: outputs at real positions and states are those without it."""
    function, cell, _ = FUNCTIONS[name]
    weights, states = weights_of(cell), states_of(cell)
    short = inputs_of(time=4)
    expected, *last = function(short, *weights, states, reverse=reverse)
    for places in ([0, 1, 2, 3], [3, 4, 5, 6], [1, 2, 5, 6]):
        x, mask = np.full((BATCH, TIME, INPUTS), 9.0), np.zeros((BATCH, TIME), bool)
        x[:, places], mask[:, places] = short, True
        out, *ends = function(x, *weights, states, mask, reverse)
        np.testing.assert_allclose(np.asarray(out)[:, places], expected, atol=1e-12)
        assert not np.asarray(out)[~mask].any()
        for ours, theirs in zip(ends, last, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


@EACH
@BOTH_WAYS
def test_a_batch_is_its_items(name, reverse):
    function, cell, _ = FUNCTIONS[name]
    x, weights, states = inputs_of(), weights_of(cell), states_of(cell)
    mask = np.random.default_rng(4).random((BATCH, TIME)) < 0.7
    mask[1] = False
    out, *last = function(x, *weights, states, mask, reverse)
    for i in range(BATCH):
        own = tuple(h[i : i + 1] for h in states)
        one, *end = function(x[i : i + 1], *weights, own, mask[i : i + 1], reverse)
        np.testing.assert_allclose(one[0], out[i], atol=1e-13)
        for ours, theirs in zip(end, last, strict=True):
            np.testing.assert_allclose(ours[0], theirs[i], atol=1e-13)
    for h, start in zip(last, states, strict=True):
        np.testing.assert_array_equal(h[1], start[1])  # nothing is real: the state is as it was


@EACH
def test_reverse_is_the_turned_sequence(name):
    function, cell, _ = FUNCTIONS[name]
    x, weights = inputs_of(), weights_of(cell)
    out, *last = function(x, *weights, reverse=True)
    turned, *ends = function(x[:, ::-1], *weights)
    np.testing.assert_allclose(out, turned[:, ::-1], atol=1e-14)
    for ours, theirs in zip(last, ends, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-14)


@EACH
def test_two_halves_are_the_whole(name):
    """The last state of the first half is where the second starts."""
    function, cell, _ = FUNCTIONS[name]
    x, weights = inputs_of(), weights_of(cell)
    out, *last = function(x, *weights)
    first, *middle = function(x[:, :3], *weights)
    second, *end = function(x[:, 3:], *weights, middle)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), out, atol=1e-14)
    for ours, theirs in zip(end, last, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-14)


# --- Errors ---------------------------------------------------------------------------------------

KERNEL, RECURRENT, BIAS = weights_of(recurrent.LSTM)
X = inputs_of()
H = np.zeros((BATCH, UNITS))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X[0], KERNEL, RECURRENT), ShapeError, r"lstm: x: expected shape \(batch, time, inputs\)"),
        ((X.astype(int), KERNEL, RECURRENT), DtypeError, "lstm: x: expected floats, got int64"),
        (
            (X, KERNEL[:2], RECURRENT),
            ShapeError,
            r"kernel: expected shape \(3, 20\), got \(2, 20\)",
        ),
        ((X, KERNEL, RECURRENT[:4]), ShapeError, "recurrent_kernel: expected shape"),
        ((X, KERNEL, RECURRENT[0]), ShapeError, "recurrent_kernel: expected shape"),
        ((X, KERNEL, RECURRENT, BIAS[:5]), ShapeError, r"bias: expected shape \(20,\), got \(5,\)"),
        ((X, KERNEL, RECURRENT, BIAS, H), ShapeError, r"initial_state: expected \(h, c\)"),
        ((X, KERNEL, RECURRENT, BIAS, (H, H[:2])), ShapeError, "initial_state: c: expected shape"),
        ((X, KERNEL, RECURRENT, BIAS, None, X[:, :, 0]), DtypeError, "mask: expected booleans"),
        (
            (X, KERNEL, RECURRENT, BIAS, None, np.ones((4, 6), bool)),
            ShapeError,
            r"lstm: mask: expected shape \(4, 7\), got \(4, 6\)",
        ),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        recurrent.lstm(*arguments)
