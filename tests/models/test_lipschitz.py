"""The classifiers under a constraint, and the attacks on them."""

import numpy as np
import pytest

import minidl as md
from minidl.lipschitz import certified_radius, upper_bound
from minidl.testing import check_gradients, strict
from models import lipschitz
from models.lipschitz import (
    CONSTRAINTS,
    BoundedClassifier,
    MaxMin,
    gradient_sign,
    margin,
    projected_gradient,
)

SHAPE = 3, 2, 1


def make(constraint="normalized", dtype="float64", device="cpu", **options):
    md.seed(3)
    with md.device(device), md.default_dtype(dtype):
        return BoundedClassifier(
            constraint, **{"units": (6, 4), "classes": 3, "inputs": 6} | options
        )


def data(count=12, dtype="float32"):
    """Images whose class is their brightest column of pixels; all others are darker."""
    draw = np.random.default_rng(0)
    labels = np.arange(count) % 3
    images = draw.uniform(0, 0.3, (count, *SHAPE))
    images[np.arange(count), labels] += 0.6
    return images.astype(dtype), labels


def trained(constraint="normalized", device="cpu", epochs=60, **options):
    model = make(constraint, "float32", device, **options)
    batches = md.data.Batches(*data(), batch_size=6)
    optimizer = md.optimizers.Adam(model, 0.03)
    md.fit(model, model.loss, optimizer, batches, epochs=epochs, verbose=False, allocator=False)
    return model.settle()


def test_maxmin_sorts_pairs_and_keeps_lengths(device):
    x = np.random.default_rng(0).normal(size=(5, 4))
    out = MaxMin()(md.tensor(x, device=device)).numpy()
    assert (out[:, :2] >= out[:, 2:]).all()
    assert np.allclose(np.sort(out[:, [0, 2]]), np.sort(x[:, [0, 2]]))
    assert np.allclose(np.linalg.norm(out, axis=1), np.linalg.norm(x, axis=1))
    assert upper_bound(MaxMin(), (4,)).product == 1


@pytest.mark.parametrize("constraint", CONSTRAINTS)
class TestNetworks:
    def test_learns_and_certifies(self, constraint, device):
        model = trained(constraint, device)
        images, labels = data()
        logits = model.logits(images)
        report = upper_bound(model, SHAPE)
        assert (logits.argmax(axis=1) == labels).all()
        assert (certified_radius(logits, report, labels) > 0).all()
        if constraint == "normalized":  # two layers of norm 1, and one of `scale`
            assert np.isclose(report.product, model.scale, rtol=1e-3)

    def test_gradients_to_second_order(self, constraint):
        model = make(constraint).eval()  # u and v stay, as the gradient holds them
        images, labels = data(3, "float64")

        def loss():
            return model.loss(labels, model(images))

        check_gradients(loss, parameters=model.parameters(), order=2, dtypes=False)

    def test_saved_and_loaded(self, constraint, tmp_path):
        model = trained(constraint, epochs=2)
        model.save(tmp_path / "model.npz")
        again = lipschitz.load(tmp_path / "model.npz")
        assert again.constraint == constraint and not again.training
        images, _ = data()
        assert (again.logits(images) == model.logits(images)).all()

    def test_the_whole_fit_loop_never_waits_for_the_device(self, constraint):
        model = make(constraint, "float32", "strict")
        batches = md.data.Batches(*data(), batch_size=6)
        optimizer = md.optimizers.Adam(model, md.schedules.OneCycle(1e-2, 4))
        history = md.fit(
            model, model.loss, optimizer, batches, epochs=2, callbacks=[strict.ForbidSync()],
            verbose=False, allocator=False,
        )  # fmt: skip
        assert np.isfinite(history["loss"]).all() and optimizer.iterations == 4


def test_the_penalty_and_its_gradient():
    model = make("regularized", units=(4,), strength=0.5)
    dense = [layer for layer in model if isinstance(layer, md.layers.Dense)]
    norms = [np.linalg.norm(layer.kernel.numpy(), 2) for layer in dense]
    assert np.isclose(sum(model.losses()).item(), 0.25 * np.square(norms).sum(), rtol=1e-3)
    assert not make("plain").losses() and not make("normalized").losses()


def test_the_penalty_lowers_the_bound():
    products = [upper_bound(trained(kind), SHAPE).product for kind in ("plain", "regularized")]
    assert products[1] < 0.5 * products[0]


def test_logits_are_in_batches(monkeypatch):
    model, (images, _) = make(), data()
    whole = model.logits(images)
    monkeypatch.setattr(BoundedClassifier, "BATCH", 5)
    assert np.allclose(model.logits(images), whole, atol=1e-6)
    assert model.logits(images[:0]).shape == (0, 3)


class TestAttacks:
    def test_margin(self, device):
        logits = md.tensor([[3.0, 1.0, 2.0], [0.0, -1.0, 5.0]], device=device)
        assert margin(logits, md.tensor([0, 1], device=device)).tolist() == [1, -6]

    def test_both_keep_to_their_size_and_lower_the_margin(self, device):
        model, (images, labels) = trained(device=device), data()
        before = model.logits(images)
        by_sign = gradient_sign(model, images, labels, 0.05)
        moved = projected_gradient(model, images, labels, 0.2, 10)
        assert np.abs(by_sign - images).max() <= 0.05 + 1e-6
        assert np.linalg.norm((moved - images).reshape(12, -1), axis=1).max() <= 0.2 + 1e-6
        for found in (by_sign, moved):
            assert found.dtype == images.dtype and found.min() >= 0 and found.max() <= 1
            after = margin(model.logits(found), labels)
            assert (after < margin(before, labels)).all()
        assert model.training  # as it was

    def test_projected_gradient_finds_the_nearest_mistake_of_a_linear_model(self):
        model = md.layers.Sequential([md.layers.Flatten(), md.layers.Dense(2, input_size=6)])
        images, labels = np.full((1, *SHAPE), 0.5, np.float32), np.array([0])
        model(images)
        kernel = model[1].kernel.numpy()
        across = kernel[:, 0] - kernel[:, 1]
        model[1].bias.assign_([0.3 * np.linalg.norm(across) - images.ravel() @ across, 0.0])
        for size, right in ((0.29, True), (0.31, False)):
            moved = projected_gradient(model, images, labels, size, 20)
            assert (model(moved).numpy().argmax(axis=1) == labels).all() == right

    def test_projected_gradient_keeps_the_best_of_its_way(self):
        def logits(x):  # steps of 0.25 go to and fro over the least margin, at 0.4
            return md.concatenate([md.abs(x - 0.4), 0 * x], axis=1)

        model = md.layers.Sequential([md.layers.Lambda(logits)])
        moved = projected_gradient(model, np.array([[0.5]], np.float32), np.array([0]), 0.3, 3)
        assert moved.tolist() == [[0.5]]

    def test_a_size_for_each_image_and_none_within_the_radius_succeeds(self):
        model, (images, labels) = trained(), data()
        radius = certified_radius(model.logits(images), upper_bound(model, SHAPE), labels)
        inside = projected_gradient(model, images, labels, 0.999 * radius, 20)
        beyond = projected_gradient(model, images, labels, np.full(12, 2.0), 20)
        assert (model.logits(inside).argmax(axis=1) == labels).all()
        assert (model.logits(beyond).argmax(axis=1) != labels).any()


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="constraint: expected one of plain, regularized, norm"):
        make("tight")
    md.save(tmp_path / "other.npz", step=1)
    with pytest.raises(md.errors.SerializationError, match="expected what BoundedC"):
        lipschitz.load(tmp_path / "other.npz")
