"""Activation layers against PyTorch and by hand."""

import numpy as np
import pytest

import minidl as md
from minidl.errors import ShapeError
from minidl.functional import activation
from minidl.layers import (
    ELU,
    Activation,
    ActivityRegularization,
    Identity,
    Lambda,
    LeakyReLU,
    PReLU,
    ReLU,
    Softmax,
)

x = np.linspace(-8, 8, 41, dtype=np.float32).reshape(1, 41)
NAMES = {
    "glu": lambda F: lambda t: F.glu(t[:, :40]),
    "hard_sigmoid": lambda F: F.hardsigmoid,
    "hard_silu": lambda F: F.hardswish,
    "hard_tanh": lambda F: F.hardtanh,
    "log_sigmoid": lambda F: F.logsigmoid,
    "mish": lambda F: F.mish,
    "relu6": lambda F: F.relu6,
    "selu": lambda F: F.selu,
    "softsign": lambda F: F.softsign,
}


@pytest.mark.parametrize("name", NAMES)
def test_by_name_as_in_pytorch(name):
    torch = pytest.importorskip("torch")
    ours, theirs = md.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    out = Activation(name)(ours[:, :40] if name == "glu" else ours)
    expected = NAMES[name](torch.nn.functional)(theirs)
    np.testing.assert_allclose(out.numpy(), expected.detach().numpy(), rtol=2e-5, atol=1e-6)
    md.sum(out).backward()
    expected.sum().backward()
    smooth = ~np.isin(x, [-3, -1, 0, 1, 3, 6])  # at kinks conventions differ
    np.testing.assert_allclose(
        ours.grad.numpy()[smooth], theirs.grad.numpy()[smooth], rtol=2e-5, atol=1e-6
    )


def test_synonyms_and_unknown_names():
    assert activation("swish") is md.silu and activation("exponential") is md.exp
    assert activation("hard_swish") is md.hard_silu
    with pytest.raises(ValueError, match=r"'reul' is unknown; expected one of .*relu"):
        Activation("reul")


def test_glu_wants_two_halves():
    assert md.glu(np.zeros((4, 3)), axis=0).shape == (2, 3)
    with pytest.raises(ShapeError, match="even number of entries along axis 1"):
        md.glu(np.zeros((4, 3)))


def test_log_sigmoid_does_not_underflow():
    assert md.log_sigmoid(np.float32([-200.0, 200.0])).tolist() == pytest.approx([-200, 0])


def test_relu_has_three_corners():
    values = np.array([-2.0, 0.5, 1.5, 9.0])
    assert ReLU(3.0, 0.1, 1.0)(values).tolist() == pytest.approx([-0.3, -0.05, 1.5, 3.0])
    assert ReLU()(values).tolist() == [0, 0.5, 1.5, 9]
    assert LeakyReLU(0.5)(values).tolist() == [-1, 0.5, 1.5, 9]
    np.testing.assert_allclose(ELU(2.0)(values)[0], 2 * np.expm1(-2.0))


def test_prelu_has_a_slope_for_each_channel():
    layer = PReLU("ones", shared_axes=(1,), input_size=3)
    assert layer.alpha.shape == (1, 3)
    layer.alpha.assign_([[0.0, 0.5, 1.0]])
    assert layer(-np.ones((1, 2, 3), np.float32)).numpy().tolist() == [[[0, -0.5, -1]] * 2]
    unshared = PReLU()
    unshared(np.ones((4, 2, 3), np.float32))
    assert unshared.alpha.shape == (2, 3)
    with pytest.raises(ValueError, match="shared_axes: expected axes from 1"):
        PReLU(shared_axes=(-2,))


def test_softmax_of_what_is_kept(device):
    scores = md.tensor([[1.0, 2.0, np.nan], [0.0, 0.0, 0.0]], requires_grad=True, device=device)
    mask = md.backend.to_device(np.array([[True, True, False], [False] * 3]), device)
    out = Softmax()(scores, mask)
    np.testing.assert_allclose(out.numpy(), [[0.26894143, 0.73105857, 0], [0, 0, 0]], rtol=1e-6)
    md.sum(out * out).backward()
    assert np.isfinite(scores.grad.numpy()).all() and not scores.grad.numpy()[1].any()


def test_functions_as_layers():
    assert Lambda(lambda a, b: a - b)(3, 1) == 2
    values = md.tensor([1.0])
    assert Identity()(values) is values


def test_activity_regularization_is_a_mean_over_items():
    layer, values = ActivityRegularization(0.5, 0.1), md.tensor([[1.0, -2.0], [0.0, 1.0]])
    assert layer(values) is values
    assert [float(v) for v in layer.losses()] == pytest.approx([(0.5 * 4 + 0.1 * 6) / 2])
