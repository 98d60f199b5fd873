"""The network over spectra: gradients, identities, saliency, what `standardize` forgets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from benchmarks import spectra as twin
from minidl.errors import SerializationError
from minidl.testing import check_gradients, strict
from models import spectra
from models.spectra import CLASSES, ResidualBlock, SpectrumClassifier, saliency, standardize

rng = np.random.default_rng(0)
SMALL = (3, 3, 4)
LOSS = md.losses.SparseCategoricalCrossentropy(from_logits=True)
BLOCKS = pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])


def make(widths=SMALL, dtype="float64", device="cpu", noise=0.3, **options):
    """A small network, all its weights random (biases too)."""
    md.seed(3)
    with md.device(device), md.default_dtype(dtype):
        model = SpectrumClassifier(widths=widths, **options)
        for weight in model.parameters():
            weight.assign_(weight.numpy() + noise * md.random.generator().normal(weight.shape))
    return model


def inputs(count, points=24):
    return rng.normal(size=(count, points, 1))


@given(st.data())
def test_gradients_to_second_order(data):
    """By parameters and inputs; with the batch's statistics and with the moving ones."""
    widths = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    count, points = data.draw(st.integers(2, 3)), data.draw(st.integers(8, 11))
    generator = np.random.default_rng(data.draw(st.integers(0, 999)))
    model = make(widths, gated=data.draw(st.booleans()))
    model.train(data.draw(st.booleans()))
    labels = generator.integers(0, len(CLASSES), count)
    x = generator.normal(size=(count, points, 1))
    loss = data.draw(st.sampled_from([LOSS, md.losses.SoftF1(from_logits=True)]))

    def f(x):
        return loss(labels, model(x))

    check_gradients(f, x, parameters=model.parameters(), order=2, dtypes=False)


@BLOCKS
class TestNetwork:
    def test_a_block_carries_its_input_past_the_convolution(self, gated):
        """One whose convolution is 0 lets all of it through, or through a gate half open."""
        block = ResidualBlock(3, 3, gated)
        for weight in block.convolution.parameters():
            weight.assign_(0 * weight.numpy())
        x = md.tensor(inputs(2).repeat(3, axis=2), dtype="float32")
        expected = block.normalization(x).numpy() * (0.5 if gated else 1)
        np.testing.assert_allclose(block(x).numpy(), expected, atol=1e-6)

    def test_the_batch_is_its_spectra(self, gated, device):
        model = make(gated=gated, device=device).eval()
        x = inputs(3)
        together = model(md.tensor(x, device=device)).numpy()
        alone = [model(md.tensor(x[i : i + 1], device=device)).numpy()[0] for i in range(3)]
        assert together.shape == (3, len(CLASSES)) and np.allclose(together, alone, atol=1e-12)

    def test_overfits_a_handful(self, gated, device):
        model = make((6, 8), "float32", device, 0.0, gated=gated)
        x, labels = inputs(8, 40).astype(np.float32), np.arange(8) % 4
        optimizer = md.optimizers.Adam(model, 2e-2)
        md.fit(model, LOSS, optimizer, [(x, labels)], epochs=60, verbose=False, allocator=False)
        assert (model.probabilities(x).argmax(axis=1) == labels).all()
        assert model.training

    def test_the_whole_fit_loop_never_waits_for_the_device(self, gated):
        model = make(dtype="float32", device="strict", gated=gated, rate=0.2)
        data = md.data.Batches(inputs(6).astype(np.float32), np.arange(6) % 4, batch_size=3)
        weighted = md.losses.SparseCategoricalCrossentropy(True, class_weights=[1, 2, 3, 4])
        for loss in (weighted, md.losses.SoftF1(from_logits=True)):
            optimizer = md.optimizers.Adam(model, 1e-3, global_clipnorm=1.0)
            history = md.fit(
                model, loss, optimizer, data, epochs=2, callbacks=[strict.ForbidSync()],
                metrics=[md.metrics.F1Score("macro")], verbose=False, allocator=False,
            )  # fmt: skip
            assert np.isfinite(history["loss"]).all() and optimizer.iterations == 4

    def test_saved_and_loaded(self, gated, tmp_path):
        model = make(dtype="float32", gated=gated)
        model(md.tensor(inputs(4), dtype="float32"))  # moves the averages
        x = inputs(2).astype(np.float32)
        model.save(tmp_path / "model.npz")
        again = spectra.load(tmp_path / "model.npz")
        assert not again.training and again.gated is gated
        assert (again.probabilities(x) == model.probabilities(x)).all()


def test_probabilities_in_batches(monkeypatch, device):
    model = make(dtype="float32", device=device)
    x = inputs(5).astype(np.float32)
    expected = model.probabilities(x)
    monkeypatch.setattr(SpectrumClassifier, "BATCH", 2)
    assert np.allclose(model.probabilities(x), expected, atol=1e-6)
    assert np.allclose(expected.sum(axis=1), 1, atol=1e-6)
    assert model.probabilities(x[:0]).shape == (0, len(CLASSES))


def test_another_file_is_refused(tmp_path):
    md.save(tmp_path / "x.npz", step=1)
    with pytest.raises(SerializationError, match=r"expected what SpectrumClassifier\.save wrote"):
        spectra.load(tmp_path / "x.npz")


class TestSaliency:
    def test_is_the_slope_of_the_logit(self, device):
        model = make(device=device)
        x, classes = inputs(2), np.array([1, 3])
        found = saliency(model, x, classes)
        assert found.shape == x.shape and model.training
        assert all(parameter.grad is None for parameter in model.parameters())
        step = np.zeros_like(x)
        step[:, 5] = 1e-6
        model.eval()
        up, down = (model(md.tensor(x + s, device=device)).numpy() for s in (step, -step))
        slopes = ((up - down) / 2e-6)[[0, 1], classes]
        np.testing.assert_allclose(found[:, 5, 0], slopes, rtol=1e-5, atol=1e-8)

    def test_smoothed(self):
        model, x = make(), inputs(1)
        first, again = (saliency(model, x, np.array([0]), 3, 0.1, seed=7) for _ in range(2))
        assert (first == again).all()
        assert not np.allclose(first, saliency(model, x, np.array([0])))
        still = saliency(model, x, np.array([0]), samples=3)
        np.testing.assert_allclose(still, saliency(model, x, np.array([0])))


class TestStandardize:
    @given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3), st.integers(0, 99))
    def test_forgets_unit_and_ground(self, scale, ground, seed):
        flux = np.random.default_rng(seed).exponential(size=(2, 9))
        x = standardize(flux)
        assert x.shape == (2, 9, 1) and x.dtype == np.float32
        np.testing.assert_allclose(standardize(scale * flux + ground), x, atol=1e-4)
        assert np.abs(x).mean() == pytest.approx(1, abs=1e-6)
        assert not np.median(x, axis=1).any()

    def test_what_is_no_number_is_the_median(self):
        x = standardize(np.array([[1.0, np.nan, 3.0, 2.0, np.inf], [5.0] * 5, [np.nan] * 5]))
        assert x[0, 1] == x[0, 4] == x[0, 3] == 0
        assert not x[1:].any()


@pytest.mark.parametrize("training", [True, False])
def test_the_twin_in_pytorch_agrees(training, monkeypatch):
    """With the same weights, in its logits and in the gradients of all weights."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(twin, "WIDTHS", (4, 4, 8))
    theirs = twin._torch_classifier().train(training)
    model = SpectrumClassifier(widths=twin.WIDTHS).train(training)
    model.load_state_dict({**model.state_dict(), **twin.weights()})
    x, labels = inputs(3, 50).astype(np.float32), np.array([0, 3, 1])
    wanted = theirs(torch.from_numpy(x.transpose(0, 2, 1).copy()))
    found = model(md.tensor(x))
    np.testing.assert_allclose(found.numpy(), wanted.detach().numpy(), atol=1e-5)
    torch.nn.functional.cross_entropy(wanted, torch.from_numpy(labels)).backward()
    LOSS(labels, found).backward()
    gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    for name, weight in model.named_parameters():
        own = gradients.pop(twin._torch_name(name)).numpy().T
        np.testing.assert_allclose(weight.grad.numpy(), own, atol=1e-5, err_msg=name)
    assert not gradients
