"""Recurrent layers: names, states, steps, both directions, stacks, and that they learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.errors import BuildError, ShapeError
from minidl.functional import recurrent
from minidl.layers import GRU, LSTM, Bidirectional, SimpleRNN, StackedRNN
from minidl.testing import check_gradients, strict

LAYERS = pytest.mark.parametrize("kind", [SimpleRNN, GRU, LSTM])


def inputs_of(batch=3, time=5, inputs=4, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(batch, time, inputs)).astype(dtype)


MASK = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 1, 1]], bool)


# --- Parameters -----------------------------------------------------------------------------------


@LAYERS
def test_parameters_are_named_and_laid_out_as_in_keras(kind):
    layer = kind(6)
    with pytest.raises(BuildError):
        layer.parameters()
    layer(inputs_of())
    width = {SimpleRNN: 6, GRU: 18, LSTM: 24}[kind]
    shapes = {name: p.shape for name, p in layer.named_parameters()}
    bias = (2, width) if kind is GRU else (width,)
    assert shapes == {"kernel": (4, width), "recurrent_kernel": (6, width), "bias": bias}
    assert [name for name, _ in kind(6, use_bias=False, input_size=4).named_parameters()] == [
        "kernel",
        "recurrent_kernel",
    ]


def test_first_values():
    layer = LSTM(6, input_size=4)
    assert layer.bias.tolist() == [0] * 6 + [1] * 6 + [0] * 12
    rows = layer.recurrent_kernel.numpy()
    np.testing.assert_allclose(rows @ rows.T, np.eye(6), atol=1e-5)
    assert not LSTM(6, unit_forget_bias=False, input_size=4).bias.numpy().any()


def test_names_of_a_model():
    model = StackedRNN([Bidirectional(LSTM(2, return_sequences=True)), GRU(3)])
    model(inputs_of(), mask=MASK)
    parts = ("kernel", "recurrent_kernel", "bias")
    ways = ("0.forward_layer", "0.backward_layer", "1")
    assert list(model.state_dict()) == [f"{way}.{part}" for way in ways for part in parts]
    other = StackedRNN([Bidirectional(LSTM(2, return_sequences=True)), GRU(3)])
    other(inputs_of())
    other.load_state_dict(model.state_dict())
    same = other(inputs_of(), mask=MASK).numpy()
    np.testing.assert_array_equal(same, model(inputs_of(), mask=MASK).numpy())


# --- Outputs and states ---------------------------------------------------------------------------


@LAYERS
@pytest.mark.parametrize("backwards", [False, True])
def test_outputs_and_states(kind, backwards):
    layer = kind(6, True, True, go_backwards=backwards)
    outputs, *state = layer(inputs_of(), mask=MASK)
    assert outputs.shape == (3, 5, 6)
    last = outputs.numpy()[:, 0 if backwards else -1]
    np.testing.assert_array_equal(state[0].numpy()[0], last[0])
    layer.return_sequences = layer.return_state = False
    np.testing.assert_array_equal(layer(inputs_of(), mask=MASK).numpy(), state[0].numpy())
    again = layer(inputs_of(), mask=MASK, initial_state=state).numpy()
    np.testing.assert_array_equal(again[1], state[0].numpy()[1])  # an empty row
    assert np.abs(again[0] - state[0].numpy()[0]).max() > 1e-3


@LAYERS
def test_steps_are_the_sequence(kind):
    layer = kind(6, return_sequences=True, return_state=True)
    x, state = inputs_of(), None
    for t in range(5):  # built by the first step
        output, state = layer.step(x[:, t], state)
        outputs, *last = layer(x[:, : t + 1])
        np.testing.assert_allclose(output.numpy(), outputs.numpy()[:, -1], atol=1e-6)
        for ours, theirs in zip(state, last, strict=True):
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-6)


def test_a_state_of_one_array_needs_no_tuple():
    layer, h = GRU(6), np.ones((3, 6), np.float32)
    one = layer(inputs_of(), initial_state=h).numpy()
    np.testing.assert_array_equal(one, layer(inputs_of(), initial_state=[h]).numpy())
    with pytest.raises(ShapeError, match=r"LSTM: initial_state: expected \(h, c\), got 1"):
        LSTM(6)(inputs_of(), initial_state=h)


# --- Both directions ------------------------------------------------------------------------------


@LAYERS
@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave", None])
def test_bidirectional_is_its_layers(kind, mode, sequences):
    layer = Bidirectional(kind(6, return_sequences=sequences), merge_mode=mode, input_size=4)
    found = layer(inputs_of(), mask=MASK)
    there = layer.forward_layer(inputs_of(), mask=MASK).numpy()
    back = layer.backward_layer(inputs_of(), mask=MASK).numpy()
    if mode is None:
        np.testing.assert_array_equal(found[0].numpy(), there)
        np.testing.assert_array_equal(found[1].numpy(), back)
        return
    merged = {
        "concat": np.concatenate([there, back], axis=-1),
        "sum": there + back,
        "mul": there * back,
        "ave": (there + back) / 2,
    }[mode]
    np.testing.assert_allclose(found.numpy(), merged, atol=1e-7)


def test_bidirectional_states_come_out_as_they_go_in():
    layer = Bidirectional(LSTM(6, return_state=True))
    _, *state = layer(inputs_of())
    assert [h.shape for h in state] == [(3, 6)] * 4
    empty = np.zeros((3, 5), bool)
    _, *again = layer(inputs_of(), mask=empty, initial_state=state)
    for ours, theirs in zip(again, state, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_the_twin_has_its_own_weights_and_the_other_way():
    layer = Bidirectional(LSTM(3, go_backwards=True, use_bias=False, input_size=4))
    assert layer.built and layer.forward_layer.go_backwards
    assert not layer.backward_layer.go_backwards and layer.backward_layer.bias is None
    first, second = (p.kernel.numpy() for p in (layer.forward_layer, layer.backward_layer))
    assert np.abs(first - second).max() > 0.01
    assert not Bidirectional(
        LSTM(3, unit_forget_bias=False, input_size=4)
    ).backward_layer.bias.any()


# --- Stacks ---------------------------------------------------------------------------------------


def stack(state=False):
    layers = [LSTM(3, True, state), GRU(2, True, state)]
    return StackedRNN(layers)


def test_padding_never_matters_to_a_stack():
    model = StackedRNN([Bidirectional(LSTM(3, return_sequences=True)), Bidirectional(GRU(2, True))])
    short = inputs_of(time=3)
    expected = model(short).numpy()
    for places in ([0, 1, 2], [2, 3, 4], [0, 2, 4]):
        x, mask = np.full((3, 5, 4), 7.0, np.float32), np.zeros((3, 5), bool)
        x[:, places], mask[:, places] = short, True
        found = model(x, mask=mask).numpy()
        np.testing.assert_allclose(found[:, places], expected, atol=1e-6)


def test_the_mask_goes_to_each_layer():
    model = stack()
    found = model(inputs_of(), mask=MASK).numpy()
    by_hand = model[1](model[0](inputs_of(), mask=MASK), mask=MASK).numpy()
    np.testing.assert_array_equal(found, by_hand)
    assert len(model) == 2


def test_steps_of_a_stack_are_the_sequence():
    model, x, states = stack(state=True), inputs_of(), None
    outputs, last = model(x)
    for t in range(5):
        output, states = model.step(x[:, t], states)
        np.testing.assert_allclose(output.numpy(), outputs.numpy()[:, t], atol=1e-6)
    for ours, theirs in zip(states, last, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)
    again, _ = model(x, initial_state=last)
    carried, _ = model.step(x[:, 0], states)
    np.testing.assert_allclose(again.numpy()[:, 0], carried.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Bidirectional(md.layers.Dense(3)), TypeError, "Bidirectional: layer: expected"),
        (lambda: Bidirectional(GRU(2), merge_mode="add"), ValueError, "merge_mode: expected"),
        (lambda: StackedRNN([GRU(2), GRU(2)]), ValueError, r"layers\[0\]: expected return_seq"),
        (lambda: StackedRNN([md.layers.Dense(2)]), TypeError, r"layers\[0\]: expected a recurr"),
        (lambda: StackedRNN([GRU(2, True), GRU(2, True, True)]), ValueError, "return_state=True"),
        (lambda: stack()(inputs_of(), initial_state=[None]), ValueError, "expected 2, one a layer"),
        (
            lambda: StackedRNN([Bidirectional(GRU(2))]).step(inputs_of()[:, 0]),
            TypeError,
            "needs the whole sequence",
        ),
        (
            lambda: StackedRNN([Bidirectional(GRU(2, return_sequences=True), merge_mode=None)]),
            ValueError,
            "expected both directions merged",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- Gradients, devices, learning -----------------------------------------------------------------


@LAYERS
@given(st.data())
def test_gradients_to_second_order(kind, data):
    batch, time = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    mask = np.random.default_rng(data.draw(st.integers(0, 99))).random((batch, time)) < 0.6
    mask[0] = data.draw(st.booleans())
    x = inputs_of(batch, time, 2, np.float64)
    model = StackedRNN([Bidirectional(kind(2, return_sequences=True)), kind(2, True, True)][:1])
    with md.default_dtype("float64"):
        model(x, mask=mask)
    check_gradients(lambda x: model(x, mask=mask), x, parameters=model, order=2)


@LAYERS
def test_no_waiting_for_the_device(kind):
    layer = Bidirectional(kind(3, return_sequences=True, return_state=True))
    expected = [y.numpy() for y in layer(inputs_of(), mask=MASK)]
    layer.to("strict")
    x, mask = (md.tensor(a, device="strict") for a in (inputs_of(), MASK))
    with strict.forbid_sync():
        found = layer(x, mask=mask)
        sum((y * y).sum() for y in found).backward()
        layer.forward_layer.step(x[:, 0])
    assert {p.grad.device for p in layer.parameters()} == {"strict"}
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-6)


def test_it_remembers_the_first_sign():
    """The sign of the first input, after eight steps of noise, in rows of several lengths."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(64, 8, 1)).astype(np.float32)
    mask = np.arange(8) < draw.integers(2, 9, 64)[:, None]
    target = (x[:, 0] > 0).astype(np.float32)
    model = Head(LSTM(8))
    model(x, mask)
    optimizer = md.optimizers.Adam(model, 0.05)
    loss = md.losses.BinaryCrossentropy(from_logits=True)
    batches = [((x, mask), target)] * 60
    history = md.fit(model, loss, optimizer, batches, verbose=False)
    assert history["loss"][0] < 0.35  # the mean over the way
    assert loss(target, model(x, mask)).item() < 0.05


class Head(md.layers.Layer):
    def __init__(self, rnn):
        self.rnn, self.dense = rnn, md.layers.Dense(1)

    def call(self, x, mask):
        return self.dense(self.rnn(x, mask=mask))


def test_one_step_of_the_functions_is_public():
    layer = LSTM(3, input_size=4)
    x = inputs_of()[:, 0]
    state = (np.zeros((3, 3), np.float32),) * 2
    h, c = recurrent.lstm_step(x, state, layer.kernel, layer.recurrent_kernel, layer.bias)
    output, after = layer.step(x)
    np.testing.assert_array_equal(output.numpy(), h.numpy())
    np.testing.assert_array_equal(after[1].numpy(), c.numpy())
