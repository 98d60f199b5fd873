"""Objective: the losses and metrics of one output or several, their names, weights and means."""

from typing import NamedTuple

import numpy as np
import pytest

import minidl as md
from minidl.callbacks import EarlyStopping
from minidl.data import Batches
from minidl.errors import SerializationError
from minidl.layers import Dense, Embedding, Layer
from minidl.losses import MeanSquaredError, OfOutput, SparseCategoricalCrossentropy
from minidl.metrics import Mean, SparseCategoricalAccuracy
from minidl.optimizers import SGD, Adam
from minidl.testing import strict
from minidl.training.objective import Objective, place

QUIET = {"verbose": False, "allocator": False}
CROSS_ENTROPY = SparseCategoricalCrossentropy(from_logits=True)


class Reader(Layer):
    """Tags of the steps, a number for each sentence, and something to look at."""

    def __init__(self, form=dict):
        self.form = form
        self.embedding = Embedding(9, 4)
        self.tag = Dense(3, input_size=4)
        self.length = Dense(1, input_size=4)

    def call(self, ids, mask):
        x = self.embedding(ids) * mask[..., None]
        total = md.sum(x, axis=1)
        if self.form is dict:
            return {"tags": self.tag(x), "length": self.length(total)[:, 0], "hidden": total}
        return self.form([self.tag(x), self.length(total)[:, 0], total])


def sentences():
    draw = np.random.default_rng(0)
    ids = [draw.integers(1, 9, n) for n in (3, 5, 1, 2, 4, 2, 3)]
    lengths = np.array([len(i) for i in ids], np.float32)
    return ids, {"tags": [i % 3 for i in ids], "length": lengths}


LOSSES = {"tags": CROSS_ENTROPY, "length": MeanSquaredError()}
WEIGHTS = {"length": 0.5}


class TestSeveralOutputs:
    def test_by_hand(self):
        model = Reader()
        data = Batches(*sentences(), batch_size=3, shuffle=False)
        seen = [place(batch, "cpu", model.dtype) for batch in data]
        outputs = [model(*batch.inputs) for batch in seen]
        pairs = list(zip(seen, outputs, strict=True))
        kept = [int(batch.mask["tags"].numpy().sum()) for batch in seen]
        tags = [
            float(CROSS_ENTROPY(b.targets["tags"], o["tags"], b.mask["tags"])) for b, o in pairs
        ]
        tags = np.average(tags, weights=kept)
        squares = [(o["length"].numpy() - b.targets["length"].numpy()) ** 2 for b, o in pairs]
        length = np.concatenate(squares).mean()
        result = md.evaluate(model, LOSSES, data, {"tags": [SparseCategoricalAccuracy()]}, WEIGHTS)
        right = sum(
            (
                (o["tags"].numpy().argmax(-1) == b.targets["tags"].numpy()) & b.mask["tags"].numpy()
            ).sum()
            for b, o in pairs
        )
        assert list(result) == ["loss", "tags_loss", "length_loss", "tags_accuracy"]
        assert result["tags_loss"] == pytest.approx(tags, rel=1e-5)
        assert result["length_loss"] == pytest.approx(length, rel=1e-5)
        assert result["loss"] == pytest.approx(tags + 0.5 * length, rel=1e-5)
        assert result["tags_accuracy"] == right / sum(kept)

    def test_a_loss_of_an_output_alone_needs_no_target(self):
        model = Reader()
        ids, targets = sentences()
        data = Batches(ids, {"tags": targets["tags"]}, batch_size=3, shuffle=False)
        small = {"tags": CROSS_ENTROPY, "hidden": OfOutput(lambda x: md.mean(x * x))}
        found = md.evaluate(model, small, data, loss_weights={"hidden": 0.5})
        batches = [place(batch, "cpu", model.dtype) for batch in data]
        squares = [np.square(model(*b.inputs)["hidden"].numpy()).mean(1) for b in batches]
        assert found["hidden_loss"] == pytest.approx(np.concatenate(squares).mean(), rel=1e-5)
        assert found["loss"] == pytest.approx(found["tags_loss"] + 0.5 * found["hidden_loss"])
        with pytest.raises(ValueError, match=r"targets: expected one for .* 'hidden', got tags"):
            md.evaluate(model, {**small, "hidden": MeanSquaredError()}, data)

    def test_the_gradient_is_of_the_weighted_sum(self):
        model = Reader()
        (batch,) = (place(b, "cpu", model.dtype) for b in Batches(*sentences(), batch_size=9))
        total, values, _ = Objective(LOSSES, (), WEIGHTS).forward(model, batch)
        found = md.grad(total, model.parameters(), retain_graph=True)
        apart = [
            md.grad(v, model.parameters(), allow_unused=True, retain_graph=True) for v in values
        ]
        for g, a, b in zip(found, *apart, strict=True):
            a, b = (0 if x is None else x.numpy() for x in (a, b))
            np.testing.assert_allclose(g.numpy(), a + 0.5 * b, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("form", [list, tuple])
    def test_in_order(self, form):
        ids, targets = sentences()
        # One mask for all: with a tuple of targets it is the first list's.
        data = Batches(ids, (targets["tags"], targets["length"]), batch_size=3, shuffle=False)
        masks = [b._replace(targets=(*b.targets, None), mask=(b.mask, None, None)) for b in data]
        losses, metrics = form([CROSS_ENTROPY, MeanSquaredError(), None]), [
            SparseCategoricalAccuracy(), None, None,
        ]  # fmt: skip
        md.seed(0)
        result = md.evaluate(Reader(form), losses, masks, metrics, [1, 0.5, 0])
        assert list(result) == ["loss", "output_0_loss", "output_1_loss", "output_0_accuracy"]
        md.seed(0)
        named = md.evaluate(Reader(), LOSSES, Batches(*sentences(), batch_size=3), (), WEIGHTS)
        assert result["loss"] == pytest.approx(named["loss"], rel=1e-5)

    def test_learns_and_is_monitored(self):
        md.seed(0)
        model = Reader()
        data = Batches(*sentences(), batch_size=3)
        history = md.fit(
            model, LOSSES, Adam(model, 0.05), data, data, 30,
            metrics={"tags": SparseCategoricalAccuracy()}, loss_weights=WEIGHTS,
            callbacks=[EarlyStopping("val_tags_loss", patience=30)], **QUIET,
        )  # fmt: skip
        assert history["val_tags_accuracy"][-1] == 1
        assert history["length_loss"][-1] < 0.5 < history["length_loss"][0]

    def test_no_step_waits_for_the_device(self):
        model = Reader().to("strict")
        data = [place(b, "strict", model.dtype) for b in Batches(*sentences(), batch_size=3)]
        objective = Objective(LOSSES, {"tags": SparseCategoricalAccuracy()}, WEIGHTS)
        with strict.forbid_sync():
            for batch in data:
                total, values, output = objective.forward(model, batch)
                total.backward()
                objective.update(batch, values, output)
        assert np.isfinite(objective.results()["tags_loss"])

    def test_a_metric_of_all_outputs(self):
        together = Mean(lambda targets, output, mask: output["length"].sum(), name="together")
        result = md.evaluate(Reader(), LOSSES, Batches(*sentences()), [together])
        assert "together" in result

    def test_a_dict_of_inputs_is_one_argument(self):
        class Sum(Dense):
            def call(self, both):
                return super().call(both["a"] + both["b"])

        model = Sum(1, input_size=2, kernel_initializer="ones")
        x = np.ones((3, 2), np.float32)
        batch = ({"a": x, "b": x}, np.zeros((3, 1)))
        assert md.evaluate(model, MeanSquaredError(), [batch])["loss"] == 16

    def test_a_named_tuple_of_inputs_stays_one(self):
        class Pair(NamedTuple):
            first: np.ndarray
            second: np.ndarray

        class Sum(Layer):
            def call(self, first, second):
                return first + second

        batch = Pair(np.ones(3), np.ones(3)), Pair(np.ones(3), np.zeros(3))
        loss = lambda targets, y: md.mean(y - targets.first)  # noqa: E731
        assert md.evaluate(Sum(), loss, [batch])["loss"] == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("loss", "options", "message"),
        [
            ({"tag": CROSS_ENTROPY}, {}, "targets: expected one for the loss or metric of 'tag'"),
            ({"hidden": CROSS_ENTROPY}, {}, "of 'hidden', got tags, length"),
            ([CROSS_ENTROPY, None], {}, "one for each output of the model, 1, got 2"),
            (LOSSES, {"loss_weights": {"tag": 1}}, "loss_weights: no loss for tag"),
            (CROSS_ENTROPY, {"loss_weights": [1]}, "only for a loss for each output"),
            ([None, None], {"loss_weights": [1]}, "loss_weights: expected a list of 2, as loss"),
            ([None, None], {"loss_weights": 0.5}, "loss_weights: expected a list of 2, as loss"),
            (LOSSES, {"loss_weights": [1, 2]}, "loss_weights: expected a dict, as loss"),
            ([None, None], {"metrics": [None]}, "metrics: expected a list of 2, as loss"),
            ({"tags": None}, {}, "no layer added a loss"),
        ],
    )
    def test_what_does_not_match(self, loss, options, message):
        with pytest.raises(ValueError, match=message):
            md.evaluate(Reader(), loss, Batches(*sentences()), **options)

    def test_kinds(self):
        with pytest.raises(TypeError, match="loss: expected md"):
            Objective({"tags": "mse"})
        with pytest.raises(TypeError, match="metrics: expected md"):
            Objective(LOSSES, {"tags": ["accuracy"]})
        accuracy = SparseCategoricalAccuracy()
        with pytest.raises(ValueError, match="one object measures several outputs"):
            Objective(LOSSES, {"tags": accuracy, "length": accuracy})

    def test_foreign_state(self):
        state = Objective(LOSSES).state_dict()
        with pytest.raises(SerializationError, match="other metrics: loss, tags_loss, length_loss"):
            Objective(CROSS_ENTROPY).load_state_dict(state)


class TestWeight:
    """The mean over batches is that over all they hold."""

    def test_a_loss_says_what_its_mean_is_over(self):
        def rows(targets, output, mask):
            return md.sum(md.where(mask, output - targets, 0.0)) / len(output)

        def kept(targets, output, mask):
            return rows(targets, output, mask) * len(output) / mask.sum()

        kept.count = lambda targets, output, mask: mask.sum()
        x = np.arange(12.0, dtype=np.float32).reshape(4, 3)
        mask = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], bool)
        batches = [(x[a:b], 0 * x[a:b], mask[a:b]) for a, b in ((0, 1), (1, 4))]
        model = md.layers.Sequential([])
        assert md.evaluate(model, rows, batches)["loss"] == pytest.approx(x[mask].sum() / 4)
        assert md.evaluate(model, kept, batches)["loss"] == pytest.approx(x[mask].mean())

    def test_losses_of_the_library(self):
        y = md.tensor(np.zeros((2, 3)))
        half = md.tensor(np.array([True, False]))
        for loss in (MeanSquaredError(), md.losses.BinaryCrossentropy(from_logits=True)):
            assert loss.count(y, y) == 2 * loss.count(y, y, half)


class TestAccumulate:
    def data(self, size):
        draw = np.random.default_rng(0)
        ids = [draw.integers(1, 9, n) for n in (3, 5, 1, 2, 4, 2, 3)]
        return Batches(ids, [i % 3 for i in ids], batch_size=size, shuffle=False)

    class Tagger(Reader):
        def call(self, ids, mask):
            return self.tag(self.embedding(ids) * mask[..., None])

    @pytest.mark.parametrize("kind", [SGD, Adam])
    @pytest.mark.parametrize("clip", [None, 0.1])
    def test_several_batches_are_a_large_one(self, kind, clip, device):
        """Batches of 2, 2 and 2 items, and one of 1 at the epoch's end, with other lengths."""
        results = []
        for size, accumulate in ((6, 1), (2, 3)):
            md.seed(0)
            model = self.Tagger().to(device)
            optimizer = kind(model, 0.1, global_clipnorm=clip)
            history = md.fit(
                model, CROSS_ENTROPY, optimizer, self.data(size), epochs=3,
                accumulate=accumulate, **QUIET,
            )  # fmt: skip
            assert optimizer.iterations == 6
            results.append(model.state_dict() | {"loss": history["loss"][0]})
        for name, value in results[0].items():
            if name != "loss":  # which was measured with other weights
                np.testing.assert_allclose(value, results[1][name], rtol=1e-3, atol=1e-5)

    def test_by_items_where_the_loss_does_not_say(self):
        x = np.array([1.0, 2.0, 6.0], np.float32)[:, None]
        model = Dense(1, input_size=1, use_bias=False, kernel_initializer="zeros")

        def loss(targets, output):
            return md.mean(output)

        md.fit(
            model, loss, SGD(model, 1.0), Batches(x, x, batch_size=2, shuffle=False),
            accumulate=2, **QUIET,
        )  # fmt: skip
        assert float(model.kernel[0, 0]) == -3

    def test_nothing_kept_is_no_gradient(self):
        model = self.Tagger()
        ids = np.ones((2, 3), np.int64)
        none = np.zeros((2, 3), bool)
        before = model.state_dict()
        md.fit(
            model, CROSS_ENTROPY, SGD(model, 1.0), [((ids, none), ids, none)] * 2,
            accumulate=2, **QUIET,
        )  # fmt: skip
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(value, before[name])

    def test_refused(self):
        model = Reader()
        with pytest.raises(ValueError, match="accumulate: expected 1 or more, got 0"):
            md.fit(model, LOSSES, SGD(model), [], accumulate=0, **QUIET)
