"""The example `spectra`, run on a few simulated spectra by a narrow network."""

import json

import numpy as np
import pytest

import minidl as md
from examples import __main__ as command
from examples import pictures, spectra, survey
from examples.sky import POINTS
from models import spectra as models

TUNED = spectra.TUNED["soft-f1"]


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run the example in a folder; its status, output and errors."""
    monkeypatch.setattr(pictures, "available", lambda: False)  # they cost more than all the rest
    monkeypatch.setattr(spectra.Spectra, "baselines", lambda self: None)  # so does scikit-learn
    monkeypatch.setattr(spectra, "WIDTHS", (4, 6))
    monkeypatch.setattr(spectra, "BATCH", 16)
    monkeypatch.setattr(spectra, "TUNE_BATCH", 32)
    monkeypatch.setattr(survey, "SIZES", {"train": 64, "validation": 40, "test": 60})

    def run(*options, out="out"):
        status = command.main(["spectra", "--out", str(tmp_path / out), *map(str, options)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_trains_tunes_measures_and_leaves_its_files(run, tmp_path):
    status, out, _ = run("--epochs", 2, "--tune-epochs", 1)
    assert status == 0
    assert "SIMULATED" in out and "epoch 2/2" in out and "epoch 1/1" in out
    assert "recognized, of the test spectra, by signal to noise" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert "SIMULATED" in results["data"]
    ways = [spectra.PLAIN, TUNED]
    for way in ways:
        matrix = np.array(results["confusion"][way])
        assert matrix.sum(axis=1).tolist() == [42, 7, 3, 8]
        assert spectra.macro_f1(matrix) == pytest.approx(results["macro_f1"]["test"][way])
        assert f"{results['macro_f1']['test'][way]:.4f} ± " in out
    history = results["history"][TUNED]
    score = results["macro_f1"]["validation"][TUNED]
    assert history["val_f1"][-1] == pytest.approx(score)
    model = models.load(tmp_path / "out" / "model.npz")
    test = survey.load().test
    found = model.probabilities(models.standardize(test.flux)).argmax(axis=1)
    assert (spectra.confusion(test.labels, found) == results["confusion"][TUNED]).all()
    # The other way of tuning, from the same first stage.
    options = "--epochs", 2, "--tune-epochs", 1, "--tune-loss", "cross-entropy", "--resume"
    assert run(*options)[0] == 0
    other = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert other["confusion"][spectra.PLAIN] == results["confusion"][spectra.PLAIN]
    assert other["history"]["then cross entropy"]["loss"] != history["loss"]


def test_resumed_bit_for_bit_from_the_middle_of_each_stage(run, tmp_path, monkeypatch):
    options = ("--epochs", 2, "--tune-epochs", 2, "--blocks", "plain")
    assert run(*options, out="straight")[0] == 0

    def stop_in(stage):
        def interrupt(self, batch, logs):
            if self.path.name.startswith(stage) and self.run.step == 3:
                self.run.stop = self.run.history.interrupted = True

        return interrupt

    resume = []
    for stage in (spectra.PLAIN, TUNED):
        with monkeypatch.context() as patch:
            patch.setattr(md.callbacks.Checkpoint, "on_train_batch_end", stop_in(stage))
            status, out, _ = run(*options, *resume)
        assert status == 130 and "--resume" in out
        assert not (tmp_path / "out" / "model.npz").exists()
        md.seed(12345)
        resume = ["--resume"]
    assert run(*options, "--resume")[0] == 0
    straight, resumed = (
        models.load(tmp_path / folder / "model.npz").state_dict() for folder in ("straight", "out")
    )
    assert all((straight[key] == resumed[key]).all() for key in straight)
    histories = [
        json.loads((tmp_path / folder / "results.json").read_text("utf-8"))["history"]
        for folder in ("straight", "out")
    ]
    assert histories[0] == histories[1]


def test_ones_own_spectra(run, tmp_path, monkeypatch):
    """Told apart by how they wave; nobody knows their redshift or signal."""
    monkeypatch.setattr(spectra, "PEAK_RATE", 3e-2)
    random = np.random.default_rng(0)
    lines, folder = ["id,type"], tmp_path / "data"
    folder.mkdir()
    for i in range(80):
        flux = np.sin(np.arange(POINTS) * (i % 4)) + 0.1 * random.normal(size=POINTS)
        (folder / f"{i}.txt").write_text(",".join(f"{value:.3f}" for value in flux))
        lines.append(f"{i},{('star', 'galaxy', 'qso', 'unknown')[i % 4]}")
    (folder / "index.csv").write_text("\n".join(lines))
    status, out, _ = run("--data", folder, "--epochs", 8, "--tune-epochs", 2)
    assert status == 0 and "SIMULATED" not in out and "by signal to noise" not in out
    results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert results["macro_f1"]["test"][TUNED] > 0.9


def test_what_a_person_can_mend_is_one_line(run, tmp_path):
    status, _, err = run("--data", tmp_path)
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1
    assert "expected one CSV file" in err
    assert run("--epochs", 1, "--tune-epochs", 1)[0] == 0
    status, _, err = run("--epochs", 1, "--tune-epochs", 1, "--blocks", "plain", "--resume")
    assert status == 1 and "blocks 'gated', this one has blocks 'plain'" in err


class TestScores:
    matrix = np.array([[8, 1, 1, 0], [2, 6, 0, 0], [0, 0, 5, 0], [1, 0, 0, 3]])

    def test_are_scikit_learns(self):
        metrics = pytest.importorskip("sklearn.metrics")
        pairs = np.repeat(np.indices((4, 4)).reshape(2, -1), self.matrix.ravel(), axis=1)
        np.testing.assert_allclose(spectra.f1(self.matrix), metrics.f1_score(*pairs, average=None))
        assert (spectra.confusion(*pairs) == self.matrix).all()

    def test_spread_falls_with_the_number_of_spectra(self):
        few, many = spectra.spread(10 * self.matrix), spectra.spread(1000 * self.matrix)
        assert 0.01 < few < 0.1 and many == pytest.approx(few / 10, rel=0.1)


def test_quick_with_everything(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(spectra, "WIDTHS", (4, 6))
    monkeypatch.setattr(spectra, "TREES", 5)
    assert spectra.main(["--quick", "--out", str(tmp_path)]) == 0
    if pictures.available():
        for name in ("learning_curve.png", "confusion.png", "saliency.png"):
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert ("PCA + random forest" in out) != ("no baselines: scikit-learn" in out)
