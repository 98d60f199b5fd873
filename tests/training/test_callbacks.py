"""Callbacks: what they watch and change, in any order, and resumed bit for bit."""

import csv
import json
import os
import signal

import numpy as np
import pytest

import minidl as md
from minidl import callbacks
from minidl.callbacks import Callback, Checkpoint, LambdaCallback
from minidl.layers import Dense, Dropout, Sequential
from minidl.losses import MeanSquaredError
from minidl.optimizers import Adam, Lookahead
from minidl.testing import strict

QUIET = {"verbose": False, "allocator": False}


def parts(seed=1, rate=0.05, wrap=lambda optimizer: optimizer):
    """Model, optimizer, data and validation; 5 batches an epoch, the last of them smaller."""
    md.seed(seed)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(25, 3)).astype(np.float32)
    y = x[:, :1] - 2 * x[:, 1:2]
    model = Sequential([Dense(4, input_size=3), Dropout(0.3), Dense(1, input_size=4)])
    data = [md.data.Batches(x[:18], y[:18], batch_size=4), md.data.Batches(x[18:], y[18:])]
    return model, wrap(Adam(model, rate)), *data


def fit(*given, epochs=4, loss=None, **options):
    model, optimizer, train, validation = given or parts()
    loss = loss or MeanSquaredError()
    return md.fit(model, loss, optimizer, train, validation, epochs, **QUIET, **options)


class Script(Callback):
    """Gives the numbers of a list as `name`, an epoch each."""

    def __init__(self, *values, name="val_score"):
        self.values, self.name = values, name
        self.adds = (name,)

    def on_epoch_end(self, epoch, logs):
        logs[self.name] = self.values[epoch]


def bits(value):
    """Comparable bit for bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {k: bits(v) for k, v in value.items()}
    return [bits(v) for v in value] if isinstance(value, list) else value


class TestNames:
    def test_an_unknown_name_is_refused_before_the_first_step(self):
        model, optimizer, train, validation = parts()
        for callback in (
            callbacks.EarlyStopping("val_losss", mode="min"),
            callbacks.BestWeights("val_score"),
            callbacks.ReduceLROnPlateau("val_accuracy"),
            callbacks.ModelCheckpoint("{val_f1:.2f}.npz"),
        ):
            with pytest.raises(
                ValueError, match=r"not measured, only loss, mae, val_loss, val_mae, learning_rate;"
            ):
                mae = md.metrics.Mean(lambda t, y: md.mean(abs(t - y)), name="mae")
                fit(model, optimizer, train, validation, metrics=[mae],
                    callbacks=[callback, callbacks.LearningRateLog()])  # fmt: skip
        assert optimizer.iterations == 0

    @pytest.mark.parametrize("first", [True, False])
    def test_who_adds_comes_before_who_reads(self, first):
        script, best = Script(1, 3, 2, 0), callbacks.BestWeights("val_score")
        fit(callbacks=[script, best] if first else [best, script])
        assert (best.best, best.best_epoch) == (3, 1)

    @pytest.mark.parametrize(
        ("monitor", "mode"),
        [
            ("loss", "min"), ("val_loss", "min"), ("val_start_loss", "min"), ("mse", "min"),
            ("accuracy", "max"), ("val_f1", "max"), ("val_label_accuracy", "max"),
        ],
    )  # fmt: skip
    def test_auto(self, monitor, mode):
        assert callbacks.Monitor(monitor).mode == mode

    def test_auto_does_not_guess(self):
        with pytest.raises(ValueError, match="which way 'val_size' is better; give"):
            callbacks.EarlyStopping("val_size")
        assert callbacks.EarlyStopping("val_size", mode="max").mode == "max"


class TestEarlyStopping:
    def stop(self, *values, **options):
        stopping = callbacks.EarlyStopping("val_score", mode="max", **options)
        history = fit(callbacks=[stopping, Script(*values)], epochs=len(values))
        return stopping, len(history)

    @pytest.mark.parametrize(
        ("values", "options", "epochs"),
        [
            ((1, 2, 3, 4), {}, 4),
            ((1, 2, 2, 3), {}, 3),
            ((1, 2, 2, 3), {"patience": 2}, 4),
            ((5, 1, 1, 6, 1), {"patience": 2}, 3),
            ((1, 1.05, 1.1, 1.2, 1), {"patience": 3, "min_delta": 0.15}, 5),
            ((1, 1.05, 1.1, 1.1, 1), {"patience": 3, "min_delta": 0.15}, 4),
            ((5, 4, 3, 2, 1), {"patience": 2, "start_from_epoch": 2}, 5),
            ((1, float("nan"), 2, 1), {"patience": 2}, 4),
            ((1, 2, 3, 2, 5), {"patience": 2, "baseline": 4}, 4),
            ((1, 2, 3, 5, 4), {"patience": 2, "baseline": 4}, 5),
        ],
    )
    def test_patience(self, values, options, epochs):
        assert self.stop(*values, **options)[1] == epochs

    def test_min(self):
        stopping = callbacks.EarlyStopping("val_error", patience=1)
        history = fit(callbacks=[stopping, Script(3, 2, 4, 1, name="val_error")])
        assert len(history) == 3 and stopping.stopped_epoch == 2 and stopping.best == 2

    def test_the_best_weights_come_back(self):
        states = []
        keep = LambdaCallback(on_epoch_end=lambda *_: states.append(model.state_dict()))
        model, *rest = parts()
        stopping = callbacks.EarlyStopping("val_score", patience=2, restore_best_weights=True)
        fit(model, *rest, callbacks=[keep, stopping, Script(1, 2, 0, 0)])
        assert len(states) == 4 and stopping.best_epoch == 1
        assert bits(model.state_dict()) == bits(states[1])

    def test_used_twice_it_begins_anew(self):
        stopping = callbacks.EarlyStopping("val_score", patience=1)
        for values, epochs in (((9, 1, 2, 3), 2), ((1, 2, 3, 1), 4)):
            assert len(fit(callbacks=[stopping, Script(*values)])) == epochs

    def test_a_run_that_was_stopped_stays_so(self, tmp_path):
        path = tmp_path / "run.npz"

        def run(**options):
            model, *rest = parts()
            stopping = callbacks.EarlyStopping("val_score", patience=1, restore_best_weights=True)
            history = fit(
                model, *rest, callbacks=[stopping, Script(5, 1, 9, 9), Checkpoint(path)], **options
            )
            return history["loss"], bits(model.state_dict())

        first = run()
        assert len(first[0]) == 2 and run(resume=path) == first


def test_best_weights_do_not_stop():
    states = []
    keep = LambdaCallback(on_epoch_end=lambda *_: states.append(model.state_dict()))
    model, *rest = parts()
    best = callbacks.BestWeights("val_score", start_from_epoch=1)
    history = fit(model, *rest, callbacks=[keep, best, Script(9, 1, 2, 0)])
    assert len(history) == 4 and best.best_epoch == 2
    assert bits(model.state_dict()) == bits(states[2])


class TestRates:
    def test_plateau(self):
        plateau = callbacks.ReduceLROnPlateau(
            "val_score", factor=0.5, patience=2, cooldown=1, min_lr=0.02
        )
        rates = callbacks.LearningRateLog()
        scores = Script(1, 2, 2, 2, 2, 2, 2, 2, 3, 3)
        history = fit(callbacks=[plateau, rates, scores], epochs=10)
        # 0.05 until the second epoch without gain, which is the fourth; then one of rest
        assert history["learning_rate"] == pytest.approx([0.05] * 4 + [0.025] * 3 + [0.02] * 3)

    def test_plateau_never_raises_the_rate(self):
        plateau = callbacks.ReduceLROnPlateau("val_score", patience=1, min_lr=0.1)
        history = fit(callbacks=[plateau, callbacks.LearningRateLog(), Script(*[1] * 4)])
        assert history["learning_rate"] == [0.05] * 4

    def test_scheduler(self):
        scheduler = callbacks.LearningRateScheduler(lambda epoch, rate: rate / (1 + epoch))
        history = fit(callbacks=[scheduler, callbacks.LearningRateLog()], epochs=3)
        assert history["learning_rate"] == pytest.approx([0.05, 0.025, 0.025 / 3])

    @pytest.mark.parametrize(
        "callback",
        [callbacks.ReduceLROnPlateau(), callbacks.LearningRateScheduler(lambda epoch, rate: rate)],
    )
    def test_not_beside_a_schedule(self, callback):
        for wrap in (lambda optimizer: optimizer, Lookahead):
            given = parts(rate=md.schedules.CosineDecay(0.1, 9), wrap=wrap)
            with pytest.raises(ValueError, match=r"is a schedule, CosineDecay.*give the optimiser"):
                fit(*given, callbacks=[callback])

    def test_factor(self):
        with pytest.raises(ValueError, match="factor: expected between 0 and 1"):
            callbacks.ReduceLROnPlateau(factor=1.0)


class TestAverage:
    @pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, Lookahead])
    def test_by_hand(self, wrap):
        model, *rest = parts(wrap=wrap)
        expected, steps = [p.numpy().astype(float) for p in model.parameters()], 0

        def follow(batch, logs):
            nonlocal steps
            steps += 1
            share = min(0.8, (1 + steps) / (10 + steps))
            for mean, p in zip(expected, model.parameters(), strict=True):
                mean += (1 - share) * (p.numpy() - mean)

        average = callbacks.ExponentialMovingAverage(0.8)
        fit(model, *rest, callbacks=[average, LambdaCallback(on_train_batch_end=follow)])
        assert steps == 20
        before = model.state_dict()
        with average.applied():
            for mean, p in zip(expected, model.parameters(), strict=True):
                np.testing.assert_allclose(p.numpy(), mean, rtol=1e-4, atol=1e-6)
        assert bits(model.state_dict()) == bits(before)
        average.apply()
        np.testing.assert_allclose(model.parameters()[0].numpy(), expected[0], rtol=1e-4, atol=1e-6)

    def test_the_own_weights_come_back_from_errors(self):
        model, *rest = parts()
        average = callbacks.ExponentialMovingAverage()
        fit(model, *rest, callbacks=[average], epochs=1)
        before = model.state_dict()
        with pytest.raises(KeyboardInterrupt), average.applied():
            raise KeyboardInterrupt
        assert bits(model.state_dict()) == bits(before)

    def test_validation_and_the_best_weights_are_of_the_averages(self):
        model, optimizer, train, validation = parts()
        average, best = callbacks.ExponentialMovingAverage(0.9), callbacks.BestWeights()
        history = fit(model, optimizer, train, validation, callbacks=[best, average])
        loss = MeanSquaredError()
        found = md.evaluate(model, loss, validation)["loss"]
        assert found == pytest.approx(min(history["val_loss"]), rel=1e-6)
        with average.applied():
            found = md.evaluate(model, loss, validation)["loss"]
        assert found == pytest.approx(history["val_loss"][-1], rel=1e-6)

    def test_training_goes_as_without(self):
        results = []
        for extra in ([], [callbacks.ExponentialMovingAverage()]):
            model, *rest = parts()
            fit(model, *rest, callbacks=extra)
            results.append(bits(model.state_dict()))
        assert results[0] == results[1]

    def test_wrong_use(self):
        with pytest.raises(ValueError, match=r"decay: expected a number in \[0, 1\)"):
            callbacks.ExponentialMovingAverage(1.0)
        with (
            pytest.raises(RuntimeError, match="give it to fit"),
            callbacks.ExponentialMovingAverage().applied(),
        ):
            pass
        with pytest.raises(ValueError, match="expected one of it"):
            fit(callbacks=[callbacks.ExponentialMovingAverage(d) for d in (0.9, 0.99)])


class TestFiles:
    def test_loggers(self, tmp_path):
        seen = []

        def look(epoch):
            if epoch:
                with open(tmp_path / "h.csv") as file:
                    seen.append(len(list(csv.reader(file))))

        loggers = [
            callbacks.CSVLogger(tmp_path / "h.csv"),
            callbacks.JSONLogger(tmp_path / "h.json"),
        ]
        history = fit(callbacks=[*loggers, Script(1, 2, 3, 4), LambdaCallback(on_epoch_begin=look)])
        assert seen == [2, 3, 4]
        written = json.loads((tmp_path / "h.json").read_text())
        assert written == {"epoch": [0, 1, 2, 3], **history.history}
        with open(tmp_path / "h.csv") as file:
            rows = list(csv.DictReader(file))
        assert [float(row["val_score"]) for row in rows] == [1, 2, 3, 4]

    def test_their_endings(self):
        with pytest.raises(ValueError, match=r"CSVLogger: filename: expected one in \.csv"):
            callbacks.CSVLogger("x.json")
        with pytest.raises(ValueError, match=r"JSONLogger: filename: expected one in \.json"):
            callbacks.JSONLogger("x.csv")


class TestNaN:
    @pytest.mark.parametrize(("read_every", "steps"), [(1, 7), (4, 8), (100, 10)])
    def test_ends_when_it_is_read_and_saves_nothing(self, tmp_path, capsys, read_every, steps):
        calls = []

        def loss(y, output):
            calls.append(0)
            # The first epoch has 5 batches and 1 of validation: this is the 7th batch.
            return md.mean(md.square(output - y)) * (float("nan") if len(calls) == 8 else 1.0)

        model, optimizer, train, validation = parts()
        guard = [callbacks.TerminateOnNaN(), Checkpoint(tmp_path / "x.npz")]
        fit(model, optimizer, train, validation, loss=loss, callbacks=guard, read_every=read_every)
        assert optimizer.iterations == steps and f"step {steps}: the loss is nan" in (
            capsys.readouterr().out
        )
        saved = md.load(tmp_path / "x.npz")
        assert saved["place"]["epoch"] == 1
        assert all(np.isfinite(value).all() for value in saved["model"].values())

    def test_spoilt_weights_are_not_saved_before_it_is_read(self, tmp_path):
        def spoil(batch, logs):
            if last.run.step == 7:
                last.run.model[0].kernel.assign_(np.full((3, 4), np.nan))

        last = LambdaCallback(on_train_batch_end=spoil)
        files = [
            callbacks.ModelCheckpoint(tmp_path / "model.npz"),
            Checkpoint(tmp_path / "run.npz", every_steps=1),
        ]
        fit(callbacks=[*files, callbacks.TerminateOnNaN(), last], read_every=99)
        assert md.load(tmp_path / "run.npz")["place"]["step"] == 6
        for name in ("model.npz", "run.npz"):
            assert np.isfinite(md.load(tmp_path / name)["model"]["0.kernel"]).all()


def test_lambda_callback():
    events = []
    names = ("on_train_begin", "on_epoch_end", "on_train_batch_end", "on_train_end")
    given = {name: lambda *args, name=name: events.append((name, len(args))) for name in names}
    fit(callbacks=[LambdaCallback(**given)], epochs=1)
    batch = ("on_train_batch_end", 2)
    assert events == [("on_train_begin", 0), *[batch] * 5, ("on_epoch_end", 2), ("on_train_end", 0)]
    with pytest.raises(TypeError, match="on_epoch: expected one of on_train_begin"):
        LambdaCallback(on_epoch=print)


def everything(path=None, **options):
    """A run with all that has a state, and what it leaves."""
    model, optimizer, train, validation = parts(
        options.pop("seed", 1), wrap=lambda o: Lookahead(o, 3)
    )
    average = callbacks.ExponentialMovingAverage(0.9)
    stopping = callbacks.EarlyStopping("val_score", patience=2, restore_best_weights=True)
    own = [
        average, stopping,
        callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=2, min_delta=10.0),
        callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.9),
        callbacks.LearningRateLog(), Script(1, 3, 2, 1, 9, 9), *options.pop("callbacks", []),
    ]  # fmt: skip
    if options.pop("backwards", False):
        own.reverse()
    history = fit(
        model, optimizer, train, validation, epochs=6, accumulate=2, read_every=3,
        callbacks=own, **options,
    )  # fmt: skip
    return {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "history": history.state_dict()["rows"], "random": md.random.generator().state(),
        "average": average.state_dict(), "stopping": stopping.state_dict(),
    }  # fmt: skip


class TestResume:
    @pytest.mark.parametrize("step", [1, 2, 5, 8, 10, 13, 19])
    def test_bit_for_bit(self, tmp_path, step):
        """Ctrl-C in the middle: of accumulated gradients, of Lookahead's k, of patience."""
        path = tmp_path / "run.npz"
        expected = everything()
        assert len(expected["history"]) == 4

        def press(batch, logs):
            if interrupt.run.step == step:
                os.kill(os.getpid(), signal.SIGINT)

        interrupt = LambdaCallback(on_train_batch_end=press)
        everything(callbacks=[interrupt, Checkpoint(path, every_epochs=99)])
        resumed = everything(seed=7, resume=path, backwards=step == 8)
        assert bits(resumed) == bits(expected)

    def test_interrupted_while_validating(self, tmp_path):
        """The epoch ends, and what is saved are the model's own weights, not the averages."""
        path = tmp_path / "run.npz"

        def press(epoch, logs):
            if epoch == 1:
                os.kill(os.getpid(), signal.SIGINT)

        expected = everything()
        interrupt = LambdaCallback(on_epoch_end=press)
        everything(callbacks=[interrupt, Checkpoint(path, every_epochs=99)])
        assert bits(everything(seed=7, resume=path)) == bits(expected)

    def test_other_callbacks_are_named(self, tmp_path):
        path = tmp_path / "run.npz"
        fit(callbacks=[callbacks.BestWeights(), callbacks.BestWeights(), Checkpoint(path)])
        twice = r"BestWeights\(val_loss\), BestWeights\(val_loss\) 2; these"
        with pytest.raises(md.errors.SerializationError, match=twice):
            fit(callbacks=[callbacks.BestWeights(), Checkpoint(path)], resume=path)

    def test_two_of_a_kind_in_another_order(self, tmp_path):
        path = tmp_path / "run.npz"
        best = [callbacks.BestWeights("loss"), callbacks.BestWeights("val_loss")]
        history = fit(callbacks=[*best, Checkpoint(path)])
        fit(callbacks=[*best[::-1], Checkpoint(path)], resume=path)
        assert [b.best for b in best] == [min(history[name]) for name in ("loss", "val_loss")]


def test_no_step_waits_for_the_device():
    model, optimizer, train, validation = parts(wrap=Lookahead)
    model.to("strict")
    inside = []

    class Ban(Callback):
        def on_train_batch_begin(self, batch):
            inside.append(strict.forbid_sync())
            inside[-1].__enter__()

        def on_epoch_end(self, epoch, logs):
            logs["steps"] = optimizer.iterations

    lift = LambdaCallback(on_train_batch_end=lambda *_: inside.pop().__exit__(None, None, None))
    own = [
        Ban(), callbacks.ExponentialMovingAverage(), callbacks.EarlyStopping(patience=9),
        callbacks.TerminateOnNaN(), callbacks.ReduceLROnPlateau(), lift,
    ]  # fmt: skip
    history = fit(
        model, optimizer, train, validation, callbacks=own, accumulate=2, read_every=10**9
    )
    assert history["steps"][-1] == 4 * 3 and not inside
    assert history["val_loss"][-1] < history["val_loss"][0]
