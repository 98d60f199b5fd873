"""The generator and its critics: gradients, normalized slopes, training, saving."""

import numpy as np
import pytest

import minidl as md
from minidl.functional import losses
from minidl.layers import Dense, Sequential, SpectralNormalization
from minidl.optimizers import Adam
from minidl.testing import check_gradients, strict
from models import gan
from models.gan import GAN, RECIPES

SIDE = 4
QUIET = {"verbose": False, "allocator": False}


def make(recipe="hinge", dtype="float64", device="cpu", **options):
    """Small networks for images of 4 x 4."""
    md.seed(3)
    with md.device(device), md.default_dtype(dtype):
        return GAN(recipe, **{"noise": 3, "filters": 2, "side": SIDE, **options})


def optimizers(model, rate=2e-3):
    parts = {"critic": model.critic, "generator": model.generator}
    return {name: Adam(part, rate, 0.5) for name, part in parts.items()}


def images(count=6, seed=0, side=SIDE):
    return np.random.default_rng(seed).uniform(size=(count, side, side, 1))


def rings(count=64):
    """Light squares with a dark middle, in one of two places: something to learn."""
    x = np.zeros((count, SIDE, SIDE, 1), np.float32)
    x[::2, :3, :3] = x[1::2, 1:, 1:] = 1
    x[::2, 1, 1] = x[1::2, 2, 2] = 0
    return x


@pytest.mark.parametrize("recipe", list(RECIPES))
class TestRecipes:
    def test_the_critics_gradients_to_second_order(self, recipe):
        """With the penalty, the loss holds a first derivative: of third order in places."""
        model = make(recipe)
        real, fake = images(2), images(2, seed=1)

        def loss():
            md.seed(0)  # where between them the penalty looks
            return model.critic_loss(real, fake)

        check_gradients(loss, parameters=model.critic.parameters(), order=2, dtypes=False)

    def test_the_generators_gradients_to_second_order(self, recipe):
        model, z = make(recipe, filters=1), np.random.default_rng(1).normal(size=(3, 3))

        def loss():
            return model.generator_loss(z)

        check_gradients(loss, parameters=model.generator.parameters(), order=2, dtypes=False)

    def test_the_whole_fit_loop_never_waits_for_the_device(self, recipe):
        model = make(recipe, "float32", "strict", critic_steps=2)
        both = optimizers(model)
        batches = md.data.Batches(images(8).astype(np.float32), batch_size=2)
        callbacks = [
            strict.ForbidSync(), md.callbacks.ExponentialMovingAverage(0.9, optimizer="generator")
        ]  # fmt: skip
        history = md.fit(model, None, both, batches, epochs=2, callbacks=callbacks, **QUIET)
        assert np.isfinite([*history["critic_loss"], *history["generator_loss"]]).all()
        assert (both["critic"].iterations, both["generator"].iterations) == (8, 4)
        before = model.images(np.zeros((2, 3)))
        assert before.shape == (2, SIDE, SIDE, 1) and model.slopes(before).shape == (2,)

    def test_saved_and_loaded(self, recipe, tmp_path):
        model = make(recipe, "float32", critic_steps=3)
        model.save(tmp_path / "gan.npz")
        again = gan.load(tmp_path / "gan.npz")
        z = np.random.default_rng(0).normal(size=(3, 3))
        assert again.recipe == recipe and again.critic_steps == 3 and not again.training
        np.testing.assert_array_equal(again.images(z), model.images(z))
        np.testing.assert_array_equal(again.slopes(images()), model.slopes(images()))


def test_a_step_of_the_critic_leaves_the_generator_alone_and_the_other_way_round(device):
    model = make("wasserstein-gp", "float32", device, critic_steps=2)
    both = md.optimizers.Optimizers(optimizers(model))
    batch = md.data.Batch(md.tensor(images().astype(np.float32), device=device))

    def moved(step):
        before = {name: p.numpy().copy() for name, p in model.named_parameters()}
        step()
        after = dict(model.named_parameters())
        return {
            name.split(".")[0] for name in before if (before[name] != after[name].numpy()).any()
        }

    assert moved(lambda: model.train_step(batch, both)) == {"critic"}
    assert all(p.grad is None for p in model.generator.parameters())
    both["generator"].minimize(model.generator_loss(model.draw(2)))
    own = [p.grad.numpy().copy() for p in model.critic.parameters()]
    assert moved(lambda: both["generator"].minimize(model.generator_loss(model.draw(2)))) == {
        "generator"
    }
    for before, p in zip(own, model.critic.parameters(), strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), before)


def test_normalized_critics_have_kernels_of_norm_one():
    model = make("hinge", filters=4, side=8)
    model.critic.train()
    for _ in range(60):
        model.critic(images(2, side=8))
    layers = [x for x in model.critic.layers if isinstance(x, SpectralNormalization)]
    assert len(layers) == 4
    for layer in layers:
        kernel = layer.normalized_kernel().numpy()
        norm = np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2)
        assert norm == pytest.approx(1, abs=1e-4)


def test_clipped_critics_stay_small():
    model = make("wasserstein-clip", "float32")
    batches = md.data.Batches(images(8).astype(np.float32), batch_size=4)
    md.fit(model, None, optimizers(model, 0.1), batches, **QUIET)
    assert max(np.abs(p.numpy()).max() for p in model.critic.parameters()) == np.float32(0.01)
    assert max(np.abs(p.numpy()).max() for p in model.generator.parameters()) > 0.01


def test_a_difference_of_scores_and_one_backward(device):
    """u and v of the first call are not those of the second: none is overwritten."""
    model = make("wasserstein-sn", "float64", device)
    real, fake = (md.tensor(images(seed=i), device=device) for i in range(2))
    found = md.grad(model.critic_loss(real, fake), model.critic.parameters()[:-1])
    model = make("wasserstein-sn", "float64", device)
    by_real = md.grad(md.mean(model.critic(real)), model.critic.parameters()[:-1])
    by_fake = md.grad(md.mean(model.critic(fake)), model.critic.parameters()[:-1])
    for whole, a, b in zip(found, by_fake, by_real, strict=True):
        np.testing.assert_allclose(whole.numpy(), a.numpy() - b.numpy(), atol=1e-12)


def test_slopes_are_those_of_single_images():
    model = make("wasserstein-gp")
    x, step = images(3), 1e-6
    direction = md.grad(md.sum(model.critic(t := md.tensor(x, requires_grad=True))), [t])[0].numpy()
    length = np.sqrt(np.square(direction).sum((1, 2, 3)))
    up = model.critic(x + step * direction / length[:, None, None, None]).numpy()
    np.testing.assert_allclose((up - model.critic(x).numpy())[:, 0] / step, length, rtol=1e-4)
    np.testing.assert_allclose(model.slopes(x), length, rtol=1e-6)


@pytest.mark.parametrize("recipe", ["hinge", "wasserstein-gp"])
def test_learns_two_images(recipe):
    model = make(recipe, "float32", filters=8)
    batches = md.data.Batches(rings(), batch_size=32)
    md.fit(model, None, optimizers(model, 1e-2), batches, epochs=50, **QUIET)
    found = model.images(np.random.default_rng(0).normal(size=(50, 3)))
    away = np.square(found[:, None] - rings(2)).mean((2, 3, 4))
    assert np.median(away.min(1)) < 0.05
    assert 5 < (away.argmin(1) == 0).sum() < 45


def test_a_perceptron_serves_as_critic_too():
    """The penalty's loss of a critic of one's own, as the benchmark has it, to second order."""
    md.seed(0)
    with md.default_dtype("float64"):
        critic = Sequential([Dense(4, "tanh", input_size=5), Dense(1, input_size=4)])
    real, fake, w = (np.random.default_rng(i).normal(size=s) for i, s in enumerate([(2, 5)] * 3))

    def loss():
        score = losses.wasserstein_critic(critic(real), critic(fake))
        return score + 10 * losses.gradient_penalty(critic, real, fake, w[:, 0])

    check_gradients(loss, parameters=critic.parameters()[:-1], order=2, dtypes=False)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="recipe: expected one of hinge, wasserstein-sn"):
        GAN("least-squares")
    with pytest.raises(ValueError, match="side: expected a multiple of 4, got 6"):
        GAN(side=6)
    assert GAN("wasserstein-clip", filters=1).critic_steps == 5
