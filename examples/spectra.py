"""Star, galaxy, quasar or unknown? A residual network over spectra: `python -m examples spectra`.

Trains with weighted classes, fine-tunes on soft F1, and measures both on spectra never seen beside
two baselines on principal components. Draws the confusion matrices, and where in a spectrum of each
class the network looks. The spectra are SIMULATED, or those of a folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

import minidl as md
from examples import experiment, pictures, sky, survey
from examples.experiment import Experiment, fingerprint, natural
from models.spectra import CLASSES, WIDTHS, SpectrumClassifier, saliency, standardize

BATCH, TUNE_BATCH = 64, 256
PEAK_RATE, TUNE_RATE = 3e-3, 1e-3
TUNE_EPOCHS = 3
QUICK = 0.02  # of the simulated spectra
COMPONENTS, TREES = 50, 200

PLAIN = "weighted cross entropy"
TUNED = {"soft-f1": "then soft F1", "cross-entropy": "then cross entropy"}
SIGNALS = (0, 1, 2, 4, 8, 16, np.inf)  # edges of signal to noise, of the simulated spectra
SHOWN_SIGNAL = 12.0  # of the spectra in the picture
# The lines named in the picture: those that astronomers go by.
MARKS = {
    "star": {"Ca H K": 3952, "G": 4305.6, "H β": 4862.7, "Mg b": 5176, "Na D": 5894.6,
             "H α": 6564.6, "Ca II": 8544.4},
    "galaxy": {"[O II]": 3728.5, "4000": 4000, "G": 4305.6, "H β": 4862.7, "[O III]": 5008.2,
               "Mg b": 5176, "Na D": 5894.6, "H α": 6564.6, "[S II]": 6725},
    "quasar": {"Ly α": 1215.7, "C IV": 1549.5, "C III]": 1908.7, "Mg II": 2799.1, "H γ": 4341.7,
               "H β": 4862.7, "[O III]": 5008.2, "H α": 6564.6},
    "unknown": {},
}  # fmt: skip


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = experiment.parser("spectra", __doc__, Spectra.EPOCHS)
    add = parser.add_argument
    add(
        "--tune-epochs",
        type=natural,
        default=TUNE_EPOCHS,
        help="passes of fine-tuning (default: %(default)s)",
    )
    add(
        "--tune-loss",
        choices=list(TUNED),
        default="soft-f1",
        help="of fine-tuning; cross-entropy, unweighted, to compare with: --resume goes on from "
        "the same first stage (default: %(default)s)",
    )
    add("--blocks", choices=["gated", "plain"], default="gated", help="convolutions in the blocks")
    add(
        "--data",
        metavar="FOLDER",
        help="your own spectra: an index CSV of id,type (star, galaxy, qso, unknown), and for each "
        "id a file ID.txt of 2,600 comma-separated values, as the LAMOST competition's",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Train, tune, measure, draw; the process's exit status."""
    return Spectra(parse(arguments)).run()


class Spectra(Experiment):
    """The example, a method for each part."""

    EPOCHS = 10

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.tuned = TUNED[options.tune_loss]
        self.parts = survey.load(options.data, QUICK if options.quick else 1.0)
        names = ("train", "validation", "test")
        self.inputs = {name: standardize(getattr(self.parts, name).flux) for name in names}
        self.matrices: dict[str, dict[str, np.ndarray]] = {"validation": {}, "test": {}}

    def work(self) -> None:
        self.describe()
        md.seed(self.options.seed)
        model = SpectrumClassifier(CLASSES, WIDTHS, gated=self.options.blocks == "gated")
        self.train(model)
        self.measure(PLAIN, model)
        self.tune(model)
        found = self.measure(self.tuned, model)
        model.save(self.out / "model.npz")
        self.baselines()
        print("\n" + table(self.matrices["test"], (PLAIN, self.tuned)) + "\n")
        self.by_signal(found)
        self.draw(model, found)
        scores = {
            part: {way: macro_f1(matrix) for way, matrix in matrices.items()}
            for part, matrices in self.matrices.items()
        }
        counts = {way: matrix.tolist() for way, matrix in self.matrices["test"].items()}
        self.write(data=self.parts.name, macro_f1=scores, confusion=counts)

    def describe(self) -> None:
        print(f"{self.parts.name}, {self.parts.train.flux.shape[1]:,} points each")
        for name in self.inputs:
            labels = getattr(self.parts, name).labels
            shares = np.bincount(labels, minlength=len(CLASSES)) / len(labels)
            kinds = ", ".join(f"{p:.1%} {kind}" for kind, p in zip(CLASSES, shares, strict=True))
            print(f"  {name:10} {len(labels):7,} spectra: {kinds}")

    # Training

    def batches(self, name: str, size: int, shuffle: bool) -> md.data.Batches:
        labels = getattr(self.parts, name).labels
        return md.data.Batches(self.inputs[name], labels, size, shuffle)

    def settings(self) -> dict[str, object]:
        """What a checkpoint must agree in."""
        train = self.parts.train
        sums = (f"{label} {total!r}" for label, total in zip(train.labels, train.flux.sum(1)))
        return {
            "blocks": self.options.blocks,
            "data": self.parts.name,
            "training spectra": fingerprint(sums),
        }

    def train(self, model: SpectrumClassifier) -> None:
        """All classes weigh the same, however few there are of them."""
        weights = md.data.balanced_class_weights(self.parts.train.labels, len(CLASSES))
        batches = self.batches("train", BATCH, shuffle=True)
        schedule = md.schedules.OneCycle(PEAK_RATE, self.options.epochs * len(batches))
        self.fit(
            PLAIN,
            model,
            md.losses.SparseCategoricalCrossentropy(from_logits=True, class_weights=weights),
            md.optimizers.Adam(model, schedule, global_clipnorm=1.0),
            batches,
            settings=self.settings(),
            validation=self.batches("validation", TUNE_BATCH, shuffle=False),
            metrics=[md.metrics.F1Score("macro")],
        )

    def tune(self, model: SpectrumClassifier) -> None:
        """The score itself, near enough, in batches that have some of each class."""
        soft = self.options.tune_loss == "soft-f1"
        kind = md.losses.SoftF1 if soft else md.losses.SparseCategoricalCrossentropy
        batches = self.batches("train", TUNE_BATCH, shuffle=True)
        epochs = 1 if self.options.quick else self.options.tune_epochs
        schedule = md.schedules.CosineDecay(TUNE_RATE, epochs * len(batches))
        self.fit(
            self.tuned,
            model,
            kind(from_logits=True),
            md.optimizers.Adam(model, schedule, global_clipnorm=1.0),
            batches,
            settings=self.settings() | {"tune_epochs": epochs},
            epochs=epochs,
            validation=self.batches("validation", TUNE_BATCH, shuffle=False),
            metrics=[md.metrics.F1Score("macro")],
        )

    # Measuring

    def measure(self, way: str, model: SpectrumClassifier) -> np.ndarray:
        """The confusion matrices; what was said of each test spectrum. Nothing has been chosen by
        the test split."""
        for part, matrices in self.matrices.items():
            found = model.probabilities(self.inputs[part]).argmax(axis=1)
            matrices[way] = confusion(getattr(self.parts, part).labels, found)
        return found

    def baselines(self) -> None:
        """Logistic regression and a forest of trees on principal components."""
        try:
            from sklearn.decomposition import PCA
            from sklearn.ensemble import RandomForestClassifier
            from sklearn.linear_model import LogisticRegression
            from sklearn.preprocessing import StandardScaler
        except ImportError:
            print("no baselines: scikit-learn is not installed (pip install scikit-learn)")
            return
        flat = {part: x[:, :, 0] for part, x in self.inputs.items()}
        count = min(COMPONENTS, len(flat["train"]) // 2)
        principal = PCA(count, random_state=0).fit(flat["train"])
        scaler = StandardScaler().fit(principal.transform(flat["train"]))
        scaled = {part: scaler.transform(principal.transform(x)) for part, x in flat.items()}
        ways = {
            "PCA + logistic regression": LogisticRegression(class_weight="balanced", max_iter=2000),
            "PCA + random forest": RandomForestClassifier(
                TREES, class_weight="balanced", random_state=0
            ),
        }
        for way, judge in ways.items():
            judge.fit(scaled["train"], self.parts.train.labels)
            for part, matrices in self.matrices.items():
                labels = getattr(self.parts, part).labels
                matrices[way] = confusion(labels, judge.predict(scaled[part]))

    def by_signal(self, found: np.ndarray) -> None:
        """Which part of each class is recognized, by signal to noise, if that is known."""
        test = self.parts.test
        if np.isnan(test.signal).any():
            return
        print("recognized, of the test spectra, by signal to noise")
        edges = [f"{low:g}-{high:g}" for low, high in pairwise(SIGNALS)]
        print(f"  {'':10}" + "".join(f"{edge:>9}" for edge in edges))
        places = np.digitize(test.signal, SIGNALS) - 1
        for i, kind in enumerate(CLASSES):
            cells = ""
            for place in range(len(edges)):
                rows = (test.labels == i) & (places == place)
                cells += f"{(found[rows] == i).mean():>9.3f}" if rows.any() else f"{'':>9}"
            print(f"  {kind:10}{cells}")
        print()

    # What is left behind

    def draw(self, model: SpectrumClassifier, found: np.ndarray) -> None:
        if not pictures.available():
            print("no pictures: matplotlib is not installed (pip install matplotlib)")
            return
        name = self.parts.name
        validation = {way: macro_f1(m) for way, m in self.matrices["validation"].items()}
        later = [None] * self.options.epochs  # where the second stage begins

        def curves(key: str) -> dict[str, list[float | None]]:
            first, second = self.histories[PLAIN][key], self.histories[self.tuned][key]
            return {PLAIN: first, self.tuned: later + second}

        pictures.learning_curve(
            self.out / "learning_curve.png",
            f"Spectra: {name}",
            curves("loss"),
            curves("val_f1"),
            "macro F1, validation",
            {way: score for way, score in validation.items() if way.startswith("PCA")},
        )
        shown = {way: self.matrices["test"][way] for way in (PLAIN, self.tuned)}
        pictures.confusion(self.out / "confusion.png", shown, CLASSES, f"Test split: {name}")
        self.draw_saliency(model, found)
        print(f"pictures in {self.out}: learning_curve.png, confusion.png, saliency.png")

    def draw_saliency(self, model: SpectrumClassifier, found: np.ndarray) -> None:
        """A spectrum of each class, and what would speak for it."""
        test = self.parts.test
        rows = [example_of(test, found, i) for i in range(len(CLASSES))]
        x = self.inputs["test"][rows]
        gradients = saliency(model, x, np.arange(len(CLASSES)), samples=16, noise=0.1)
        panels = []
        for i, (row, flux, gradient) in enumerate(zip(rows, x, gradients, strict=True)):
            z, title = test.redshift[row], CLASSES[i]
            known = not np.isnan(z)
            if known:
                title += f", redshift {z:.3f}, signal to noise {test.signal[row]:.1f}"
            lines = MARKS[CLASSES[i]] if known else {}
            seen = {line: at * (1 + z) for line, at in lines.items()}
            panels.append((title, flux[:, 0], gradient[:, 0], seen))
        pictures.signals(
            self.out / "saliency.png",
            f"Where flux speaks for the class (red: more, blue: less). {self.parts.name}",
            sky.WAVELENGTHS,
            panels,
            "observed wavelength, Å",
        )


def example_of(spectra: survey.Spectra, found: np.ndarray, kind: int) -> int:
    """A spectrum of this class, recognized if one is, of a signal to noise as in the picture."""
    own = spectra.labels == kind
    rows = np.flatnonzero(own & (found == kind))
    rows = rows if len(rows) else np.flatnonzero(own)
    distance = np.abs(np.log(np.nan_to_num(spectra.signal[rows], nan=1.0) / SHOWN_SIGNAL))
    return int(rows[distance.argmin()])


def confusion(labels: np.ndarray, found: np.ndarray) -> np.ndarray:
    """How often class i was taken for j, at [i, j]."""
    metric = md.metrics.ConfusionMatrix(len(CLASSES))
    metric.update_state(labels, found)
    return metric.result()


def f1(matrix: np.ndarray) -> np.ndarray:
    """The F1 score of each class, (..., classes), of confusion matrices."""
    both = matrix.sum(axis=-1) + matrix.sum(axis=-2)
    return 2 * np.diagonal(matrix, axis1=-2, axis2=-1) / np.maximum(both, 1)


def macro_f1(matrix: np.ndarray) -> float:
    return float(f1(matrix).mean())


def spread(matrix: np.ndarray, draws: int = 1_000) -> float:
    """The standard error of macro F1: its spread over samples drawn anew from these spectra."""
    generator = np.random.default_rng(0)
    total = matrix.sum()
    drawn = generator.multinomial(total, matrix.reshape(-1) / total, draws)
    return float(f1(drawn.reshape(draws, *matrix.shape)).mean(axis=-1).std())


def table(matrices: dict[str, np.ndarray], shown: Sequence[str]) -> str:
    """F1 of each way on the test split, and of those `shown` how often what was taken for what."""
    heads = "".join(f"{kind:>9}" for kind in CLASSES)
    lines = [f"{'F1, test split':28}{heads}{'macro':>16}"]
    for way, matrix in matrices.items():
        cells = "".join(f"{score:>9.3f}" for score in f1(matrix))
        macro = f"{macro_f1(matrix):.4f} ± {spread(matrix):.4f}"
        lines.append(f"  {way:26}{cells}{macro:>16}")
    for way in shown:
        lines += ["", f"{way + ': true, said':28}{heads}"]
        for kind, row in zip(CLASSES, matrices[way], strict=True):
            lines.append(f"  {kind:26}" + "".join(f"{count:>9,}" for count in row))
    return "\n".join(lines)
