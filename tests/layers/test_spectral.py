"""Spectral normalization: its kernel, its state, its gradients, and what it makes of a network."""

import copy
import threading

import numpy as np
import pytest

import minidl as md
from minidl import layers
from minidl.autodiff import replay
from minidl.backend import to_device
from minidl.errors import BuildError, ShapeError
from minidl.functional.spectral import as_matrix, conv_spectral_norm
from minidl.layers import (
    Conv1D,
    Conv1DTranspose,
    Conv2D,
    Conv2DTranspose,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Embedding,
    Flatten,
    SeparableConv2D,
    Sequential,
    SpectralNorm,
    SpectralNormalization,
)
from minidl.layers.spectral import called_with, linear_map
from minidl.testing import check_gradients, strict

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def top(matrix):
    return np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)[0]


def reshaped(kernel):
    return as_matrix(kernel).numpy()


def stretch(wrapped, shape):
    """The norm of the linear map that a wrapped layer is, by its dense matrix."""
    f = linear_map(wrapped.layer, wrapped._name, wrapped.normalized_kernel())
    rows = np.eye(int(np.prod(shape)), dtype=np.float32).reshape(-1, *shape)
    return top(f(md.tensor(rows)).numpy().reshape(len(rows), -1))


def clone(wrapped):
    """One of the same parameters and buffers that shares nothing."""
    return copy.deepcopy(wrapped)


# --- The kernel -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer, x",
    [
        (Dense(4, "tanh"), normal(2, 3, 6)),
        (Conv1D(4, 3, padding="same", activation="relu"), normal(2, 7, 3)),
        (Conv2D(4, 3, strides=2, groups=2), normal(2, 7, 6, 4)),
        (Conv2DTranspose(2, 3, strides=2), normal(2, 4, 5, 3)),
        (Embedding(7, 4), np.array([[0, 3], [6, 1]])),
        (layers.LSTM(3), normal(2, 4, 5)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_the_layer_sees_its_kernel_over_the_norm(layer, x):
    wrapped = SpectralNormalization(copy.deepcopy(layer), coefficient=0.5)
    plain = copy.deepcopy(layer)
    wrapped(x), plain(x)
    wrapped.iterate(300).eval()
    name = "embeddings" if isinstance(layer, Embedding) else "kernel"
    kernel = getattr(wrapped.layer, name)
    state = wrapped.layer.state_dict()
    state[name] = 0.5 * kernel.numpy() / top(reshaped(kernel))
    plain.load_state_dict(state)
    np.testing.assert_allclose(wrapped(x).numpy(), plain(x).numpy(), rtol=1e-4, atol=1e-5)
    assert abs(top(reshaped(wrapped.normalized_kernel())) - 0.5) < 5e-5
    assert abs(wrapped.sigma().item() / top(reshaped(kernel)) - 1) < 1e-4


@pytest.mark.parametrize(
    "layer, shape",
    [
        (Dense(4), (6,)),
        (Conv1D(4, 3, padding="same", dilation_rate=2), (8, 3)),
        (Conv1D(4, 3, strides=2, padding="causal", groups=2), (8, 2)),
        (Conv2D(3, 3, strides=2, padding="same", activation="relu"), (6, 6, 2)),
        (Conv1DTranspose(2, 3, strides=2), (5, 3)),
        (Conv2DTranspose(2, 3, strides=2, padding="same", groups=2), (3, 4, 2)),
        (DepthwiseConv2D(3, padding="same", depth_multiplier=2), (5, 5, 3)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, layers.Layer) else "",
)
def test_the_operator_has_the_norm_wanted(layer, shape):
    wrapped = SpectralNormalization(copy.deepcopy(layer), method="operator", coefficient=2.0)
    wrapped(normal(2, *shape))
    wrapped.layer.kernel.assign_(rng.normal(1, 1, wrapped.layer.kernel.shape))
    wrapped.iterate(300)
    assert abs(stretch(wrapped, shape) - 2) < 1e-3
    linear = linear_map(wrapped.layer, "kernel", wrapped.normalized_kernel())
    x = md.tensor(normal(2, *shape))
    np.testing.assert_allclose(linear(-x).numpy(), -linear(x).numpy(), atol=1e-6)


@pytest.mark.parametrize("layer", [DepthwiseConv2D(3), Conv2D(2, 3, groups=2)])
def test_a_group_that_becomes_the_largest_is_found(layer):
    """However long it was another: the groups do not mix, each iterates by itself."""
    wrapped = SpectralNorm(copy.deepcopy(layer), method="operator")
    wrapped(normal(1, 5, 5, 2))
    kernel = wrapped.layer.kernel
    values = np.ones(kernel.shape)
    group = (..., slice(1), slice(None)) if isinstance(layer, DepthwiseConv2D) else (..., slice(1))
    values[group] = 0.1
    kernel.assign_(values)
    wrapped.iterate(500)
    values[group] = 3.0
    kernel.assign_(values)
    wrapped.iterate(20)
    assert abs(stretch(wrapped, (5, 5, 2)) - 1) < 1e-3


def test_the_operator_of_a_separable_convolution_is_all_of_it():
    layer = SeparableConv2D(3, 3, padding="same")
    wrapped = SpectralNorm(layer, method="operator", weight="pointwise_kernel")
    wrapped(normal(2, 5, 5, 2))
    for p in wrapped.parameters():
        p.assign_(rng.normal(1, 1, p.shape))
    wrapped.iterate(300)
    assert abs(stretch(wrapped, (5, 5, 2)) - 1) < 1e-3


def test_reshaped_leaves_a_convolution_that_stretches():
    wrapped = SpectralNorm(Conv2D(1, 3, padding="same", kernel_initializer="ones"))
    wrapped(normal(1, 8, 8, 1))
    assert abs(wrapped.sigma().item() - 3) < 1e-5 and stretch(wrapped, (8, 8, 1)) > 2.5


def test_zeros_stay_and_can_be_left(device):
    x = md.tensor(to_device(normal(5, 3), device))
    wrapped = SpectralNorm(Dense(2, kernel_initializer="zeros"))
    model = Sequential([wrapped])
    assert not model(x).numpy().any()
    sgd = md.optimizers.SGD(model, 0.1)
    for _ in range(3):
        sgd.zero_grad()
        md.mean(md.square(model(x) - 1)).backward()
        sgd.step()
    assert wrapped.layer.kernel.numpy().any() and np.isfinite(model(x).numpy()).all()
    assert abs(top(wrapped.normalized_kernel().numpy()) - 1) < 1e-2


@pytest.mark.parametrize("units, inputs", [(1, 5), (5, 1), (1, 1)])
def test_one_row_or_column_is_exact_at_once(units, inputs):
    wrapped = SpectralNorm(Dense(units, input_size=inputs), warmup_iterations=1)
    kernel = wrapped.layer.kernel.numpy()
    assert abs(wrapped.sigma().item() - np.linalg.norm(kernel)) < 1e-6


# --- State ----------------------------------------------------------------------------------------


def test_names_and_building():
    wrapped = SpectralNormalization(Dense(4))
    with pytest.raises(BuildError, match="SpectralNormalization, layer"):
        wrapped.parameters()
    wrapped(normal(2, 3))
    assert list(wrapped.state_dict()) == ["layer.kernel", "layer.bias", "u", "v"]
    assert wrapped.parameters() == [wrapped.layer.kernel, wrapped.layer.bias]
    assert wrapped.u.shape == (3,) and wrapped.v.shape == (4,)
    assert SpectralNorm(Dense(4, input_size=3)).built and SpectralNorm(Embedding(3, 2)).built
    assert not SpectralNorm(Dense(4, input_size=3), method="operator").built
    assert layers.SpectralNorm is SpectralNormalization


def test_initial_weights_are_those_without_it():
    """The vectors start where no random number is drawn."""
    kernels = []
    for wrap in (SpectralNorm, lambda layer: layer):
        md.seed(3)
        model = Sequential([wrap(Dense(4)), wrap(Dense(3))])
        model(np.ones((1, 2), np.float32))
        kernels.append([p.numpy() for p in model.parameters()])
    for a, b in zip(*kernels, strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_follows_and_evaluation_leaves():
    wrapped, x = SpectralNorm(Dense(6, input_size=8), warmup_iterations=1), normal(3, 8)
    exact = top(wrapped.layer.kernel.numpy())
    before = wrapped.sigma().item()
    u, v = wrapped.u, wrapped.v
    values = u.numpy().copy(), v.numpy().copy()
    with replay():
        wrapped(x)
    wrapped.eval()
    out = wrapped(x)
    assert wrapped.u is u and wrapped.v is v
    np.testing.assert_array_equal(out.numpy(), wrapped(x).numpy())
    wrapped.train()
    for _ in range(60):
        wrapped(x)
    assert wrapped.u is not u and wrapped.v is not v
    np.testing.assert_array_equal(u.numpy(), values[0])  # rebound, not written
    np.testing.assert_array_equal(v.numpy(), values[1])
    assert before < wrapped.sigma().item() <= exact * (1 + 1e-6)
    assert abs(wrapped.sigma().item() / exact - 1) < 1e-3


def test_power_iterations_a_call():
    one = SpectralNorm(Dense(6, input_size=8), warmup_iterations=2)
    three, x = clone(one), normal(1, 8)
    three.power_iterations = 3
    for _ in range(3):
        one(x)
    three(x)
    np.testing.assert_allclose(one.u.numpy(), three.u.numpy(), rtol=1e-6)


def test_recompute_updates_once_and_repeats_itself():
    wrapped, x = SpectralNorm(Dense(4, input_size=5), warmup_iterations=1), normal(3, 5)
    other = clone(wrapped)
    md.sum(md.square(md.recompute(wrapped, x))).backward()
    md.sum(md.square(other(x))).backward()
    np.testing.assert_array_equal(wrapped.u.numpy(), other.u.numpy())
    np.testing.assert_allclose(
        wrapped.layer.kernel.grad.numpy(), other.layer.kernel.grad.numpy(), rtol=1e-5, atol=1e-6
    )


def test_moving_casting_copying_saving(tmp_path):
    model = Sequential([SpectralNorm(Dense(4, input_size=3)), SpectralNorm(Dense(2))])
    x = normal(5, 3)
    model(x)
    model.eval()
    expected = model(x).numpy()
    twin = copy.deepcopy(model).to("strict")
    assert {t.device for _, t in twin.named_buffers()} == {"strict"}
    np.testing.assert_allclose(twin(to_device(x, "strict")).numpy(), expected, rtol=1e-5)
    wide = copy.deepcopy(model).astype("float64")
    assert wide(x.astype(float)).dtype == np.float64
    np.testing.assert_allclose(wide(x.astype(float)).numpy(), expected, rtol=1e-4, atol=1e-6)
    half = copy.deepcopy(model).astype("float16").train()
    assert half(x.astype(np.float16)).dtype == np.float16
    np.testing.assert_allclose(half.eval()(x.astype(np.float16)).numpy(), expected, atol=0.02)
    conv = SpectralNorm(Conv1D(2, 3), method="operator")
    conv(normal(1, 6, 2))
    assert conv.astype("float16")(normal(1, 6, 2).astype(np.float16)).dtype == np.float16
    md.save(tmp_path / "m.npz", model=model)
    other = Sequential([SpectralNorm(Dense(4, input_size=3)), SpectralNorm(Dense(2, input_size=4))])
    md.load(tmp_path / "m.npz", model=other)
    np.testing.assert_array_equal(other.eval()(x).numpy(), expected)


def test_resume_is_bit_exact(tmp_path):
    x, y = normal(24, 3), normal(24, 1)
    path = str(tmp_path / "run.npz")

    def fresh():
        md.seed(5)
        model = Sequential([SpectralNorm(Dense(6, "relu", input_size=3)), Dense(1, input_size=6)])
        return model, md.optimizers.Adam(model, 0.01), md.data.Batches(x, y, batch_size=8)

    def run(epochs, **options):
        model, optimizer, data = fresh()
        loss = md.losses.MeanSquaredError()
        quiet = {"verbose": False, "allocator": False, "threads": 1}
        md.fit(model, loss, optimizer, data, epochs=epochs, **quiet, **options)
        return model.state_dict()

    whole = run(4)
    run(2, callbacks=[md.callbacks.Checkpoint(path)])
    for name, value in run(4, callbacks=[md.callbacks.Checkpoint(path)], resume=path).items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


# --- The layer inside keeps what is its own -------------------------------------------------------


def test_a_tied_kernel_is_normalized_where_it_is_wrapped():
    plain, wrapped = Dense(3, input_size=3), SpectralNorm(Dense(3, input_size=3))
    wrapped.layer.kernel = plain.kernel
    wrapped.iterate(200)
    model, x = Sequential([plain, wrapped]), normal(4, 3)
    assert [n for n, _ in model.named_parameters()] == ["0.kernel", "0.bias", "1.layer.bias"]
    md.sum(md.square(model(x))).backward()
    kernel = plain.kernel.numpy()
    expected = x @ kernel @ kernel / top(kernel)
    np.testing.assert_allclose(model.eval()(x).numpy(), expected, rtol=1e-3, atol=1e-4)
    assert plain.kernel.grad is not None


def test_regularizers_and_constraints_see_the_parameter():
    inner = Dense(
        3, kernel_regularizer=md.regularizers.L2(0.5), activity_regularizer="l2", input_size=2
    )
    wrapped = SpectralNorm(inner)
    out = wrapped(normal(4, 2))
    of_output, of_kernel = wrapped.losses()
    assert abs(of_kernel.item() - 0.5 * np.square(inner.kernel.numpy()).sum()) < 1e-5
    assert abs(of_output.item() - 0.01 * np.square(out.numpy()).sum() / 4) < 1e-6
    assert len(wrapped.losses()) == 1  # that of the output was of the call


def test_what_the_call_changes_inside_is_kept():
    class Counting(Dense):
        calls = 0

        def call(self, x):
            self.calls += 1
            self.last = super().call(x)
            self.add_loss(md.sum(self.last))
            return self.last

    wrapped = SpectralNorm(Counting(2, input_size=2))
    kernel = wrapped.layer.kernel
    out = wrapped(normal(1, 2))
    assert wrapped.layer.calls == 1 and wrapped.layer.last is out
    assert wrapped.layer.kernel is kernel and len(wrapped.losses()) == 1


def test_an_exception_leaves_the_kernel_and_names_the_layer():
    model = Sequential([SpectralNorm(Dense(4, input_size=3))])
    kernel = model[0].layer.kernel
    with pytest.raises(ShapeError) as caught:
        model(normal(2, 5))
    assert caught.value.__notes__ == ["in layer 0.layer (Dense) of Sequential, given (2, 5)"]
    assert model[0].layer.kernel is kernel and model.parameters()[0] is kernel


def test_another_thread_never_sees_it_without_its_parameter():
    inside, seen = threading.Event(), threading.Event()

    class Slow(Dense):
        def call(self, x):
            inside.set()
            assert seen.wait(10)
            return super().call(x)

    wrapped, x = SpectralNorm(Slow(2, input_size=2)), normal(1, 2)
    wrapped.eval()
    results = []
    thread = threading.Thread(target=lambda: results.append(wrapped(x)))
    thread.start()
    assert inside.wait(10)
    names = [name for name, _ in wrapped.named_parameters()]
    seen.set()
    thread.join()
    assert names == ["layer.kernel", "layer.bias"] and len(results) == 1


def test_called_with_any_attribute():
    dense, x = Dense(2, input_size=2), normal(3, 2)
    kernel = md.tensor(np.eye(2), dtype="float32")
    np.testing.assert_allclose(called_with(dense, {"kernel": kernel}, (x,), {}).numpy(), x)


def test_freezing():
    wrapped = SpectralNorm(Dense(2, input_size=2))
    wrapped.trainable = False
    assert not wrapped(normal(1, 2)).requires_grad


def test_refusals():
    with pytest.raises(TypeError, match="expected one with a kernel or embeddings, got Dropout"):
        SpectralNorm(Dropout(0.5))
    with pytest.raises(TypeError, match="expected one with a gain, got Dense"):
        SpectralNorm(Dense(2, input_size=2), weight="gain")
    with pytest.raises(ValueError, match="coefficient: expected > 0"):
        SpectralNorm(Dense(2), coefficient=0)
    for name in ("power_iterations", "warmup_iterations"):
        with pytest.raises(ValueError, match=f"{name}: expected 1 or more"):
            SpectralNorm(Dense(2), **{name: 0})
        with pytest.raises(TypeError, match=f"{name}: expected an integer, got 1.5"):
            SpectralNorm(Dense(2), **{name: 1.5})
    with pytest.raises(ValueError, match="'reshaped' or 'operator', got 'exact'"):
        SpectralNorm(Dense(2), method="exact")
    with pytest.raises(TypeError, match="expected a convolution or Dense, got Embedding"):
        SpectralNorm(Embedding(3, 2), method="operator")(np.array([1]))
    with pytest.raises(ShapeError, match="call the layer once on a batch"):
        SpectralNorm(Conv1D(2, 3), method="operator").build((None, None, 4))


# --- Gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["reshaped", "operator"])
@pytest.mark.parametrize(
    "layer, shape",
    [
        (Dense(3, "tanh"), (2, 4)),
        (Conv1D(2, 2, strides=2), (2, 5, 2)),
        (Conv2D(2, 2), (1, 3, 3, 1)),
    ],
    ids=["Dense", "Conv1D", "Conv2D"],
)
def test_gradients(layer, shape, method, device):
    x = rng.normal(size=shape)
    with md.device(device):
        wrapped = SpectralNorm(copy.deepcopy(layer), method=method, warmup_iterations=2)
        wrapped(to_device(x.astype(np.float32), device))
    check_gradients(wrapped, x, parameters=wrapped, directions=1, dtypes=False, device=device)


def critic():
    return Sequential(
        [
            SpectralNorm(Conv2D(2, 3, strides=2, padding="same"), warmup_iterations=1),
            layers.Activation("tanh"),
            Flatten(),
            SpectralNorm(Dense(1), warmup_iterations=1),
        ]
    )


def test_real_minus_fake_then_one_backward():
    """Each call keeps the vectors that it had: the gradient is that of the loss with both fixed."""
    model, real, fake = critic(), rng.normal(size=(3, 4, 4, 1)), rng.normal(size=(3, 4, 4, 1))
    model(real.astype(np.float32))
    model.astype("float64")
    wrappers, seen = [model[0], model[3]], []
    for inputs in (real, fake):
        seen.append([inputs, model(md.tensor(inputs)), [(w.u, w.v) for w in wrappers]])
    assert not np.allclose(seen[0][2][0][0].numpy(), seen[1][2][0][0].numpy(), atol=1e-3)
    loss = md.mean(seen[0][1]) - md.mean(seen[1][1])
    loss.backward()

    def again():
        values = []
        model.eval()
        for inputs, _, vectors in seen:
            for wrapper, (u, v) in zip(wrappers, vectors, strict=True):
                wrapper.u, wrapper.v = u, v
            values.append(md.mean(model(md.tensor(inputs))).item())
        return values[0] - values[1]

    assert abs(again() - loss.item()) < 1e-12
    for p in model.parameters():
        before, direction = p.numpy().copy(), rng.normal(size=p.shape)
        p_grad, values = p.grad.numpy().copy(), []
        for step in (1e-6, -1e-6):
            p.assign_(before + step * direction)
            values.append(again())
        p.assign_(before)
        assert abs((values[0] - values[1]) / 2e-6 - (p_grad * direction).sum()) < 1e-8


def test_gradient_penalty_through_it():
    """Third order in places: the checker's second over a penalty's first."""
    model = critic()
    x = rng.normal(size=(2, 4, 4, 1))
    model(x.astype(np.float32))

    def penalty(x):
        with md.enable_grad():
            (g,) = md.grad(md.sum(model(x)), [x], create_graph=True)
        return md.mean(md.square(md.norm(md.reshape(g, (2, -1)), axis=1) - 1))

    check_gradients(penalty, x, parameters=model, directions=1, dtypes=False)


def test_training_waits_for_nothing():
    with md.device("strict"):
        model = critic()
        real, fake = (md.tensor(normal(3, 4, 4, 1)) for _ in range(2))
        operator = SpectralNorm(Conv2D(2, 3), method="operator")
        model(real), operator(real)
        adam = md.optimizers.Adam([*model.parameters(), *operator.parameters()])
        with strict.forbid_sync():
            for _ in range(2):
                adam.zero_grad()
                loss = md.mean(model(fake)) - md.mean(model(real)) + md.mean(operator(real))
                loss.backward()
                adam.step()


# --- PyTorch --------------------------------------------------------------------------------------


def torch_pair(name):
    """(ours, theirs, inputs for both, from their matrices' vectors to ours)."""
    torch = pytest.importorskip("torch")
    nn, sn = torch.nn, torch.nn.utils.parametrizations.spectral_norm
    torch.manual_seed(0)
    if name == "Linear":
        theirs, ours, x = nn.Linear(6, 4), Dense(4, input_size=6), normal(5, 6)
        kernel, order = theirs.weight.detach().numpy().T, np.arange(6)
    else:
        stride = {"stride": 2} if name == "Conv2d strided" else {}
        theirs, x = nn.Conv2d(2, 4, 3, padding=1, **stride), normal(3, 6, 5, 2)
        ours = Conv2D(4, 3, strides=stride.get("stride", 1), padding=1, input_size=2)
        kernel = theirs.weight.detach().numpy().transpose(2, 3, 1, 0)
        order = np.arange(18).reshape(2, 3, 3).transpose(1, 2, 0).ravel()
    ours.kernel.assign_(kernel)
    ours.bias.assign_(theirs.bias.detach().numpy())
    theirs, wrapped = sn(theirs, n_power_iterations=2), SpectralNorm(ours, power_iterations=2)
    vectors = theirs.parametrizations.weight[0]
    wrapped.u = md.tensor(vectors._v.numpy()[order])
    wrapped.v = md.tensor(vectors._u.numpy())
    channels_first = (0, *range(x.ndim - 1, x.ndim), *range(1, x.ndim - 1))
    return torch, wrapped, theirs, x, torch.tensor(x.transpose(channels_first)), order


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "Conv2d strided"])
def test_pytorch_over_steps_then_evaluation(name):
    torch, ours, theirs, x, y, order = torch_pair(name)
    sgd = md.optimizers.SGD(ours, 0.1)
    other = torch.optim.SGD(theirs.parameters(), 0.1)
    weight = None
    for step in range(4):
        if step == 3:
            ours.eval(), theirs.eval()
        sgd.zero_grad(), other.zero_grad()
        out, expected = ours(x), theirs(y)
        expected = expected.permute(0, *range(2, expected.ndim), 1) if x.ndim > 2 else expected
        np.testing.assert_allclose(
            out.numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-5, err_msg=f"step {step}"
        )
        weight = normal(*out.shape) if weight is None else weight
        md.sum(out * out * weight).backward()
        (expected * expected * torch.tensor(weight)).sum().backward()
        sgd.step(), other.step()
    parameters = theirs.parametrizations.weight
    kernel = parameters.original.detach().numpy()
    kernel = kernel.reshape(len(kernel), -1)[:, order].T
    np.testing.assert_allclose(reshaped(ours.layer.kernel), kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.u.numpy(), parameters[0]._v.numpy()[order], atol=1e-5)
    np.testing.assert_allclose(ours.v.numpy(), parameters[0]._u.numpy(), atol=1e-5)


# --- A network with a Lipschitz constant ----------------------------------------------------------


def contraction():
    md.seed(1)
    model = Sequential(
        [
            SpectralNorm(Conv2D(6, 3, strides=2, padding="same", activation="relu"), 1, "operator"),
            SpectralNorm(Conv2D(4, 3, padding="same", activation="relu"), 1, "operator"),
            Flatten(),
            SpectralNorm(Dense(16, "relu")),
            SpectralNorm(Dense(3)),
        ]
    )
    model(np.zeros((1, 8, 8, 1), np.float32))
    for p in model.parameters():
        p.assign_(rng.normal(1, 0.3, p.shape))  # so that the largest directions of layers meet
    for wrapper in (model[0], model[1], model[3], model[4]):
        wrapper.iterate(300)
    return model.eval()


def test_a_network_of_normalized_layers_does_not_stretch():
    model = contraction()
    bound = float(md.lipschitz.upper_bound(model, (8, 8, 1)))
    assert 0.999 < bound < 1.5

    def slopes(a, b):
        with md.no_grad():
            change = (model(a).numpy() - model(b).numpy()).astype(np.float64)
        apart = (b - a).astype(np.float64).reshape(len(a), -1)
        return np.linalg.norm(change, axis=1) / np.linalg.norm(apart, axis=1)

    a = normal(10_000, 8, 8, 1)
    b = a + normal(*a.shape) * 10 ** rng.uniform(-1, 1, (len(a), 1, 1, 1)).astype(np.float32)
    assert slopes(a, b).max() <= min(1.001, bound)
    model.astype("float64")
    worst = md.lipschitz.lower_bound(model, rng.normal(size=(20, 8, 8, 1)), steps=30)
    assert max(0.7, slopes(a, b).max()) < worst <= min(1.001, bound)


def test_the_estimate_is_the_norm_of_the_operator():
    model = contraction()
    kernel = model[0].layer.kernel
    expected = conv_spectral_norm(kernel, (8, 8, 1), stride=2, padding="same", steps=300)
    assert abs(model[0].sigma().item() - expected.item()) < 1e-4 * expected.item()
