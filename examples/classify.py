"""Praise or complaint? Self-attention over characters: `python -m examples classify`.

Trains the article's network and a better one of its kind, measures both on texts never seen beside
logistic regression on TF-IDF weights, judges a text of yours, and draws where characters look.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence

import numpy as np

import minidl as md
from examples import experiment, pictures, reviews
from examples.experiment import Experiment, fingerprint
from models.classifier import PATTERNS, AttentionClassifier, PairClassifier
from models.text import Vocabulary

TEXTS = ["酒店位置不错，房间也很干净，下次还会来。", "用了三天就坏了，客服态度也差，很失望。"]
BATCH, BUCKET = 64, 50
QUICK_TEXTS = 400
DRAWN = 24  # characters of a text that fit in a picture

ARTICLE, PAIRS, BASELINE = "attention", "pairs", "TF-IDF + logistic regression"
NAMES = {ARTICLE: "the article's network", PAIRS: "the one with pairs"}
PEAK_RATE = 1e-3
WEIGHT_DECAY = {ARTICLE: 0.0, PAIRS: 0.1}
AVERAGE = 0.995  # a step: the weights of "pairs" are used as averaged

Judge = Callable[[Sequence[str]], np.ndarray]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = experiment.parser("classify", __doc__, Classify.EPOCHS)
    add = parser.add_argument
    add("--text", action="append", metavar="TEXT", help="text to judge; may be given repeatedly")
    add("--only", choices=list(NAMES), help="train only this network")
    add(
        "--attention",
        choices=list(PATTERNS),
        default="full",
        help="which characters a character may look at (default: full)",
    )
    add(
        "--data",
        metavar="FOLDER",
        help="your own texts: a folder with pos/ and neg/, a UTF-8 *.txt file each; or with train/ "
        "and test/ that hold such folders, as the IMDB reviews",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Train, measure, judge, draw; the process's exit status."""
    return Classify(parse(arguments)).run()


class Classify(Experiment):
    """The example, a method for each part."""

    EPOCHS = 4

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.parts = reviews.load(options.data)
        if options.quick:
            self.parts = self.parts.head(QUICK_TEXTS)
        self.scores: dict[str, dict[str, float]] = {}

    def work(self) -> None:
        self.describe()
        models = {}
        for name in [self.options.only] if self.options.only else NAMES:
            models[name] = self.train(name)
            models[name].save(self.out / f"{name}.npz")
            self.measure(NAMES[name], models[name].probabilities)
        self.baseline()
        print("\n" + table(self.scores) + "\n")
        best = models.get(PAIRS) or models[ARTICLE]
        self.judge(best)
        self.draw(models)
        self.write(data=self.parts.name, accuracy=self.scores)

    def describe(self) -> None:
        print(self.parts.name)
        for name in ("train", "validation", "test"):
            part = getattr(self.parts, name)
            positive = np.mean([label for _, label in part])
            length = np.mean([len(text) for text, _ in part])
            print(
                f"  {name:10} {len(part):7,} texts, {positive:.1%} positive, {length:.0f} "
                "characters on average"
            )

    # Training

    def train(self, name: str) -> AttentionClassifier:
        """Train the network of this name; the one that is used as averaged comes so."""
        options, parts = self.options, self.parts
        md.seed(options.seed)
        texts = [text[: AttentionClassifier.LONGEST] for text, _ in parts.train]
        vocabulary = Vocabulary.of(texts, least=2, least_pair=2 if name == PAIRS else None)
        network = PairClassifier if name == PAIRS else AttentionClassifier
        model = network(vocabulary, attention=options.attention)
        batches = md.data.Batches(
            [model.encode(text) for text, _ in parts.train],
            np.array([label for _, label in parts.train], np.float32),
            batch_size=BATCH,
            bucket=BUCKET,
            input_limits=max(vocabulary.sizes),
        )
        schedule = md.schedules.OneCycle(PEAK_RATE, options.epochs * len(batches))
        average = md.callbacks.ExponentialMovingAverage(AVERAGE)
        self.fit(
            name,
            model,
            model.loss,
            md.optimizers.AdamW(model, schedule, weight_decay=WEIGHT_DECAY[name]),
            batches,
            [ValidationAccuracy(parts.validation), *([average] if name == PAIRS else [])],
            {
                "attention": options.attention,
                "data": parts.name,
                "training text": fingerprint(f"{label} {text}" for text, label in parts.train),
            },
        )
        if name == PAIRS:
            average.apply()
        return model

    # Measuring

    def measure(self, name: str, judge: Judge) -> None:
        """Accuracy on what was held out; nothing has been chosen by that on the test split."""
        held_out = {"validation": self.parts.validation, "test": self.parts.test}
        self.scores[name] = {part: accuracy(judge, texts) for part, texts in held_out.items()}

    def baseline(self) -> None:
        """Logistic regression on TF-IDF weights of characters and pairs of them."""
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.linear_model import LogisticRegression
        except ImportError:
            print("no baseline: scikit-learn is not installed (pip install scikit-learn)")
            return
        weigh = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        texts, labels = zip(*self.parts.train, strict=True)
        model = LogisticRegression(max_iter=1000).fit(weigh.fit_transform(texts), labels)
        self.measure(BASELINE, lambda texts: model.predict_proba(weigh.transform(texts))[:, 1])

    def judge(self, model: AttentionClassifier) -> None:
        texts = self.options.text or TEXTS
        for text, p in zip(texts, model.probabilities(texts), strict=True):
            print(f"{'praise' if p > 0.5 else 'complaint'} (p(praise) = {p:.2f})  {text}")

    # What is left behind

    def draw(self, models: dict[str, AttentionClassifier]) -> None:
        if not pictures.available():
            print("no pictures: matplotlib is not installed (pip install matplotlib)")
            return
        validation = {name: scores["validation"] for name, scores in self.scores.items()}
        pictures.learning_curve(
            self.out / "learning_curve.png",
            f"Classification: {self.parts.name}",
            {NAMES[name]: history["loss"] for name, history in self.histories.items()},
            {NAMES[name]: history["val_accuracy"] for name, history in self.histories.items()},
            "accuracy, validation",
            {BASELINE: validation[BASELINE]} if BASELINE in validation else {},
        )
        text = next(filter(None, self.options.text or []), TEXTS[1])[:DRAWN]
        drawn = ["learning_curve.png"]
        for name, model in models.items():
            if model.attention == "full":  # the other patterns never lay their weights out
                drawn.append(f"{name}.png")
                pictures.heat_map(
                    self.out / drawn[-1],
                    f"Where each character looks, the mean of all heads ({NAMES[name]})",
                    model.explain(text).mean(axis=0),
                    text,
                    text,
                )
        print(f"pictures in {self.out}: {', '.join(drawn)}")


class ValidationAccuracy(md.callbacks.Callback):
    """Adds the accuracy on the validation split to each epoch's figures, as `val_accuracy`."""

    adds = ("val_accuracy",)

    def __init__(self, texts: list[reviews.Review]) -> None:
        self.texts = texts

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        logs["val_accuracy"] = accuracy(self.run.model.probabilities, self.texts)


def accuracy(judge: Judge, texts: Iterable[reviews.Review]) -> float:
    """The share of texts whose label `judge` finds: the likelier of the two."""
    read, labels = zip(*texts, strict=True)
    return float(np.mean((judge(read) > 0.5) == np.array(labels)))


def table(scores: dict[str, dict[str, float]]) -> str:
    """The accuracies as text: a row for each way to classify."""
    lines = [f"{'accuracy':30}{'validation':>12}{'test':>12}"]
    for way, by_part in scores.items():
        lines.append(f"  {way:28}{by_part['validation']:>12.4f}{by_part['test']:>12.4f}")
    return "\n".join(lines)
