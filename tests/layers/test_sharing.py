"""Weights in several places: one table for input and output, under optimisers, saving, freezing."""

import numpy as np
import pytest

import minidl as md
from minidl.layers import Dense, Embedding, GlobalAveragePooling1D, Layer
from minidl.testing import check_gradients

ids, targets = np.array([[0, 1, 1], [4, 2, 0]]), np.array([1, 3])


class Tied(Layer):
    """Scores ids with the table that it reads them from; two towers share a Dense."""

    def __init__(self):
        self.table = Embedding(5, 3, "orthogonal")
        self.left = Dense(3, "tanh", input_size=3)
        self.right = Dense(3, "tanh", input_size=3)
        self.right.kernel = self.left.kernel
        self.pool = GlobalAveragePooling1D()

    def call(self, ids):
        hidden = self.pool(self.table(ids))
        return self.table.attend(self.left(hidden) + self.right(hidden))


def loss_of(model):
    return md.losses.SparseCategoricalCrossentropy(from_logits=True)(targets, model(ids))


def test_attend_is_the_transposed_table():
    table = Embedding(5, 3)
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(table.attend(x).numpy(), x @ table.embeddings.numpy().T, rtol=1e-6)


def test_gradients_of_both_uses_add_up():
    check_gradients(Tied(), ids)


def test_names_counts_and_summary():
    model = Tied()
    names = [name for name, _ in model.named_parameters()]
    assert names == ["table.embeddings", "left.kernel", "left.bias", "right.bias"]
    assert "30 parameters" in model.summary()


@pytest.mark.parametrize("kind", [md.optimizers.SGD, md.optimizers.Adam, md.optimizers.AdamW])
def test_optimisers_update_once_and_what_is_shared_stays_shared(kind, device):
    model = Tied().to(device)
    optimizer = kind(model, 0.05)
    inputs = md.backend.to_device(ids, device)
    loss = md.losses.SparseCategoricalCrossentropy(from_logits=True)
    history = []
    for _ in range(30):
        value = loss(md.backend.to_device(targets, device), model(inputs))
        history.append(float(value))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert history[-1] < history[0]
    assert model.right.kernel is model.left.kernel


def test_one_step_is_that_of_the_sum():
    model = Tied()
    before = model.table.embeddings.numpy().copy()
    (gradient,) = md.grad(loss_of(model), [model.table.embeddings])
    optimizer = md.optimizers.SGD(model, 0.5)
    loss_of(model).backward()
    optimizer.step()
    expected = before - 0.5 * gradient.numpy()
    np.testing.assert_allclose(model.table.embeddings.numpy(), expected, rtol=1e-5)


def test_saved_and_loaded(tmp_path):
    model, other = Tied(), Tied()
    md.save(tmp_path / "tied.npz", model=model)
    md.load(tmp_path / "tied.npz", model=other)
    np.testing.assert_array_equal(model(ids).numpy(), other(ids).numpy())
    assert other.right.kernel is other.left.kernel


def test_moved():
    model = Tied().astype("float64")
    assert model.right.kernel is model.left.kernel and model.right.kernel.dtype == np.float64


def test_frozen_in_one_place_is_frozen_in_both():
    model = Tied()
    model.left.trainable = False
    loss_of(model).backward()
    assert model.right.kernel.grad is None and model.right.bias.grad is not None
    frozen = model.left.kernel.numpy().copy()
    md.optimizers.Adam(model, 0.1).step()
    np.testing.assert_array_equal(model.left.kernel.numpy(), frozen)
