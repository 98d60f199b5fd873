"""Reading comprehension with dilated gated convolutions: `python -m examples answer`.

Trains on questions DERIVED from the hand tags of the People's Daily (nobody wrote them), measures
the answers found in articles never seen beside what matching strings finds; answers a question of
yours from passages of yours, and draws where the network sees an answer begin and end.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property

import numpy as np

import minidl as md
from examples import experiment, matching, pictures, questions
from examples.experiment import Experiment, fingerprint
from examples.matching import Answer, Score, StringMatching
from examples.questions import IN_PLACE, Question
from models import dgcnn
from models.dgcnn import DGCNN
from models.text import Vocabulary

BATCH, PEAK_RATE, BUCKET = 32, 2e-3, 20
QUICK = 500  # paragraphs, or questions of a file
SHOWN = 3  # questions of the test split for each way, with the answers found

NETWORK, BASELINE = "DGCNN", "string matching"
BY_KIND, UNSEEN = "test by kind", "in place, unseen"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, checked."""
    parser = experiment.parser("answer", __doc__, Answering.EPOCHS)
    add = parser.add_argument
    add("--question", metavar="TEXT", help="a question to be answered from --passage")
    add("--passage", action="append", metavar="TEXT", help="may be given repeatedly")
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="FILE",
        help="your own questions to train on, perhaps a second file to test on: JSON, "
        '[{"question", "passages": [{"passage", "answer"}]}] as in WebQA, or as in SQuAD',
    )
    options = parser.parse_args(arguments)
    if len(options.data) > 2:
        parser.error("--data takes a file to train on and perhaps one to test on")
    if (options.question is None) != (options.passage is None):
        parser.error("--question and --passage go together")
    return options


def main(arguments: Sequence[str]) -> int:
    """Train, measure, answer, draw; the process's exit status."""
    return Answering(parse(arguments)).run()


class Answering(Experiment):
    """The example, a method for each part."""

    EPOCHS = 2

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.parts = questions.load(options.data, QUICK if options.quick else None)
        # Each passage is an item of its own in training.
        self.pairs = [
            (q.text, passage, answer)
            for q in self.parts.train
            for passage, answer in zip(q.passages, q.answers, strict=True)
        ]
        texts = [text for pair in self.pairs for text in pair[:2]]
        self.vocabulary = Vocabulary.of(texts, least=2)
        self.baseline = StringMatching(self.parts.sentences, self.parts.train)
        self.scores: dict[str, dict[str, dict[str, Score]]] = {}

    def work(self) -> None:
        self.describe()
        self.measure(BASELINE, *map(self.match, (self.parts.validation, self.parts.test)))
        exact = matching.mean(self.scores[BASELINE]["validation"]).exact
        print(f"  baseline, {BASELINE}: exact match {exact:.4f} on validation, mean of the ways")
        model = self.train_network()
        found = [candidates(model, part) for part in (self.parts.validation, self.parts.test)]
        surest = [[best(own) for own in part] for part in found]
        model.threshold = self.measure(NETWORK, *surest)
        model.save(self.out / "dgcnn.npz")
        print("\n" + table(self.scores) + "\n")
        self.show(surest[1], model.threshold)
        self.own(model)
        self.draw(model)
        self.write(
            data=self.parts.name,
            questions={name: counts(part) for name, part in self.splits()},
            threshold=model.threshold,
            scores={
                way: {
                    part: {kind: asdict(value) for kind, value in own.items()}
                    for part, own in by_part.items()
                }
                for way, by_part in self.scores.items()
            },
        )

    def splits(self) -> list[tuple[str, list[Question]]]:
        return [(name, getattr(self.parts, name)) for name in ("train", "validation", "test")]

    def describe(self) -> None:
        print(self.parts.name)
        for name, part in self.splits():
            ways = ", ".join(f"{n:,} {way}" for way, n in counts(part).items())
            print(f"  {name:10} {len(part):7,} questions: {ways}")
        length = np.mean([len(passage) for _, passage, _ in self.pairs])
        print(
            f"  {len(self.pairs):,} passages to train on, of {length:.0f} characters in the mean, "
            f"{self.vocabulary.sizes[0]:,} different ones"
        )

    # Training

    def train_network(self) -> DGCNN:
        options = self.options
        md.seed(options.seed)
        model = DGCNN(self.vocabulary)
        batches = self.batches()
        schedule = md.schedules.OneCycle(PEAK_RATE, options.epochs * len(batches))
        average = md.callbacks.ExponentialMovingAverage()
        self.fit(
            "dgcnn",
            model,
            model.loss,
            md.optimizers.RAdam(model, schedule),
            batches,
            [average, ValidationScore(self.parts.validation)],
            {
                "data": self.parts.name,
                "training text": fingerprint("\n".join(pair) for pair in self.pairs),
            },
        )
        average.apply()
        return model

    def batches(self) -> md.data.Batches:
        codes = [dgcnn.encode(self.vocabulary, q, passage) for q, passage, _ in self.pairs]
        return md.data.Batches(
            ([question for question, _ in codes], [passage for _, passage in codes]),
            [dgcnn.mark(passage, answer) for _, passage, answer in self.pairs],
            batch_size=BATCH,
            bucket=BUCKET,
            input_limits=self.vocabulary.sizes[0],
        )

    # Measuring

    def match(self, part: Sequence[Question]) -> list[Answer]:
        return [self.baseline.answer(question) for question in part]

    def measure(self, name: str, validation: list[Answer], test: list[Answer]) -> float:
        """Scores on both splits, with the threshold that is best on validation; the threshold."""
        parts = self.parts
        threshold = matching.best_threshold(parts.validation, validation)
        found = matching.above(test, threshold)
        self.scores[name] = {
            "validation": matching.score(parts.validation, matching.above(validation, threshold)),
            "test": matching.score(parts.test, found),
        }
        if not self.options.data:
            kinds = matching.score(parts.test, found, matching.by_way_and_kind)
            own = [(parts.test[i], found[i]) for i in self.unseen]
            unseen = matching.score(*zip(*own, strict=True), lambda _: UNSEEN) if own else {}
            self.scores[name][BY_KIND] = dict(sorted((kinds | unseen).items()))
        return threshold

    @cached_property
    def unseen(self) -> list[int]:
        """Which questions of the test split have answers in place that no training passage has."""
        known = "\n".join({passage for _, passage, _ in self.pairs})
        return [
            i
            for i, question in enumerate(self.parts.test)
            if question.way == IN_PLACE and question.answers[0] not in known
        ]

    # What is shown and left behind

    def show(self, answers: list[Answer], threshold: float) -> None:
        """The first questions of the test split for each way, with what was found."""
        shown: Counter[str] = Counter()
        for question, answer in zip(
            self.parts.test, matching.above(answers, threshold), strict=True
        ):
            shown[question.way] += 1
            if shown[question.way] <= SHOWN:
                right = "right" if answer in question.right else "wrong"
                expected = " or ".join(filter(None, sorted(question.right))) or "none"
                print(f"{question.way}: {question.text} -> {answer or 'none'} {right}, {expected}")

    def own(self, model: DGCNN) -> None:
        if self.options.question is not None:
            answer, sure = model.answer(self.options.question, self.options.passage)
            print(f"{self.options.question} -> {answer or '(no answer)'} (vote {sure:.2g})")

    def draw(self, model: DGCNN) -> None:
        if not pictures.available():
            print("no pictures: matplotlib is not installed (pip install matplotlib)")
            return
        history = self.histories["dgcnn"]
        pictures.learning_curve(
            self.out / "learning_curve.png",
            "Reading comprehension, derived questions",
            {NETWORK: history["loss"]},
            {NETWORK: history["val_exact"]},
            "exact match, validation (mean of the ways)",
            {BASELINE: matching.mean(self.scores[BASELINE]["validation"]).exact},
        )
        first = self.parts.test[0]
        question, passage = first.text, first.passages[0]
        if self.options.question is not None:
            question, passage = self.options.question, self.options.passage[0]
        pictures.spans(
            self.out / "spans.png",
            question,
            passage,
            model.probabilities([(question, passage)])[0],
            model.answer(question, [passage])[0],
        )
        print(f"pictures in {self.out}: learning_curve.png, spans.png")


class ValidationScore(md.callbacks.Callback):
    """Adds exact match and F1 on the validation split to each epoch's figures: the means of the
    ways, with the best threshold."""

    def __init__(self, part: list[Question]) -> None:
        self.part = part

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        answers = [best(own) for own in candidates(self.run.model, self.part)]
        threshold = matching.best_threshold(self.part, answers)
        found = matching.mean(matching.score(self.part, matching.above(answers, threshold)))
        logs["val_exact"], logs["val_f1"] = found.exact, found.f1


def candidates(model: DGCNN, part: Sequence[Question]) -> list[list[dict[str, float]]]:
    return model.candidates([q.text for q in part], [q.passages for q in part])


def best(passages: list[dict[str, float]]) -> Answer:
    """The text with the most votes, and the best value of any: what a threshold is held against."""
    votes = dgcnn.vote(passages)
    surest = max((value for values in passages for value in values.values()), default=0.0)
    return next(iter(votes), ""), surest


def counts(part: Sequence[Question]) -> dict[str, int]:
    """How many questions there are for each way to be answered."""
    return dict(Counter(question.way for question in part))


def table(scores: dict[str, dict[str, dict[str, Score]]]) -> str:
    """Exact match and F1 as text: a row for each way to be answered, then for each kind too."""
    lines = []
    for part in next(iter(scores.values())):
        by_name = {name: by_part[part] for name, by_part in scores.items()}
        lines.append(f"{part:35}" + "".join(f"{name:>22}" for name in scores))
        lines.append(f"{'questions':>35}" + f"{'exact':>12}{'F1':>10}" * len(scores))
        for group, first in next(iter(by_name.values())).items():
            figures = "".join(
                f"{s[group].exact:12.4f}{s[group].f1:10.4f}" for s in by_name.values()
            )
            lines.append(f"  {group:24}{first.questions:9,}{figures}")
        if part != BY_KIND:
            means = [matching.mean(s) for s in by_name.values()]
            lines.append(f"  {'mean':33}" + "".join(f"{m.exact:12.4f}{m.f1:10.4f}" for m in means))
    return "\n".join(lines)
