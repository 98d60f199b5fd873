"""Each optimiser's rule: against PyTorch, in all dtypes, on the device, saved and loaded."""

import numpy as np
import pytest

import minidl as md
from minidl import schedules
from minidl.layers import Parameter
from minidl.optimizers import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Lookahead,
    RAdam,
    RMSProp,
    flat,
)
from minidl.testing import strict

rng = np.random.default_rng(0)
SHAPES = [(3, 4), (5,), (), (2, 1, 3), (0, 2)]


def make(shapes=SHAPES, dtype=np.float64):
    return [Parameter(rng.normal(size=shape).astype(dtype)) for shape in shapes]


def give(parameters, gradients):
    """Set gradients as backward does: through the graph."""
    terms = [md.sum(p * g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    total.backward()


def random_gradients(parameters):
    return [md.tensor(rng.normal(size=p.shape).astype(p.dtype)) for p in parameters]


def values(parameters):
    return [p.numpy().copy() for p in parameters]


def same(parameters, expected, **tolerance):
    for p, e in zip(parameters, expected, strict=True):
        np.testing.assert_allclose(p.numpy(), e, **(tolerance or {"rtol": 0, "atol": 0}))


PAIRS = [
    (SGD, {"learning_rate": 0.1}, "SGD", {"lr": 0.1}),
    (SGD, {"learning_rate": 0.1, "momentum": 0.9}, "SGD", {"lr": 0.1, "momentum": 0.9}),
    (
        SGD, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
        "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ),
    (Adam, {"learning_rate": 0.01, "epsilon": 1e-8}, "Adam", {"lr": 0.01}),
    (
        Adam, {"learning_rate": 0.01, "beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3},
        "Adam", {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-3},
    ),
    (
        AdamW, {"learning_rate": 0.01, "weight_decay": 0.1, "epsilon": 1e-8},
        "AdamW", {"lr": 0.01, "weight_decay": 0.1},
    ),
    (
        Adam, {"learning_rate": 0.01, "amsgrad": True, "beta_2": 0.5, "epsilon": 1e-8},
        "Adam", {"lr": 0.01, "amsgrad": True, "betas": (0.9, 0.5)},
    ),
    (RAdam, {"learning_rate": 0.01, "epsilon": 1e-8}, "RAdam", {"lr": 0.01}),
    (
        RAdam, {"learning_rate": 0.01, "beta_2": 0.9, "epsilon": 1e-3},
        "RAdam", {"lr": 0.01, "betas": (0.9, 0.9), "eps": 1e-3},
    ),
    (Adamax, {"learning_rate": 0.01, "epsilon": 1e-8}, "Adamax", {"lr": 0.01}),
    (RMSProp, {"learning_rate": 0.01, "epsilon": 1e-3}, "RMSprop", {"alpha": 0.9, "eps": 1e-3}),
    (
        RMSProp, {"learning_rate": 0.01, "rho": 0.8, "centered": True, "momentum": 0.9},
        "RMSprop", {"alpha": 0.8, "centered": True, "momentum": 0.9, "eps": 1e-7},
    ),
    (
        Adagrad, {"learning_rate": 0.01, "epsilon": 1e-3},
        "Adagrad", {"lr": 0.01, "initial_accumulator_value": 0.1, "eps": 1e-3},
    ),
    (Adadelta, {"learning_rate": 0.5}, "Adadelta", {"lr": 0.5, "rho": 0.95, "eps": 1e-7}),
]  # fmt: skip
EACH = pytest.mark.parametrize("kind, options, name, theirs", PAIRS)


class TestPyTorch:
    @EACH
    def test_many_steps_some_without_gradients(self, kind, options, name, theirs):
        torch = pytest.importorskip("torch")
        ours = make()
        others = [torch.tensor(p.numpy().copy(), requires_grad=True) for p in ours]
        optimizer = kind(ours, **options)
        other = getattr(torch.optim, name)(others, **theirs)
        for step in range(20):
            gradients = random_gradients(ours)
            for i in range(len(gradients)):
                if (step + i) % 4 == 0:
                    gradients[i] = None
            optimizer.zero_grad()
            other.zero_grad()
            give(ours, gradients)
            for p, g in zip(others, gradients, strict=True):
                p.grad = None if g is None else torch.tensor(g.numpy().copy())
            optimizer.step()
            other.step()
            same(ours, [p.detach().numpy() for p in others], rtol=1e-9, atol=1e-12)

    @EACH
    def test_float32_over_many_blocks(self, kind, options, name, theirs):
        torch = pytest.importorskip("torch")
        ours = make([(200_001,), (300, 200), (3,)], np.float32)  # several blocks a thread
        others = [torch.tensor(p.numpy().copy(), requires_grad=True) for p in ours]
        optimizer = kind(ours, **options)
        other = getattr(torch.optim, name)(others, **theirs)
        for _ in range(3):
            gradients = random_gradients(ours)
            optimizer.zero_grad()
            give(ours, gradients)
            for p, g in zip(others, gradients, strict=True):
                p.grad = torch.tensor(g.numpy().copy())
            with md.threads(2):
                optimizer.step()
            other.step()
        same(ours, [p.detach().numpy() for p in others], rtol=1e-4, atol=1e-6)

    def test_clipping(self):
        torch = pytest.importorskip("torch")
        for limit in (0.5, 1e6):
            ours = make()
            others = [torch.tensor(p.numpy().copy(), requires_grad=True) for p in ours]
            gradients = random_gradients(ours)
            give(ours, gradients)
            for p, g in zip(others, gradients, strict=True):
                p.grad = torch.tensor(g.numpy().copy())
            SGD(ours, 1.0, global_clipnorm=limit).step()
            torch.nn.utils.clip_grad_norm_(others, limit)
            torch.optim.SGD(others, 1.0).step()
            same(ours, [p.detach().numpy() for p in others], rtol=1e-5, atol=1e-8)
            norm = np.sqrt(sum((p.grad.numpy() ** 2).sum() for p in ours))
            assert norm == pytest.approx(min(limit, norm))


def amsgrad(parameters, rate=1e-3, **options):
    return Adam(parameters, rate, amsgrad=True, **options)


def full_rmsprop(parameters, rate=1e-3, **options):
    return RMSProp(parameters, rate, centered=True, momentum=0.9, **options)


def lookahead(parameters, rate=1e-3, **options):
    return Lookahead(Adam(parameters, rate, **options), k=2)


KINDS = [
    SGD, Adam, AdamW, RAdam, Adamax, Adagrad, Adadelta, amsgrad, full_rmsprop, lookahead,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
class TestForms:
    def test_threads_do_not_change_a_bit(self, kind):
        results = []
        for threads in (1, 2):
            with md.threads(threads):
                md.seed(0)
                local = np.random.default_rng(3)
                p = Parameter(local.normal(size=200_001).astype(np.float32))
                optimizer = kind([p], 0.1, global_clipnorm=2.0)
                for _ in range(2):
                    optimizer.zero_grad()
                    g = local.normal(size=200_001).astype(np.float32)
                    give([p], [md.tensor(g)])
                    optimizer.step()
                results.append(p.numpy().copy())
        np.testing.assert_array_equal(*results)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_zero_gradients_change_nothing(self, kind, dtype):
        p = Parameter(np.ones(5, dtype))
        optimizer = kind([p], 0.0)
        for _ in range(3):
            optimizer.zero_grad()
            give([p], [md.tensor(np.zeros(5, dtype))])
            optimizer.step()
        np.testing.assert_array_equal(p.numpy(), np.ones(5))

    def test_mixed_dtypes(self, kind):
        mixed = [Parameter(rng.normal(size=4).astype(d)) for d in ("float32", "float64", "float16")]
        start = values(mixed)
        optimizer = kind(mixed, 100.0 if kind is Adadelta else 0.1, global_clipnorm=1.0)
        gradients = [md.tensor(np.ones(4, p.dtype)) for p in mixed]
        give(mixed[:1], gradients[:1])
        give(mixed[1:2], gradients[1:2])
        give(mixed[2:], gradients[2:])
        optimizer.step()
        for p, before in zip(mixed, start, strict=True):
            assert p.dtype == before.dtype and (p.numpy() < before).all()

    def test_on_the_device_without_waiting_or_uploading(self, kind):
        host = make(dtype=np.float32)
        device = [Parameter(p.numpy().copy(), device="strict") for p in host]
        pairs = [(ps, kind(ps, 0.1, global_clipnorm=0.7)) for ps in (host, device)]
        gradients = random_gradients(host)
        for parameters, optimizer in pairs:
            give(parameters, [g.to(parameters[0].device) for g in gradients])
            with strict.forbid_sync(), strict.counting() as counts:
                optimizer.step()
                optimizer.zero_grad()
        assert counts.synchronisations == counts.uploads == 0
        same(device, values(host), rtol=1e-5, atol=1e-7)

    def test_state_is_bit_exact(self, kind, tmp_path):
        one, gradients = make(), [random_gradients(make()) for _ in range(6)]
        two = [Parameter(p.numpy().copy()) for p in one]
        schedule = schedules.CosineDecay(0.1, 6)
        first = kind(one, schedule)
        for g in gradients[:3]:
            first.zero_grad()
            give(one, [None, *g[1:]] if g is gradients[1] else g)
            first.step()
        md.save(tmp_path / "state.npz", optimizer=first)
        state = md.load(tmp_path / "state.npz")["optimizer"]
        for p, q in zip(one, two, strict=True):
            q.assign_(p)
        second = kind(two, 123.0)
        second.load_state_dict(state)
        assert second.learning_rate == schedule and second.iterations == 3
        for g in gradients[3:]:
            for parameters, optimizer in ((one, first), (two, second)):
                optimizer.zero_grad()
                give(parameters, g)
                optimizer.step()
        same(two, values(one))


def test_centered_rmsprop_survives_a_constant_gradient():
    """Whose variance is 0, or by rounding less."""
    p = Parameter(np.zeros(64, np.float32))
    optimizer = RMSProp([p], 1e-3, centered=True)
    gradient = md.tensor(np.random.default_rng(0).uniform(0.1, 1, 64).astype(np.float32))
    for _ in range(150):
        optimizer.zero_grad()
        give([p], [gradient])
        optimizer.step()
    assert np.isfinite(p.numpy()).all()


def test_blocks_are_smaller_than_the_split():
    assert flat.BLOCK < flat.SPLIT
