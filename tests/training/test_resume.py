"""A small tagger with all that a model can have: trained on the device, stopped and resumed."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import minidl as md
from minidl.callbacks import Callback, Checkpoint, LearningRateLog
from minidl.data import Batches
from minidl.errors import SerializationError
from minidl.layers import Conv1D, Dense, Dropout, Embedding, Layer, LayerNormalization
from minidl.losses import MeanSquaredError, SparseCategoricalCrossentropy
from minidl.metrics import SparseCategoricalAccuracy
from minidl.optimizers import SGD, Adam
from minidl.schedules import OneCycle
from minidl.testing import strict

QUIET = {"verbose": False, "allocator": False}
CROSS_ENTROPY = SparseCategoricalCrossentropy(from_logits=True)


class Tagger(Layer):
    """Noise, normalization, a mask and an added loss: all that a small model can have."""

    def __init__(self):
        self.embedding = Embedding(12, 8)
        self.dropout = Dropout(0.2)
        self.convolution = Conv1D(8, 3, padding="same", activation="relu", input_size=8)
        self.normalization = LayerNormalization(input_size=8)
        self.tags = Dense(3, input_size=8)
        self.add_buffer("calls", np.zeros((), np.int32))

    def call(self, ids, mask):
        x = self.dropout(self.embedding(ids)) * mask[..., None]
        x = self.normalization(self.convolution(x))
        self.add_loss(1e-4 * md.mean(x * x))
        if self.training:
            self.calls = self.calls + 1
        return self.tags(x)


def sentences(count=40):
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 12, n) for n in rng.integers(1, 9, count)]
    return ids, [i % 3 for i in ids]


def tagging(count=40, seed=1):
    """Model, optimizer and data, the same each time."""
    md.seed(seed)
    model = Tagger()
    optimizer = Adam(model, OneCycle(0.02, 60), global_clipnorm=1.0)
    return model, optimizer, Batches(*sentences(count), batch_size=8, bucket=2, input_limits=12)


class Do(Callback):
    """Call a function after each step."""

    def __init__(self, function):
        self.function = function

    def on_train_batch_end(self, batch, logs):
        self.function(self.run)


def test_a_tagger_learns():
    model, optimizer, train = tagging()
    metrics = [SparseCategoricalAccuracy()]
    history = md.fit(model, CROSS_ENTROPY, optimizer, train, train, 12, (), metrics, **QUIET)
    assert history["val_accuracy"][-1] > 0.95 and int(model.calls) == 60
    assert sorted(history.history) == ["accuracy", "loss", "val_accuracy", "val_loss"]


class TestDevice:
    def test_no_step_waits_for_the_device(self):
        """Placing, forward, backward, clipping, the step and the metrics, with nothing read."""
        model, optimizer, train = tagging()
        model.to("strict")
        steps = []

        class Ban(Callback):
            def on_train_batch_begin(self, batch):
                self.inside = ExitStack()
                self.inside.enter_context(strict.forbid_sync())
                steps.append(self.inside.enter_context(strict.counting()))

            def on_train_batch_end(self, batch, logs):
                self.inside.close()

        metrics = [SparseCategoricalAccuracy()]
        with strict.counting() as counts:
            history = md.fit(
                model, CROSS_ENTROPY, optimizer, train, epochs=2, callbacks=[Ban()],
                metrics=metrics, read_every=10**9, **QUIET,
            )  # fmt: skip
        assert history["loss"][1] < history["loss"][0]
        assert counts.synchronisations <= 2 * 5  # the epoch's end reads five columns of numbers
        # Up go ids, their mask, tags and their mask; the first step gathers the moved parameters.
        assert [step.uploads for step in steps[1:]] == [4] * 9

    def test_the_device_trains_as_the_host_does(self):
        results = []
        for device in ("cpu", "strict"):
            model, optimizer, train = tagging()
            model.to(device)
            with md.random.draw_on_host():
                md.fit(model, CROSS_ENTROPY, optimizer, train, epochs=2, **QUIET)
            results.append(model.state_dict())
        for name, value in results[0].items():
            np.testing.assert_allclose(value, results[1][name], rtol=2e-3, atol=2e-4, err_msg=name)


class Stopwatch(Callback):
    """Remembers over a resume how many steps it has seen."""

    steps = 0

    def on_train_batch_end(self, batch, logs):
        self.steps += 1

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


def whole_run(**options):
    """The run that all tests of resuming repeat: 40 items in batches of 8 make 5 steps an epoch."""
    model, optimizer, train = tagging(seed=options.pop("seed", 1))
    watch = Stopwatch()
    callbacks = [*options.pop("callbacks", []), watch, LearningRateLog()]
    history = md.fit(
        model, CROSS_ENTROPY, optimizer, train, Batches(*sentences(9), shuffle=False), 4,
        callbacks, [SparseCategoricalAccuracy()], read_every=2, **QUIET, **options,
    )  # fmt: skip
    return {
        **model.state_dict(),
        "history": history.state_dict(),
        "random": md.random.generator().state(),
        "optimizer": optimizer.state_dict(),
        "data": train.state_dict(),
        "steps": watch.steps,
    }


def bits(value):
    """Comparable bit for bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {k: bits(v) for k, v in value.items()}
    return value


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import minidl as md
import test_resume
result = test_resume.whole_run(seed=77, resume=sys.argv[2])
md.save(sys.argv[3], **result)
"""


class TestResume:
    def test_bit_for_bit_in_a_new_process(self, tmp_path):
        """Weights, optimizer, schedule, dropout, order, callbacks, history: N + M steps are N, a
        file, a new process, M."""
        path = tmp_path / "run.npz"
        stop = Do(lambda run: setattr(run, "stop", run.step == 8))
        whole_run(callbacks=[stop, Checkpoint(path, every_steps=8)])
        here = Path(__file__).resolve().parent
        subprocess.run(
            [sys.executable, "-c", CHILD, here, path, tmp_path / "result.npz"],
            check=True,
            env={**os.environ, "PYTHONPATH": str(here.parents[1])},
        )
        md.save(tmp_path / "whole.npz", **whole_run())
        expected, found = md.load(tmp_path / "whole.npz"), md.load(tmp_path / "result.npz")
        assert bits(found) == bits(expected)

    @pytest.mark.parametrize("steps", range(1, 21, 3))
    def test_at_any_step_in_this_process(self, tmp_path, steps):
        path = tmp_path / "run.npz"
        expected = whole_run()
        stop = Do(lambda run: setattr(run, "stop", run.step == steps))
        whole_run(callbacks=[stop, Checkpoint(path, every_steps=steps)])
        assert bits(whole_run(seed=5, resume=path)) == bits(expected)

    def test_at_the_end_of_an_epoch(self, tmp_path):
        path = tmp_path / "run-{}.npz"

        class Copy(Callback):
            def on_epoch_begin(self, epoch):
                if epoch == 2:
                    os.rename(path, tmp_path / "second.npz")

        expected = whole_run(callbacks=[Checkpoint(path, every_epochs=2), Copy()])
        assert bits(whole_run(seed=5, resume=tmp_path / "second.npz")) == bits(expected)

    def test_plain_lists_are_begun_anew_where_they_stopped(self, tmp_path):
        data = [(np.full((1, 1), i, np.float32), np.ones((1, 1), np.float32)) for i in range(4)]

        def run(**options):
            md.seed(0)
            model = Dense(1, input_size=1)
            md.fit(model, MeanSquaredError(), SGD(model, 0.01), data, epochs=2, **QUIET, **options)
            return model.state_dict()

        stop = Do(lambda run: setattr(run, "stop", run.step == 6))
        run(callbacks=[stop, Checkpoint(tmp_path / "x.npz", every_steps=6)])
        assert bits(run(resume=tmp_path / "x.npz")) == bits(run())

    def test_another_run_is_refused(self, tmp_path):
        path = tmp_path / "run.npz"
        whole_run(callbacks=[Checkpoint(path)])
        model, optimizer, train = tagging()
        with pytest.raises(SerializationError, match="other callbacks"):
            md.fit(model, CROSS_ENTROPY, optimizer, train, resume=path, **QUIET)
        with pytest.raises(SerializationError):
            model = Dense(1, input_size=1)
            md.fit(model, CROSS_ENTROPY, SGD(model), train, resume=path, **QUIET)

    def test_a_refused_run_changes_nothing(self, tmp_path):
        """A callback that refuses its state speaks before the model, whose error says less."""
        path = tmp_path / "run.npz"

        class Picky(Callback):
            def state_dict(self):
                return {"a": 1}

            def load_state_dict(self, state):
                raise SerializationError("another run")

        model, optimizer, train = tagging()
        both = [Picky(), Checkpoint(path)]
        md.fit(model, CROSS_ENTROPY, optimizer, train, callbacks=both, **QUIET)
        model, optimizer, train = tagging(seed=2)
        before = model.state_dict()
        with pytest.raises(SerializationError, match="another run"):
            md.fit(
                model, CROSS_ENTROPY, optimizer, train, callbacks=[Picky()], resume=path, **QUIET
            )
        assert bits(model.state_dict()) == bits(before) and optimizer.iterations == 0

    def test_files_of_other_kinds(self, tmp_path):
        path = tmp_path / "run.npz"
        model, optimizer, train = tagging()
        md.save(path, model=model, optimizer=optimizer)
        with pytest.raises(SerializationError, match="holds no random, data"):
            md.fit(model, CROSS_ENTROPY, optimizer, train, resume=path, **QUIET)
        md.fit(model, CROSS_ENTROPY, optimizer, list(train), callbacks=[Checkpoint(path)], **QUIET)
        with pytest.raises(SerializationError, match="another kind of train"):
            md.fit(model, CROSS_ENTROPY, optimizer, train, resume=path, **QUIET)


def test_a_callback_may_go_through_the_training_data(tmp_path):
    """It gets an order of its own, and `fit` goes on, and resumes, in its place."""

    def run(look, stop=None, **options):
        model, optimizer, train = tagging()
        seen = []

        def note(run):
            if look and run.step in (2, 7):
                assert len(list(train)) == 5
                next(iter(train))
            if run.step == stop:
                run.stop = True
            seen.append(model.tags.kernel.numpy().tobytes())

        save = Checkpoint(tmp_path / "x.npz", every_epochs=99, every_steps=7)
        md.fit(
            model, CROSS_ENTROPY, optimizer, train, epochs=2, callbacks=[Do(note), save],
            **QUIET, **options,
        )  # fmt: skip
        return seen

    whole = run(True)
    assert run(False)[:5] == whole[:5]
    run(True, stop=7)
    assert run(True, resume=tmp_path / "x.npz") == whole[7:]
