"""Chinese word segmentation with convolutions and a linear-chain CRF: `python -m examples segment`.

Trains on the People's Daily of January 1998, measures words found on sentences never seen, beside
forward maximum matching; segments a sentence of yours, and draws what the CRF makes of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import minidl as md
from examples import corpora, pictures
from examples.words import MaximumMatching, Score, score
from minidl.errors import SerializationError
from models import segmenter
from models.segmenter import LargeSegmenter, Segmenter, Vocabulary

TEXT = "结婚的和尚未结婚的都在研究生命的起源。"
BATCH, PEAK_RATE, BUCKET = 64, 4e-3, 50
QUICK_PARAGRAPHS = 800
DRAWN = 22  # characters of a sentence that fit in a picture

Words = list[str]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, checked."""
    parser = argparse.ArgumentParser("python -m examples segment", description=__doc__)
    add = parser.add_argument
    add("--text", action="append", metavar="TEXT", help="text to segment; may be given repeatedly")
    add("--epochs", type=_natural, help="passes over the training split (default: 10)")
    add("--large", action="store_true", help="the larger network: pairs, gates and residuals")
    add("--compare", action="store_true", help="train also without the CRF, by a softmax per tag")
    add("--quick", action="store_true", help="a few paragraphs and one epoch: does it all work?")
    add("--seed", type=_seed, default=0, help="of initial weights, order and dropout (default: 0)")
    add("--device", default="cpu", help="cpu, gpu, gpu:N, or strict: NumPy with CuPy's manners")
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="FILE",
        help="your own text to train on, perhaps a second file to test on: UTF-8, words divided by "
        "spaces, a sentence a line (as msr_training.utf8 and msr_test_gold.utf8)",
    )
    add("--out", type=Path, default=Path("runs/segment"), help="folder for what is written")
    add("--resume", action="store_true", help="go on from the checkpoints in --out")
    options = parser.parse_args(arguments)
    if len(options.data) > 2:
        parser.error("--data takes a file to train on and perhaps one to test on")
    options.epochs = options.epochs or (1 if options.quick else 10)
    return options


def main(arguments: Sequence[str]) -> int:
    """Train, measure, segment, draw; the process's exit status."""
    options = parse(arguments)
    with md.device(options.device), md.threads(min(2, os.cpu_count() or 1)):
        return Experiment(options).run()


class Experiment:
    """One run of the example, a method for each part."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out = options.out
        self.parts = corpora.segmentation(options.data)
        if options.quick:
            self.parts = self.parts.head(QUICK_PARAGRAPHS)
        self.lexicon = self.parts.lexicon()
        longest = corpora.LONGEST_SENTENCE
        self.train = [s for words in self.parts.train for s in corpora.sentences(words, longest)]
        # Measured on whole sentences, however long.
        self.held_out = {
            name: [s for words in part for s in corpora.sentences(words)]
            for name, part in (("validation", self.parts.validation), ("test", self.parts.test))
        }
        self.vocabulary = Vocabulary.of(
            map("".join, self.train), least=2, least_pair=4 if options.large else None
        )
        self.scores: dict[str, dict[str, Score]] = {}
        self.histories: dict[str, md.History] = {}
        self.seconds: dict[str, float] = {}

    def run(self) -> int:
        options = self.options
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SerializationError(
                f"--out: cannot make the folder {self.out} ({error.strerror}); give another one"
            ) from error
        self.describe()
        names = ["crf", "softmax"] if options.compare else ["crf"]
        if options.resume and not any(self.checkpoint(name).is_file() for name in names):
            raise SerializationError(
                f"--resume: expected a checkpoint in {self.out}, found none; leave --resume out"
            )
        models = {}
        for name in names:
            models[name] = self.fit(name)
            if self.histories[name].interrupted:
                print(f"interrupted; saved in {self.out}: the same command with --resume goes on")
                return 130
            models[name].save(self.out / f"{name}.npz")
        self.measure(models)
        print("\n" + table(self.scores) + "\n")
        self.segment(models["crf"])
        self.draw(models["crf"])
        self.write()
        return 0

    def describe(self) -> None:
        parts = self.parts
        print(parts.name)
        for name in ("train", "validation", "test"):
            paragraphs = getattr(parts, name)
            words = [word for paragraph in paragraphs for word in paragraph]
            unseen = sum(word not in self.lexicon for word in words) / len(words)
            note = f", {unseen:.1%} of them not in train" if name != "train" else ""
            print(f"  {name:10} {len(paragraphs):7,} paragraphs {len(words):10,} words{note}")
        characters, pairs = self.vocabulary.sizes
        extra = f", {pairs:,} pairs" if self.options.large else ""
        print(f"  {len(self.train):,} sentences to train on, {characters:,} characters{extra}")
        baseline = MaximumMatching(self.lexicon)
        for name, sentences in self.held_out.items():
            predicted = [baseline.segment("".join(words)) for words in sentences]
            self.scores.setdefault("maximum matching", {})[name] = score(
                sentences, predicted, self.lexicon
            )
        by_part = self.scores["maximum matching"]
        f1 = ", ".join(f"{by_part[name].f1:.4f} on {name}" for name in by_part)
        print(f"  baseline, forward maximum matching with the words of train: F1 {f1}")

    # Training

    def fingerprint(self) -> str:
        """Tells this training text from another one, also of the same name."""
        text = "\n".join(" ".join(words) for words in self.train)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def checkpoint(self, name: str) -> Path:
        return self.out / f"{name}.checkpoint.npz"

    def fit(self, name: str) -> Segmenter:
        """Train the network whose decoder is `name`."""
        options = self.options
        md.seed(options.seed)
        network = LargeSegmenter if options.large else Segmenter
        model = network(self.vocabulary, decoder=name)
        batches = self.batches()
        schedule = md.schedules.OneCycle(PEAK_RATE, options.epochs * len(batches))
        optimizer = md.optimizers.Adam(model, schedule)
        size = sum(parameter.size for parameter in model.parameters())
        print(f"\n{network.__name__} with {name}: {size:,} parameters")
        path = self.checkpoint(name)
        settings = {"seed": options.seed, "epochs": options.epochs, "large": options.large}
        settings |= {
            "data": self.parts.name,
            "quick": options.quick,
            "training text": self.fingerprint(),
        }
        start = time.perf_counter()
        self.histories[name] = md.fit(
            model,
            model.loss,
            optimizer,
            batches,
            epochs=options.epochs,
            callbacks=[
                ValidationScore(self.held_out["validation"], self.lexicon),
                SameSettings(settings),
                md.callbacks.Checkpoint(path),
            ],
            resume=path if options.resume and path.is_file() else None,
        )
        self.seconds[name] = time.perf_counter() - start
        return model

    def batches(self) -> md.data.Batches:
        return md.data.Batches(
            [self.vocabulary.encode("".join(words)) for words in self.train],
            [np.array(segmenter.tags_of(words), np.int32) for words in self.train],
            batch_size=BATCH,
            bucket=BUCKET,
            input_limits=max(self.vocabulary.sizes),
            target_limits=len(segmenter.TAGS),
        )

    # Measuring

    def measure(self, models: dict[str, Segmenter]) -> None:
        """All the scores; nothing has been chosen by those on the test split."""
        for name, sentences in self.held_out.items():
            texts = ["".join(words) for words in sentences]
            ways = {}
            if "softmax" in models:
                ways["softmax, best tags"] = models["softmax"].segment(texts, legal=False)
                ways["softmax, best legal path"] = models["softmax"].segment(texts)
            ways["CRF"] = models["crf"].segment(texts)
            for way, predicted in ways.items():
                self.scores.setdefault(way, {})[name] = score(sentences, predicted, self.lexicon)

    def segment(self, model: Segmenter) -> None:
        for text in self.options.text or [TEXT]:
            print(" ".join(segment_text(model, text)) or "(no characters: no words)")

    # What is left behind

    def draw(self, model: Segmenter) -> None:
        if not pictures.available():
            print("no pictures: matplotlib is not installed (pip install matplotlib)")
            return
        texts = [piece for text in self.options.text or [TEXT] for piece in corpora.pieces(text)]
        text = (texts or [TEXT])[0][:DRAWN]
        labels = {"crf": "CRF", "softmax": "softmax"}
        pictures.learning_curve(
            self.out / "learning_curve.png",
            f"Word segmentation: {self.parts.name}",
            {labels[name]: history["loss"] for name, history in self.histories.items()},
            {labels[name]: history["val_f1"] for name, history in self.histories.items()},
            "F1 of words, validation",
            {"maximum matching": self.scores["maximum matching"]["validation"].f1},
        )
        seen = model.explain(text)
        pictures.trellis(
            self.out / "trellis.png",
            text,
            segmenter.TAGS,
            seen["emissions"],
            seen["transitions"],
            seen["path"],
            segmenter.ALLOWED,
        )
        ends = np.flatnonzero(segmenter.ENDS)
        pictures.marginals(
            self.out / "marginals.png",
            text,
            segmenter.TAGS,
            seen["marginals"],
            seen["path"],
            ends,
        )
        print(f"pictures in {self.out}: learning_curve.png, trellis.png, marginals.png")

    def write(self) -> None:
        options = {k: v for k, v in vars(self.options).items() if k not in ("out", "text")}
        results = {
            "options": options,
            "data": self.parts.name,
            "scores": {
                way: {part: asdict(value) for part, value in by_part.items()}
                for way, by_part in self.scores.items()
            },
            "history": {name: history.history for name, history in self.histories.items()},
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "versions": {"minidl": md.__version__, "numpy": np.__version__},
        }
        text = json.dumps(_without_nan(results), indent=1, ensure_ascii=False)
        (self.out / "results.json").write_text(text + "\n", encoding="utf-8")
        print(f"figures in {self.out / 'results.json'}, weights beside them")


def segment_text(model: Segmenter, text: str) -> Words:
    """The words of any text: sentence by sentence, as in training; white space divides words."""
    return [word for words in model.segment(corpora.pieces(text)) for word in words]


class ValidationScore(md.callbacks.Callback):
    """Adds the F1 of words on the validation split to each epoch's figures, as `val_f1`."""

    def __init__(self, sentences: list[Words], lexicon: frozenset[str]) -> None:
        self.sentences, self.lexicon = sentences, lexicon
        self.texts = ["".join(words) for words in sentences]

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        predicted = self.run.model.segment(self.texts)
        logs["val_f1"] = score(self.sentences, predicted, self.lexicon).f1


@dataclass
class SameSettings(md.callbacks.Callback):
    """Refuses to go on from the checkpoint of a run with other settings."""

    settings: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        return self.settings

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state != self.settings:
            names = [name for name in self.settings if state.get(name) != self.settings[name]]
            was = ", ".join(f"{name} {state.get(name)!r}" for name in names)
            now = ", ".join(f"{name} {self.settings[name]!r}" for name in names)
            raise SerializationError(
                f"--resume: the checkpoint is of a run with {was}, this one has {now}; give the "
                "same options, or another --out"
            )


def table(scores: dict[str, dict[str, Score]]) -> str:
    """The scores as text: a row for each way to segment."""
    columns = ("precision", "recall", "F1", "unseen")
    lines = []
    for part in ("validation", "test"):
        lines.append(f"{part:26}" + "".join(f"{column:>11}" for column in columns))
        for way, by_part in scores.items():
            s = by_part[part]
            values = (s.precision, s.recall, s.f1, s.unseen_recall)
            shown = ("-" if np.isnan(value) else f"{value:.4f}" for value in values)
            lines.append(f"  {way:24}" + "".join(f"{value:>11}" for value in shown))
    return "\n".join([*lines, "unseen: recall on words that are not in train"])


def _natural(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, got {text!r}")
    return int(text)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
