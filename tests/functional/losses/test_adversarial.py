"""Losses of critic and generator, and penalties on the critic's slope."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl import functional
from minidl.errors import DtypeError, ShapeError
from minidl.layers import Dense, Sequential
from minidl.testing import check_gradients, strict

rng = np.random.default_rng(0)
REAL, FAKE = np.array([[2.0], [-0.5]]), np.array([[0.25], [-3.0], [1.0]])


def softplus(x):
    return np.log1p(np.exp(x))


class TestScores:
    @pytest.mark.parametrize(
        ("critic", "expected"),
        [
            (functional.wasserstein_critic, FAKE.mean() - REAL.mean()),
            (
                functional.hinge_critic,
                np.maximum(0, 1 - REAL).mean() + np.maximum(0, 1 + FAKE).mean(),
            ),
            (functional.logistic_critic, softplus(-REAL).mean() + softplus(FAKE).mean()),
        ],
    )
    def test_critics(self, critic, expected, device):
        with md.device(device):
            found = critic(md.tensor(REAL), md.tensor(FAKE))
            assert found.device == device and found.shape == ()
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
        half = critic(REAL.astype(np.float16), FAKE.astype(np.float16))
        np.testing.assert_allclose(half, expected, rtol=1e-2)
        assert critic([1.0], [2.0]).dtype == np.float32

    def test_generators(self):
        np.testing.assert_allclose(functional.wasserstein_generator(FAKE), -FAKE.mean())
        np.testing.assert_allclose(functional.logistic_generator(FAKE), softplus(-FAKE).mean())
        assert functional.logistic_generator(np.float32([-1e4])) == 1e4

    def test_the_best_critic_of_the_logistic_loss_gives_the_logit_of_real(self):
        r, f = 0.3, 0.7  # densities at one point
        best = md.tensor([np.log(r / f)], requires_grad=True)
        loss = 2 * r * functional.logistic_critic(best, [-1e4])
        loss = loss + 2 * f * functional.logistic_critic([1e4], best)
        assert abs(md.grad(loss, [best])[0].item()) < 1e-6


def network(dtype="float64", activation="tanh"):
    md.seed(2)
    with md.default_dtype(dtype):
        layers = [Dense(4, activation, input_size=3), Dense(4, activation, input_size=4)]
        return Sequential([*layers, Dense(1, input_size=4)])


class TestGradientPenalty:
    def test_of_a_linear_critic(self):
        real, fake = rng.normal(size=(2, 5, 3))
        for scale, one_sided in ((3.0, 4.0), (0.5, 0.0)):
            w = np.array([2.0, -1.0, 2.0]) * scale / 3
            for one, expected in ((False, (scale - 1) ** 2), (True, one_sided)):
                found = functional.gradient_penalty(lambda x, w=w: x @ w, real, fake, one_sided=one)
                assert float(found) == pytest.approx(expected)
        assert float(functional.zero_centered_penalty(lambda x: x @ w, real)) == pytest.approx(0.25)

    def test_the_points_lie_between(self):
        real, fake = np.full((6, 2, 2), 3.0), np.full((6, 2, 2), 1.0)
        seen = []

        def critic(x):
            seen.append(x)
            return md.sum(x * x)

        functional.gradient_penalty(critic, real, fake, weights=np.linspace(0, 1, 6))
        np.testing.assert_allclose(seen[0].numpy()[:, 0, 0], np.linspace(1, 3, 6))
        md.seed(0)
        functional.gradient_penalty(critic, real, fake)
        drawn = seen[1].numpy()
        assert (drawn == drawn[:, :1, :1]).all() and len(np.unique(drawn)) == 6
        assert ((drawn >= 1) & (drawn < 3)).all()
        md.seed(0)
        functional.gradient_penalty(critic, real, fake)
        assert (seen[2].numpy() == drawn).all()

    @pytest.mark.parametrize("activation", ["tanh", "leaky_relu"])
    def test_equals_pytorch(self, activation):
        torch = pytest.importorskip("torch")
        model = network(activation=activation)
        real, fake, w = rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), rng.uniform(size=4)
        functional.gradient_penalty(model, real, fake, w).backward()
        leaves = [torch.tensor(p.numpy(), requires_grad=True) for p in model.parameters()]
        slope = {"tanh": torch.tanh, "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x)}
        act = slope[activation]
        x = torch.tensor(w[:, None] * real + (1 - w[:, None]) * fake, requires_grad=True)
        k1, b1, k2, b2, k3, b3 = leaves
        out = act(act(x @ k1 + b1) @ k2 + b2) @ k3 + b3
        (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        torch.mean((g.norm(dim=1) - 1) ** 2).backward()
        for p, leaf in zip(model.parameters(), leaves, strict=True):
            found = np.zeros(p.shape) if p.grad is None else p.grad.numpy()
            wanted = np.zeros(p.shape) if leaf.grad is None else leaf.grad.numpy()
            np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-12)

    @given(st.integers(1, 3), st.booleans(), st.integers(0, 99))
    def test_gradients_to_second_order(self, count, one_sided, seed):
        model = network()
        draw = np.random.default_rng(seed)
        for p in model.parameters():  # steep: all slopes above 1, so no kink of the one-sided
            steep = 1.5 * np.eye(*p.shape) if p.ndim > 1 else 0
            p.assign_(draw.normal(size=p.shape) * 0.3 + steep)
        real, fake = draw.normal(size=(2, count, 3)) * 0.1
        w = draw.uniform(size=count)

        def loss():
            between = functional.gradient_penalty(model, real, fake, w, one_sided)
            return between + 0.1 * functional.zero_centered_penalty(model, real)

        check_gradients(loss, parameters=model.parameters()[:-1], order=2, dtypes=False)

    def test_a_flat_critic_has_a_finite_gradient(self):
        k = md.tensor(np.zeros((3, 1)), requires_grad=True)
        real, fake = rng.normal(size=(2, 4, 3))
        functional.gradient_penalty(lambda x: x @ k, real, fake).backward()
        assert k.grad.numpy().tolist() == [[0], [0], [0]]

    def test_real_and_fake_are_constants(self):
        fake = md.tensor(rng.normal(size=(4, 3)), requires_grad=True)
        penalty = functional.gradient_penalty(network(), rng.normal(size=(4, 3)), fake)
        penalty = penalty + functional.zero_centered_penalty(network(), fake)
        penalty.backward()
        assert fake.grad is None

    def test_may_be_measured_where_nothing_is_recorded(self):
        with md.no_grad():
            assert float(functional.zero_centered_penalty(network(), np.ones((4, 3)))) > 0

    def test_on_the_device_it_waits_for_nothing(self):
        with md.device("strict"):
            model = network("float32")
            real, fake = (md.tensor(rng.normal(size=(4, 3)).astype(np.float32)) for _ in range(2))
            with strict.forbid_sync():
                loss = functional.gradient_penalty(model, real, fake)
                (loss + functional.zero_centered_penalty(model, real)).backward()
        assert model[0].kernel.grad.dtype == np.float32

    @pytest.mark.filterwarnings("error")
    def test_slopes_of_float16_are_squared_in_float32(self):
        x = np.ones((4, 3), np.float16)
        steep = lambda x: 300.0 * md.sum(x, axis=1)  # noqa: E731
        assert float(functional.zero_centered_penalty(steep, x)) == 3 * 300**2
        expected = (300 * 3**0.5 - 1) ** 2
        assert np.isclose(float(functional.gradient_penalty(steep, x, x)), expected)

    def test_shapes(self):
        real = np.zeros((4, 3))
        with pytest.raises(ShapeError, match=r"one shape .* got \(4, 3\) and \(3, 3\)"):
            functional.gradient_penalty(network(), real, np.zeros((3, 3)))
        with pytest.raises(ShapeError, match=r"weights: expected \(4,\), got \(4, 1\)"):
            functional.gradient_penalty(network(), real, real, np.zeros((4, 1)))
        with pytest.raises(DtypeError, match="of floats, got int64 and float64"):
            functional.gradient_penalty(network(), np.ones((4, 3), np.int64), real)
