"""Chinese word segmentation with convolutions and a linear-chain CRF: `python -m examples segment`.

Trains on the People's Daily of January 1998, measures words found on sentences never seen, beside
forward maximum matching; segments a sentence of yours, and draws what the CRF makes of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

import minidl as md
from examples import corpora, experiment, pictures
from examples.experiment import Experiment, fingerprint
from examples.words import MaximumMatching, Score, score
from models import segmenter
from models.segmenter import LargeSegmenter, Segmenter
from models.text import Vocabulary

TEXT = "结婚的和尚未结婚的都在研究生命的起源。"
BATCH, PEAK_RATE, BUCKET = 64, 4e-3, 50
QUICK_PARAGRAPHS = 800
DRAWN = 22  # characters of a sentence that fit in a picture

Words = list[str]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, checked."""
    parser = experiment.parser("segment", __doc__, Segment.EPOCHS)
    add = parser.add_argument
    add("--text", action="append", metavar="TEXT", help="text to segment; may be given repeatedly")
    add("--large", action="store_true", help="the larger network: pairs, gates and residuals")
    add("--compare", action="store_true", help="train also without the CRF, by a softmax per tag")
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="FILE",
        help="your own text to train on, perhaps a second file to test on: UTF-8, words divided by "
        "spaces, a sentence a line (as msr_training.utf8 and msr_test_gold.utf8)",
    )
    options = parser.parse_args(arguments)
    if len(options.data) > 2:
        parser.error("--data takes a file to train on and perhaps one to test on")
    return options


def main(arguments: Sequence[str]) -> int:
    """Train, measure, segment, draw; the process's exit status."""
    return Segment(parse(arguments)).run()


class Segment(Experiment):
    """The example, a method for each part."""

    EPOCHS = 10

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
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

    def work(self) -> None:
        self.describe()
        models = {}
        for name in ["crf", "softmax"] if self.options.compare else ["crf"]:
            models[name] = self.train_network(name)
            models[name].save(self.out / f"{name}.npz")
        self.measure(models)
        print("\n" + table(self.scores) + "\n")
        self.segment(models["crf"])
        self.draw(models["crf"])
        self.write(
            data=self.parts.name,
            scores={
                way: {part: asdict(value) for part, value in by_part.items()}
                for way, by_part in self.scores.items()
            },
        )

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

    def train_network(self, name: str) -> Segmenter:
        """Train the network whose decoder is `name`."""
        options = self.options
        md.seed(options.seed)
        network = LargeSegmenter if options.large else Segmenter
        model = network(self.vocabulary, decoder=name)
        batches = self.batches()
        schedule = md.schedules.OneCycle(PEAK_RATE, options.epochs * len(batches))
        self.fit(
            name,
            model,
            model.loss,
            md.optimizers.Adam(model, schedule),
            batches,
            [ValidationScore(self.held_out["validation"], self.lexicon)],
            {
                "large": options.large,
                "data": self.parts.name,
                "training text": fingerprint(map(" ".join, self.train)),
            },
        )
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


def segment_text(model: Segmenter, text: str) -> Words:
    """The words of any text: sentence by sentence, as in training; white space divides words."""
    return [word for words in model.segment(corpora.pieces(text)) for word in words]


class ValidationScore(md.callbacks.Callback):
    """Adds the F1 of words on the validation split to each epoch's figures, as `val_f1`."""

    adds = ("val_f1",)

    def __init__(self, sentences: list[Words], lexicon: frozenset[str]) -> None:
        self.sentences, self.lexicon = sentences, lexicon
        self.texts = ["".join(words) for words in sentences]

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        predicted = self.run.model.segment(self.texts)
        logs["val_f1"] = score(self.sentences, predicted, self.lexicon).f1


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
