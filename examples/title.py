"""Titles for articles: a sequence to sequence network: `python -m examples title`.

Trains on the headlines of the People's Daily of January 1998, or on Python's docstrings, with the
prior and without it; measures both on articles never seen, shows the titles of some as they come,
writes one for an article of yours, and draws where the decoder looks while it writes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

import minidl as md
from examples import experiment, pictures
from examples.experiment import Experiment, fingerprint
from examples.titles import CORPORA, Pair, practice, titles
from models.text import FULL_WIDTH, Vocabulary
from models.titler import LONGEST_ARTICLE, LONGEST_TITLE, Titler

BATCH, PEAK_RATE, BUCKET, DROPOUT = 32, 4e-3, 20, 0.2
PRACTICE = 3  # clauses of each article, at most, that are practised on beside its title
QUICK_PAIRS = 96
SHOWN = 10  # articles of the test split whose titles are printed
DRAWN = 32  # characters of an article that fit in a picture
RESAMPLES = 10_000
HALF_WIDTH = {full: half for half, full in FULL_WIDTH.items()}

NAMES = {"copy": "with the copy prior", "plain": "without it"}
MEASURES = {"ROUGE-L": md.metrics.rouge_l, "characters": md.metrics.token_f1}  # of characters


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, checked."""
    parser = experiment.parser("title", __doc__, Title.EPOCHS)
    add = parser.add_argument
    add("--text", action="append", metavar="TEXT", help="an article; may be given repeatedly")
    add("--corpus", choices=CORPORA, default=CORPORA[0], help="what to train on")
    add("--width", type=experiment.natural, default=5, help="of the beam (default: 5)")
    add("--only", choices=list(NAMES), help="train one of the two networks")
    add(
        "--data",
        metavar="FILE",
        help='your own articles: UTF-8, lines of {"title": "...", "content": "..."}',
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Train, measure, write titles, draw; the process's exit status."""
    return Title(parse(arguments)).run()


class Title(Experiment):
    """The example, a method for each part."""

    EPOCHS = 6

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.parts = titles(options.corpus, options.data)
        if options.quick:
            self.parts = self.parts.head(QUICK_PAIRS)
        self.practice = practice(self.parts, PRACTICE)
        self.held_out = {"validation": self.parts.validation, "test": self.parts.test}
        self.vocabulary = Vocabulary.of(
            text[:LONGEST_ARTICLE] for pair in self.parts.train for text in pair
        )
        self.scores: dict[str, dict[str, dict[str, float]]] = {}
        self.written: dict[str, list[str]] = {}  # titles of the test split

    def work(self) -> None:
        self.describe()
        models = {}
        for name in [self.options.only] if self.options.only else NAMES:
            models[name] = self.train_network(name)
            models[name].save(self.out / f"{name}.npz")
        gain = self.measure(models)
        print("\n" + table(self.scores))
        if gain:
            print(
                "what the prior takes from the loss on test: {:.4f}, 95 % interval {:.4f} to "
                "{:.4f} (paired bootstrap over articles)".format(*gain)
            )
        self.show()
        model = next(iter(models.values()))
        self.write_own(model)
        self.draw(model)
        self.write(data=self.parts.name, scores=self.scores, gain=gain)

    def describe(self) -> None:
        print(self.parts.name)
        for name in ("train", "validation", "test"):
            pairs = getattr(self.parts, name)
            lengths = [np.mean([len(pair[i]) for pair in pairs]) for i in range(2)]
            print(
                f"  {name:10} {len(pairs):6,} articles, {lengths[1]:.0f} characters in the mean, "
                f"their titles {lengths[0]:.1f}"
            )
        print(
            f"  to train on beside them: {len(self.practice):,} clauses of the training articles\n"
            f"  the first {LONGEST_ARTICLE} characters of an article are read, "
            f"{self.vocabulary.sizes[0]:,} different ones"
        )
        length = round(np.mean([len(pair.title) for pair in self.parts.train]))
        for part, pairs in self.held_out.items():
            found = [pair.content[:length] for pair in pairs]
            self.note(f"the first {length} characters", part, pairs, found)

    def train_network(self, name: str) -> Titler:
        """Train with or without the prior; the weights of the best epoch on validation stay."""
        options = self.options
        md.seed(options.seed)
        longest = max(LONGEST_TITLE, *(len(pair.title) for pair in self.parts.train))
        model = Titler(self.vocabulary, name == "copy", DROPOUT, longest=longest)
        batches = batches_of(model, self.parts.train, practice=self.practice, bucket=BUCKET)
        schedule = md.schedules.OneCycle(PEAK_RATE, options.epochs * len(batches))
        self.fit(
            name,
            model,
            model.loss,
            md.optimizers.Adam(model, schedule, global_clipnorm=1.0),
            batches,
            [md.callbacks.BestWeights("val_loss")],
            {
                "data": self.parts.name,
                "training text": fingerprint(
                    "\n".join(pair) for pair in self.parts.train + self.practice
                ),
            },
            validation=batches_of(model, self.parts.validation, shuffle=False),
        )
        return model

    # Measuring

    def measure(self, models: dict[str, Titler]) -> tuple[float, float, float] | None:
        """All the scores; nothing has been chosen by those on the test split.

        Gives the prior's gain in loss on test and its interval, where both networks are there.
        """
        losses = {}
        for part, pairs in self.held_out.items():
            contents = [pair.content for pair in pairs]
            for name, model in models.items():
                losses[name, part] = model.title_losses([pair.title for pair in pairs], contents)
                loss = float(losses[name, part][0].sum() / losses[name, part][1].sum())
                for way, width in (
                    ("greedy", 1),
                    (f"beam {self.options.width}", self.options.width),
                ):
                    found = [half_width(text) for text in model.titles(contents, width)]
                    self.note(f"{NAMES[name]}, {way}", part, pairs, found, loss)
                if part == "test":
                    self.written[name] = found
        if len(models) < 2:
            return None
        (plain, counts), (copy, _) = (losses[name, "test"] for name in ("plain", "copy"))
        return bootstrap(plain - copy, counts, self.options.seed)

    def note(
        self, way: str, part: str, pairs: Sequence[Pair], found: Sequence[str], loss: float = np.nan
    ) -> None:
        """Keep the mean scores of titles that were written in this `way`."""
        both = [
            (text.translate(FULL_WIDTH), pair.title.translate(FULL_WIDTH))
            for pair, text in zip(pairs, found, strict=True)
        ]
        means = {name: float(np.mean([f(*two).f1 for two in both])) for name, f in MEASURES.items()}
        length = float(np.mean([len(text) for text in found]))
        self.scores.setdefault(way, {})[part] = {"loss": loss, **means, "length": length}

    # Titles

    def show(self) -> None:
        """The titles of articles from all over the test split, as they come."""
        pairs = self.parts.test
        chosen = np.linspace(0, len(pairs) - 1, min(SHOWN, len(pairs))).astype(int)
        print(f"\n{len(chosen)} articles of the test split, their titles and what was written")
        for i in chosen:
            print(f"  {pairs[i].title}   <- {pairs[i].content[:24]}…")
            for name, found in self.written.items():
                print(f"    {NAMES[name]:20} {found[i]}")

    def write_own(self, model: Titler) -> None:
        texts = self.options.text or []
        for text, title in zip(texts, model.titles(texts, self.options.width), strict=True):
            print(f"{half_width(title) or '(no characters: no title)'}   <- {text[:24]}")

    def draw(self, model: Titler) -> None:
        if not pictures.available():
            print("no pictures: matplotlib is not installed (pip install matplotlib)")
            return
        article = next(filter(None, self.options.text or []), self.parts.test[0].content)
        title, weights = model.explain(article, self.options.width)
        pictures.heat_map(
            self.out / "attention.png",
            "Where the decoder looks while it writes each character of the title",
            weights[:, :DRAWN],
            half_width(title),
            article[:DRAWN],
        )
        histories = {NAMES[name]: history for name, history in self.histories.items()}
        pictures.learning_curve(
            self.out / "learning_curve.png",
            f"Titles: {self.parts.name}",
            {name: history["loss"] for name, history in histories.items()},
            {name: history["val_loss"] for name, history in histories.items()},
            "validation loss",
        )
        print(f"pictures in {self.out}: attention.png, learning_curve.png")


def batches_of(model: Titler, pairs: Sequence[Pair], **options: Any) -> md.data.Batches:
    columns = [pair.title for pair in pairs], [pair.content for pair in pairs]
    return model.batches(*columns, BATCH, **options)


def half_width(text: str) -> str:
    """Letters, digits and signs as in English text, if there is nothing else in it."""
    narrow = text.translate(HALF_WIDTH)
    return narrow if narrow.isascii() else text


def bootstrap(
    gains: np.ndarray, counts: np.ndarray, seed: int, share: float = 0.95
) -> tuple[float, float, float]:
    """sum(gains) / sum(counts), and between what it lies for this share of resampled articles.

    gains, counts: (articles,): the differences of the two networks' losses, summed over a title's
    tokens, and how many these are. Percentiles of a paired bootstrap (Efron and Tibshirani 1993).
    """
    chosen = np.random.default_rng(seed).integers(0, len(gains), (RESAMPLES, len(gains)))
    means = gains[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(gains.sum() / counts.sum()), float(low), float(high)


def table(scores: dict[str, dict[str, dict[str, float]]]) -> str:
    """The scores as text: a row for each way to find a title."""
    columns = ["loss", *MEASURES, "length"]
    lines = []
    for part in ("validation", "test"):
        lines.append(f"{part:30}" + "".join(f"{column:>12}" for column in columns))
        for way, by_part in scores.items():
            values = (by_part[part][column] for column in columns)
            shown = ("-" if np.isnan(value) else f"{value:.4f}" for value in values)
            lines.append(f"  {way:28}" + "".join(f"{value:>12}" for value in shown))
    note = "loss: of a character; characters: F1 of those that stand in both; means over articles"
    return "\n".join([*lines, note])
