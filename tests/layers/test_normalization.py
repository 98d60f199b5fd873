"""Batch, group and conditional layer normalization; ScaleShift. LayerNormalization: test_layers."""

import numpy as np
import pytest

import minidl as md
from minidl.conversion import to_pytorch
from minidl.errors import ShapeError
from minidl.layers import (
    BatchNormalization,
    ConditionalLayerNormalization,
    Dense,
    GroupNormalization,
    LayerNormalization,
    ScaleShift,
    Sequential,
)
from minidl.testing import check_gradients
from minidl.testing.strict import forbid_sync

rng = np.random.default_rng(0)
MASK = np.arange(5) < np.array([[5], [2], [0]])


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def filled(layer, *inputs):
    """The layer, built on the inputs, with random parameters."""
    layer(*inputs)
    for p in layer.parameters():
        p.assign_(0.5 * normal(*p.shape))
    return layer


class TestBatchNormalization:
    @pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}, {"axis": 1}])
    @pytest.mark.parametrize("training", [True, False])
    def test_gradients(self, options, training):
        x = normal(3, 5, 4)
        layer = filled(BatchNormalization(**options), x).train(training)
        before = layer.state_dict()
        check_gradients(layer, x)
        if "axis" not in options:
            layer.astype("float64")
            check_gradients(lambda x: layer(x, MASK), x, dtypes=False)
        after = layer.state_dict()  # the checker's evaluations are no training
        moved = {name for name in before if (before[name] != after[name]).any()}
        assert moved <= {"moving_mean", "moving_variance"}

    @pytest.mark.parametrize("shape", [(6, 5, 4), (3, 5, 6, 4)], ids=["sequences", "images"])
    def test_pytorch_over_steps_then_evaluation(self, shape):
        torch = pytest.importorskip("torch")
        layer = filled(BatchNormalization(momentum=0.9), normal(3, 4))
        layer.load_state_dict(layer.state_dict() | {"moving_mean": np.zeros(4)})
        kind = torch.nn.BatchNorm1d if len(shape) == 3 else torch.nn.BatchNorm2d
        theirs = kind(4, eps=1e-3, momentum=0.1)
        state = {name: torch.tensor(v) for name, v in layer.state_dict().items()}
        theirs.load_state_dict(
            {"weight": state["gamma"], "bias": state["beta"], "running_mean": state["moving_mean"],
             "running_var": state["moving_variance"]}, strict=False,
        )  # fmt: skip
        for step in range(4):
            if step == 3:
                layer.eval(), theirs.eval()
            x, weight = normal(*shape) * 2 + 1, normal(*shape)
            a, b = md.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
            for p in [*layer.parameters(), *theirs.parameters()]:
                p.grad = None
            out, expected = layer(a), theirs(b.movedim(-1, 1)).movedim(1, -1)
            out.backward(md.tensor(weight))
            expected.backward(torch.tensor(weight))
            np.testing.assert_allclose(out.numpy(), expected.detach(), rtol=1e-5, atol=1e-5)
            pairs = [(a, b), (layer.gamma, theirs.weight), (layer.beta, theirs.bias)]
            for mine, their in pairs:
                g = their.grad.numpy()
                np.testing.assert_allclose(mine.grad, g, rtol=1e-5, atol=1e-5 * abs(g).max())
            with torch.no_grad():  # their moving variance is of the population
                if step < 3:
                    unbiased = b.detach().reshape(-1, 4).var(0)
                    theirs.running_var += 0.1 * (b.reshape(-1, 4).var(0, correction=0) - unbiased)
            np.testing.assert_allclose(layer.moving_mean, theirs.running_mean, rtol=1e-5)
            np.testing.assert_allclose(layer.moving_variance, theirs.running_var, rtol=1e-5)

    @pytest.mark.parametrize("training", [True, False])
    def test_pytorch_gradient_penalty(self, training):
        """Second order, on images: the gradients of |d sum(sin(norm(x)))/dx|^2."""
        torch = pytest.importorskip("torch")
        layer = filled(BatchNormalization(), normal(3, 4)).astype("float64").train(training)
        theirs = torch.nn.BatchNorm2d(4, eps=1e-3, dtype=torch.float64).train(training)
        theirs.load_state_dict(
            {key: torch.tensor(v) for key, v in to_pytorch(layer).items()}, False
        )
        x = normal(3, 5, 6, 4).astype(float)
        a, b = md.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        (g,) = md.grad(md.sum(md.sin(layer(a))), [a], create_graph=True)
        out = torch.sin(theirs(b.movedim(-1, 1)))
        (h,) = torch.autograd.grad(out.sum(), b, create_graph=True)
        md.sum(g * g).backward()
        (h * h).sum().backward()
        for mine, their in [(a, b), (layer.gamma, theirs.weight), (layer.beta, theirs.bias)]:
            expected = their.grad.numpy()
            np.testing.assert_allclose(mine.grad, expected, atol=1e-9 * abs(expected).max())

    def test_buffers_are_rebound_and_old_graphs_stay_right(self):
        layer = filled(Sequential([Dense(4, input_size=3), BatchNormalization()]), normal(2, 3))
        first, second = normal(8, 3), normal(8, 3)
        before = layer.layers[1].moving_mean
        kept = before.numpy().copy()
        (layer(first).std() - 2 * layer(second).std()).backward()
        together = [p.grad.numpy().copy() for p in layer.parameters()]
        np.testing.assert_array_equal(before.numpy(), kept)
        assert (layer.layers[1].moving_mean.numpy() != kept).any()
        for p in layer.parameters():
            p.grad = None
        layer(first).std().backward()
        (-2 * layer(second).std()).backward()
        for p, g in zip(layer.parameters(), together, strict=True):
            np.testing.assert_allclose(p.grad.numpy(), g, atol=1e-6)

    def test_recompute_updates_once(self):
        layer, x = BatchNormalization(), md.tensor(normal(6, 4), requires_grad=True)
        layer(x)
        layer.load_state_dict(state := layer.state_dict())
        plain = layer(x)
        once = layer.state_dict()
        layer.load_state_dict(state)
        again = md.recompute(layer, x)
        again.sum().backward()
        for name, value in layer.state_dict().items():
            np.testing.assert_array_equal(value, once[name])
        np.testing.assert_array_equal(again.numpy(), plain.numpy())

    def test_padding_and_empty_batches_leave_the_buffers_alone(self):
        layer = BatchNormalization(input_size=4)
        before = layer.state_dict()
        layer(normal(0, 4))
        layer(normal(3, 5, 4), np.zeros((3, 5), bool))
        for name, value in layer.state_dict().items():
            np.testing.assert_array_equal(value, before[name])
        x = normal(3, 5, 4)
        layer(x, MASK)
        masked = layer.moving_variance.numpy()
        layer.load_state_dict(before)
        layer(x[MASK])
        np.testing.assert_allclose(masked, layer.moving_variance.numpy(), rtol=1e-6)

    def test_evaluation_is_per_item_and_padding_is_0(self):
        layer = filled(BatchNormalization(), normal(3, 5, 4)).eval()
        x = normal(3, 5, 4)
        out = layer(x, MASK).numpy()
        assert not out[~MASK].any()
        np.testing.assert_array_equal(out[1, :2], layer(x[1:2, :2]).numpy()[0])

    def test_float16_stays_so_in_evaluation_too(self):
        layer, x = BatchNormalization(input_size=4), normal(6, 4).astype(np.float16)
        assert layer(x).dtype == layer.eval()(x).dtype == np.float16
        assert layer.moving_mean.dtype == np.float32

    def test_names_and_buffers(self):
        layer = BatchNormalization(input_size=3)
        names = ["gamma", "beta", "moving_mean", "moving_variance"]
        assert list(layer.state_dict()) == names
        assert len(layer.parameters()) == 2
        assert layer.astype("float64").moving_variance.dtype == np.float64

    def test_no_waiting_for_the_device(self):
        layer = BatchNormalization(input_size=4).to("strict")
        x, mask = (md.tensor(a, device="strict") for a in (normal(3, 5, 4), MASK))
        with forbid_sync():
            layer(x, mask).sum().backward()
            layer.eval()(x, mask).sum().backward()
        assert layer.moving_mean.device == "strict"


class TestGroupNormalization:
    @pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}])
    def test_gradients(self, options):
        x = normal(3, 5, 4)
        layer = filled(GroupNormalization(2, **options), x)
        check_gradients(layer, x)
        check_gradients(lambda x: layer(x, MASK), x)

    def test_pytorch(self):
        torch = pytest.importorskip("torch")
        x = normal(3, 5, 8)
        layer = filled(GroupNormalization(4), x)
        args = (torch.tensor(p.numpy().copy()) for p in (layer.gamma, layer.beta))
        expected = torch.nn.functional.group_norm(torch.tensor(x).mT, 4, *args, eps=1e-3).mT
        np.testing.assert_allclose(layer(x).numpy(), expected, rtol=1e-5, atol=1e-5)

    def test_minus_1_is_instance_normalization(self):
        out = GroupNormalization(-1)(normal(3, 50, 4)).numpy()
        np.testing.assert_allclose(out.mean(1), 0, atol=1e-6)


class TestConditionalLayerNormalization:
    def test_begins_as_layer_normalization(self):
        x, condition = normal(3, 5, 4), normal(3, 2)
        layer = ConditionalLayerNormalization()
        plain = LayerNormalization()(x)
        np.testing.assert_array_equal(layer(x, condition).numpy(), plain.numpy())
        assert list(layer.state_dict()) == [
            "gamma.kernel",
            "gamma.bias",
            "beta.kernel",
            "beta.bias",
        ]

    @pytest.mark.parametrize("shape", [(3, 5, 4), (3, 4), (3, 1, 4), (0, 5, 4)])
    def test_gradients(self, shape):
        x, condition = normal(*shape), normal(shape[0], 2)
        check_gradients(filled(ConditionalLayerNormalization(), x, condition), x, condition)

    def test_every_item_has_its_own(self):
        x, condition = normal(3, 5, 4), normal(3, 2)
        layer = filled(ConditionalLayerNormalization(input_size=4, condition_size=2), x, condition)
        whole = layer(x, condition).numpy()
        alone = layer(x[1:2], condition[1:2]).numpy()
        np.testing.assert_allclose(whole[1:2], alone, atol=1e-6)
        gamma = condition @ layer.gamma.kernel.numpy() + layer.gamma.bias.numpy()
        beta = condition @ layer.beta.kernel.numpy() + layer.beta.bias.numpy()
        normalized = LayerNormalization()(x).numpy()
        expected = normalized * (1 + gamma[:, None]) + beta[:, None]
        np.testing.assert_allclose(whole, expected, atol=1e-5)

    def test_a_condition_over_time_is_refused(self):
        with pytest.raises(ShapeError, match=r"condition: expected shape \(3, m\)"):
            ConditionalLayerNormalization()(normal(3, 5, 4), normal(3, 5, 2))


class TestScaleShift:
    def test_begins_as_the_identity(self):
        x = normal(3, 5)
        np.testing.assert_array_equal(ScaleShift(input_size=5)(x).numpy(), x)

    def test_gradients(self):
        check_gradients(filled(ScaleShift(), normal(2, 3, 4)), normal(2, 3, 4))
        assert list(ScaleShift(input_size=2).state_dict()) == ["log_scale", "shift"]


def test_a_checkpoint_keeps_the_moving_averages(tmp_path):
    """Two epochs at a stretch, and one after the other with a new model between: bit for bit."""
    x, y = normal(32, 3), normal(32, 1)

    def parts():
        md.seed(1)
        layers = [Dense(4, input_size=3), BatchNormalization(input_size=4), Dense(1, input_size=4)]
        model = Sequential(layers)
        loss, optimizer = md.losses.MeanSquaredError(), md.optimizers.Adam(model, 1e-2)
        return model, loss, optimizer, md.data.Batches(x, y, batch_size=8)

    straight = parts()
    md.fit(*straight, epochs=2, verbose=False)
    path = tmp_path / "checkpoint.npz"
    first = parts()
    md.fit(*first, epochs=1, callbacks=[md.callbacks.Checkpoint(path)], verbose=False)
    resumed = parts()
    md.fit(*resumed, epochs=2, resume=path, verbose=False)
    expected = straight[0].state_dict()
    assert (expected["1.moving_mean"] != 0).any()
    for name, value in resumed[0].state_dict().items():
        np.testing.assert_array_equal(value, expected[name])
