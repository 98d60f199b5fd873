"""Embeddings of digits that were left out of training: `python -m examples custom`.

Trains one small convolutional network in three ways, with layers, losses and callbacks of its own:
as a classifier, as one whose embeddings are drawn to the centres of their classes, and by triplets.
Then digits of classes never seen look for their like, and pictures show what they find.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

import minidl as md
from examples import digits, experiment, pictures
from examples.digits import Digits
from examples.experiment import Experiment
from models import metric_learning
from models.metric_learning import NETWORKS, Embedder, Retrieval, retrieval, turned, vectors

TRAINED, VALIDATED, LEFT_OUT = "01234", "56", "789"
NAMES = {"softmax": "softmax", "center": "softmax + centres", "triplet": "triplets"}
BASELINE = "pixels"
BATCH = 100
RATES = {"softmax": 5e-3, "center": 5e-3, "triplet": 3e-3}
AVERAGE = 0.98  # a step
GALLERY = 3000  # images among which one looks for its like
DRAWN = 500  # images in the plane
QUERIES, NEIGHBOURS = 2, 9  # of each digit left out; drawn for each query
QUICK_IMAGES = 300


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = experiment.parser("custom", __doc__, Custom.EPOCHS)
    add = parser.add_argument
    add("--seeds", type=experiment.natural, help="trainings of each network (default: 3)")
    add("--only", choices=list(NETWORKS), help="train only this network")
    add("--size", type=experiment.natural, default=32, help="of the embeddings (default: 32)")
    add(
        "--turns",
        type=int,
        choices=range(1, 5),
        default=4,
        help="of so many quarters each digit is trained with, each a class of its own (default: 4)",
    )
    for name, value, what in (
        ("--train-on", TRAINED, "that the networks are trained with"),
        ("--validate-on", VALIDATED, "by whose retrieval weights are chosen"),
        ("--left-out", LEFT_OUT, "that are retrieved in the end"),
    ):
        add(name, type=_classes, default=value, help=f"digits {what} (default: {value})")
    add("--data", metavar="FOLDER", help="MNIST's own four files, gzipped or not")
    options = parser.parse_args(arguments)
    groups = options.train_on, options.validate_on, options.left_out
    if len(set().union(*groups)) < sum(map(len, groups)):
        parser.error("--train-on, --validate-on, --left-out: expected no digit in two of them")
    return options


def _classes(text: str) -> list[int]:
    if not text.isdecimal() or len(set(text)) < max(2, len(text)):
        raise argparse.ArgumentTypeError(f"expected two different digits or more, got {text!r}")
    return sorted(map(int, text))


def main(arguments: Sequence[str]) -> int:
    """Train, retrieve, draw; the process's exit status."""
    return Custom(parse(arguments)).run()


class Custom(Experiment):
    """The example, a method for each part."""

    EPOCHS = 15

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        if options.seeds is None:
            options.seeds = 1 if options.quick else 3
        self.parts = digits.load(options.data)
        self.train_set = self.parts.train.of(options.train_on)
        self.validation = self.never_trained(options.validate_on)
        self.left_out = self.never_trained(options.left_out)
        if options.quick:
            self.train_set = self.train_set.head(QUICK_IMAGES)
            self.validation, self.left_out = self.validation.head(100), self.left_out.head(100)
        self.drawn = self.left_out.head(DRAWN)
        self.figures: dict[str, list[Retrieval]] = {}

    def never_trained(self, classes: Sequence[int]) -> Digits:
        """All images of digits that are not trained with, in whatever part."""
        parts = [part.of(classes) for part in (self.parts.test, self.parts.validation)]
        parts.append(self.parts.train.of(classes))
        images, labels = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels")
        )
        return Digits(images, labels).head(GALLERY)

    def work(self) -> None:
        self.describe()
        options = self.options
        self.figures[BASELINE] = [self.retrieve(_pixels)]
        planes: dict[str, Plane] = {}
        models: dict[str, Embedder] = {}
        for seed in range(options.seed, options.seed + options.seeds):
            for name in [options.only] if options.only else NETWORKS:
                drawing = [Plane(self, name)] if seed == options.seed else []
                model = self.train(name, seed, drawing)
                found = self.retrieve(lambda images, model=model: vectors(model, images))
                self.figures.setdefault(NAMES[name], []).append(found)
                if drawing:
                    model.save(self.out / f"{name}.npz")
                    models[name], planes[NAMES[name]] = model, drawing[0]
        print("\n" + table(self.figures) + "\n")
        self.draw(models, planes)
        self.write(
            data=self.parts.name,
            retrieval={way: [asdict(f) for f in found] for way, found in self.figures.items()},
        )

    def describe(self) -> None:
        print(self.parts.name)
        for what, part in (
            ("trained with", self.train_set),
            ("weights chosen by", self.validation),
            ("left out", self.left_out),
        ):
            kinds = " ".join(map(str, np.unique(part.labels)))
            print(f"  {what:18} {len(part):6,} images of {kinds}")

    # Training

    def train(self, name: str, seed: int, drawing: Sequence[md.callbacks.Callback]) -> Embedder:
        """Train a network; it comes with the averaged weights of its best epoch."""
        options = self.options
        md.seed(seed)
        classes, turns = list(options.train_on), options.turns
        labels = np.searchsorted(classes, self.train_set.labels)
        images, labels = turned(self.train_set.images, labels, len(classes), turns)
        model = NETWORKS[name](len(classes) * turns, options.size)
        monitored = "val_r_precision"
        self.fit(
            f"{name}-{seed}",
            model,
            model.loss,
            md.optimizers.Adam(model, RATES[name]),
            model.batches(images, labels, batch_size=BATCH),
            [
                md.callbacks.ExponentialMovingAverage(AVERAGE),
                RetrievalOf(self.validation, monitored),
                md.callbacks.BestWeights(monitored, mode="max"),
                md.callbacks.ReduceLROnPlateau(monitored, factor=0.5, patience=3, mode="max"),
                *drawing,
            ],
            {
                "data": self.parts.name,
                **{
                    key: getattr(options, key)
                    for key in ("size", "turns", "train_on", "validate_on")
                },
            },
            loss_weights=model.loss_weights,
        )
        return model

    # Measuring

    def retrieve(self, embed: Any) -> Retrieval:
        """How the digits left out find their like; nothing has been chosen by that."""
        return retrieval(embed(self.left_out.images), self.left_out.labels)

    # What is left behind

    def draw(self, models: Mapping[str, Embedder], planes: Mapping[str, Plane]) -> None:
        if not pictures.available():
            print("no pictures: matplotlib is not installed (pip install matplotlib)")
            return
        epochs = range(1, self.options.epochs + 1)
        along = {
            NAMES[name]: [
                history["val_r_precision"]
                for key, history in self.histories.items()
                if key.startswith(name)
            ]
            for name in models
        }
        pictures.curves(
            self.out / "retrieval.png",
            "Retrieval of digits that are not trained with, along training",
            epochs,
            {
                name: np.transpose([np.min(v, 0), np.mean(v, 0), np.max(v, 0)])
                for name, v in along.items()
            },
            "epoch",
            f"R-precision, digits {' '.join(map(str, self.options.validate_on))}",
        )
        shown = sorted({1, 2, 4, len(epochs) // 2, len(epochs)} & set(epochs))
        pictures.scatters(
            self.out / "planes.png",
            "Digits left out, on the two principal axes of their embeddings",
            {name: [own.points[epoch - 1] for epoch in shown] for name, own in planes.items()},
            self.drawn.labels,
            [f"epoch {epoch}" for epoch in shown],
        )
        self.draw_neighbours(models)
        print(f"pictures in {self.out}: retrieval.png, planes.png, neighbours.png, planes/")

    def draw_neighbours(self, models: Mapping[str, Embedder]) -> None:
        """For some of the digits left out what each network finds; wrong ones in white on black."""
        images, labels = self.left_out.images, self.left_out.labels
        queries = [
            i for digit in self.options.left_out for i in np.flatnonzero(labels == digit)[:QUERIES]
        ]
        nearest = {
            name: metric_learning.ranking(vectors(model, images))[queries, :NEIGHBOURS]
            for name, model in models.items()
        }
        rows, names = [], []
        for place, query in enumerate(queries):
            for name, found in nearest.items():
                own = found[place]
                wrong = (labels[own] != labels[query])[:, None, None, None]
                rows.append([images[query], *np.where(wrong, 1 - images[own], images[own])])
                names.append(f"{labels[query]}, {name}")
        pictures.grid(
            self.out / "neighbours.png",
            "The nearest among the digits left out (another digit: white on black)",
            np.array(rows),
            names,
            ["query", *map(str, range(1, NEIGHBOURS + 1))],
        )


class RetrievalOf(md.callbacks.Callback):
    """Adds how well the images of `part` find those of their label, as `name`, after each epoch."""

    def __init__(self, part: Digits, name: str) -> None:
        self.part, self.name, self.adds = part, name, (name,)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        x = vectors(self.run.model, self.part.images)
        logs[self.name] = retrieval(x, self.part.labels).r_precision


class Plane(md.callbacks.Callback):
    """Draws where digits left out lie on their embeddings' two principal axes, after each epoch.

    `points` keeps them, an array (images, 2) for each epoch, over a resume too.
    """

    def __init__(self, example: Custom, name: str) -> None:
        self.example, self.name = example, name
        self.points: list[np.ndarray] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        example, before = self.example, self.points[-1] if self.points else None
        x = vectors(self.run.model, example.drawn.images)
        self.points.append(metric_learning.plane(x, before))
        if pictures.available():
            pictures.scatters(
                example.out / "planes" / f"{self.name}-{epoch + 1:02}.png",
                f"epoch {epoch + 1}",
                {NAMES[self.name]: self.points[-1:]},
                example.drawn.labels,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points = list(state["points"])


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def table(figures: Mapping[str, Sequence[Retrieval]]) -> str:
    """The figures as text: a row for each way to compare, the mean and the spread over seeds."""
    columns = ("precision_at_1", "r_precision", "mean_average_precision")
    lines = [f"{'digits left out':20}{'precision at 1':>20}{'R-precision':>20}{'MAP':>20}"]
    for way, found in figures.items():
        cells = ""
        for column in columns:
            values = [getattr(one, column) for one in found]
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            cells += f"{np.mean(values):.4f}{spread}".rjust(20)
        lines.append(f"  {way:18}{cells}")
    return "\n".join(lines)
