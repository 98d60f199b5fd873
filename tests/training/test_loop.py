"""fit and evaluate: what is trained, measured, read, refused and interrupted."""

import io
import os
import signal
import threading
import time

import numpy as np
import pytest

import minidl as md
from minidl import backend
from minidl.callbacks import Callback, Checkpoint, LearningRateLog, ModelCheckpoint, ProgressBar
from minidl.data import Batches
from minidl.errors import ShapeError
from minidl.layers import (
    Conv1D,
    Dense,
    Dropout,
    Layer,
    LayerNormalization,
    Sequential,
    SpectralNormalization,
)
from minidl.losses import MeanSquaredError
from minidl.optimizers import SGD
from minidl.training.loop import threads_for

QUIET = {"verbose": False, "allocator": False}


def line():
    """A straight line and its data."""
    x = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
    model = Dense(1, input_size=1)
    return model, SGD(model, 0.3), Batches(x, 2 * x + 1, batch_size=5)


class Record(Callback):
    """Every event, in order."""

    def __init__(self):
        self.events = []

    def on_train_begin(self):
        self.events.append("train begin")

    def on_train_end(self):
        self.events.append("train end")

    def on_epoch_begin(self, epoch):
        self.events.append(f"epoch {epoch} begin")

    def on_epoch_end(self, epoch, logs):
        self.events.append(f"epoch {epoch} end {sorted(logs)}")

    def on_train_batch_begin(self, batch):
        self.events.append(f"batch {batch} begin")

    def on_train_batch_end(self, batch, logs):
        self.events.append(f"batch {batch} end")

    def on_interrupt(self):
        self.events.append("interrupt")


class Do(Callback):
    """Call a function after each step."""

    def __init__(self, function):
        self.function = function

    def on_train_batch_end(self, batch, logs):
        self.function(self.run)


class TestFit:
    def test_learns(self):
        model, optimizer, train = line()
        history = md.fit(model, MeanSquaredError(), optimizer, train, train, epochs=20, **QUIET)
        assert history["val_loss"][-1] < 1e-6 < history["loss"][0]
        np.testing.assert_allclose(model.kernel.numpy(), 2, atol=1e-2)
        assert len(history) == 20 and history.epoch[-1] == 19 and not history.interrupted

    def test_order_of_events(self):
        model, optimizer, train = line()
        record = Record()
        md.fit(model, MeanSquaredError(), optimizer, train, train, 2, [record], **QUIET)
        batches = [f"batch {i} {w}" for i in range(4) for w in ("begin", "end")]
        assert record.events == [
            "train begin",
            "epoch 0 begin", *batches, "epoch 0 end ['loss', 'val_loss']",
            "epoch 1 begin", *batches, "epoch 1 end ['loss', 'val_loss']",
            "train end",
        ]  # fmt: skip

    def test_the_loss_counts_items_or_kept_positions(self):
        x = np.arange(5, dtype=np.float32)
        model = Sequential([])
        data = [(x[:2], np.zeros(2, np.float32)), (x[2:], np.zeros(3, np.float32))]
        result = md.evaluate(model, MeanSquaredError(), data)
        assert result["loss"] == pytest.approx((x**2).mean())
        masked = [(*b, np.arange(len(b[0])) == 0) for b in data]
        result = md.evaluate(model, MeanSquaredError(), masked, [lambda t, p, m: md.mean(p)])
        assert result["loss"] == pytest.approx((x[0] ** 2 + x[2] ** 2) / 2)

    def test_losses_that_layers_add(self):
        class Penalised(Dense):
            def call(self, x):
                self.add_loss(md.sum(self.kernel * self.kernel))
                return super().call(x)

        model = Penalised(1, input_size=1, kernel_initializer="ones")
        data = [(np.zeros((1, 1)), np.zeros((1, 1)))]
        assert md.evaluate(model, MeanSquaredError(), data)["loss"] == 1
        md.fit(model, None, SGD(model, 0.25), data, **QUIET)
        assert float(model.kernel[0, 0]) == 0.5
        model, *rest = line()
        with pytest.raises(ValueError, match="no layer added a loss"):
            md.fit(model, None, *rest, **QUIET)

    def test_inputs_are_moved_and_cast(self):
        model = Dense(1, input_size=1).astype("float64")
        seen = []

        def loss(y, output):
            seen.append((y.dtype, output.dtype, y.device))
            return md.mean(md.square(output - y))

        md.fit(model, loss, SGD(model), [(np.ones((2, 1), np.float32), np.ones((2, 1)))], **QUIET)
        model.to("strict")
        md.fit(model, loss, SGD(model), [(np.ones((2, 1)), np.ones((2, 1)))], **QUIET)
        assert seen == [(np.float64, np.float64, "cpu"), (np.float64, np.float64, "strict")]

    def test_modes(self):
        model = Sequential([Dropout(0.5), Dense(1, input_size=1)])
        modes = []

        class Watch(Layer):
            def call(self, x):
                modes.append((self.training, md.autodiff.is_recording()))
                return x

        model.add(Watch())
        model.eval()
        data = [(np.ones((1, 1)), np.ones((1, 1)))]
        md.fit(model, MeanSquaredError(), SGD(model), data, data, **QUIET)
        assert modes == [(True, True), (False, False)] and model.training
        model[0].training = False
        md.evaluate(model, MeanSquaredError(), data)
        assert model.training and not model[0].training

    def test_stop(self):
        model, optimizer, train = line()
        record = Record()
        stop = Do(lambda run: setattr(run, "stop", run.step == 6))
        history = md.fit(
            model, MeanSquaredError(), optimizer, train, epochs=9, callbacks=[stop, record], **QUIET
        )
        assert len(history) == 1 and not history.interrupted
        assert record.events[-2:] == ["batch 1 end", "train end"]

    def test_wrong_batches_and_losses(self):
        model, optimizer, _ = line()
        for bad in ([np.ones((2, 1))], [{"x": 1}], [(1,)]):
            with pytest.raises(ValueError, match=r"expected batches \(inputs, targets\)"):
                md.fit(model, MeanSquaredError(), optimizer, bad, **QUIET)
        data = [(np.ones((2, 1)), np.ones((2, 1)))]
        with pytest.raises(ShapeError, match="expected a scalar"):
            md.fit(model, MeanSquaredError(reduction="none"), optimizer, data, **QUIET)

    def test_training_ends_though_a_step_fails(self):
        model, optimizer, train = line()
        record = Record()

        def loss(y, output):
            raise RuntimeError("no")

        with pytest.raises(RuntimeError, match="no"):
            md.fit(model, loss, optimizer, train, callbacks=[record], **QUIET)
        assert record.events[-1] == "train end"

    def test_read_every(self):
        model, optimizer, train = line()
        seen = []
        read = Do(lambda run: seen.append(dict(run.logs)))
        md.fit(model, MeanSquaredError(), optimizer, train, callbacks=[read], read_every=3, **QUIET)
        assert [sorted(logs) for logs in seen] == [[], [], ["loss"], ["loss"]]


class TestInterrupt:
    def test_ctrl_c_finishes_the_step_and_saves(self, tmp_path):
        model, optimizer, train = line()
        record, path = Record(), tmp_path / "run.npz"
        press = Do(lambda run: os.kill(os.getpid(), signal.SIGINT) if run.step == 6 else None)
        before = signal.getsignal(signal.SIGINT)
        history = md.fit(
            model, MeanSquaredError(), optimizer, train, epochs=9,
            callbacks=[press, record, Checkpoint(path, every_epochs=100)], **QUIET,
        )  # fmt: skip
        assert history.interrupted and len(history) == 1
        assert record.events[-3:] == ["batch 1 end", "interrupt", "train end"]
        assert md.load(path)["place"] == {"epoch": 1, "batch": 2, "step": 6}
        assert signal.getsignal(signal.SIGINT) is before

    def test_twice_stops_at_once(self):
        model, optimizer, train = line()

        def press(run):
            os.kill(os.getpid(), signal.SIGINT)
            while not run.stop:  # two signals that wait are one
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)  # not to its end

        with pytest.raises(KeyboardInterrupt):
            md.fit(model, MeanSquaredError(), optimizer, train, callbacks=[Do(press)], **QUIET)

    def test_other_threads_train_too(self):
        model, optimizer, train = line()
        done = []
        thread = threading.Thread(
            target=lambda: done.append(md.fit(model, MeanSquaredError(), optimizer, train, **QUIET))
        )
        thread.start()
        thread.join()
        assert len(done[0]) == 1


@pytest.mark.parametrize(
    ("layers", "blas"),
    [
        ([Dense(2, input_size=2), Dropout(0.5), SpectralNormalization(Dense(1, input_size=2))], 2),
        ([Dense(2, input_size=2), LayerNormalization(input_size=2)], None),
        ([Conv1D(2, 3, input_size=2)], None),
        ([Conv1D(2, 3), Dense(1, input_size=2)], None),  # decided alike before it is built
        ([Dropout(0.5)], None),
    ],
)
def test_blas_divides_the_products_of_dense_layers_alone(layers, blas, monkeypatch):
    asked = []
    monkeypatch.setattr(backend, "threads", lambda n, blas: asked.append((n, blas)))
    threads_for(Sequential(layers), 2)
    assert asked == [(2, blas)]


def test_a_loss_that_needs_targets_says_so():
    model, optimizer, _ = line()
    with pytest.raises(ValueError, match="MeanSquaredError needs targets, and the batches have"):
        md.fit(model, MeanSquaredError(), optimizer, Batches(np.ones((4, 1))), **QUIET)


class TestEvaluating:
    def test_modes_and_recording(self):
        model = Sequential([Dropout(0.5), Dense(1, input_size=1)])
        model[0].training = False
        with pytest.raises(KeyError), md.evaluating(model):
            assert not model.training and not model[1].training
            assert not model(np.ones((1, 1), np.float32)).requires_grad
            raise KeyError
        assert model.training and model[1].training and not model[0].training
        assert model(np.ones((1, 1), np.float32)).requires_grad


def test_validation_freq():
    model, optimizer, train = line()
    history = md.fit(
        model, MeanSquaredError(), optimizer, train, train, 5, validation_freq=2, **QUIET
    )
    assert [value is not None for value in history["val_loss"]] == [False, True, False, True, True]


def test_losses_added_outside_of_training_do_not_count():
    """A callback may call the model between steps; the loss may call layers itself."""

    class Added(Layer):
        def __init__(self):
            self.weight = self.add_weight((), "ones")

        def call(self, x):
            self.add_loss(md.mean(x * self.weight))
            return x

    model = Added()
    x = np.ones((1, 1), np.float32)
    model(md.tensor(x))
    call = Do(lambda run: run.model(md.tensor(x)))
    data, rate = [(x, x)] * 3, SGD(model, 0.0)
    history = md.fit(model, None, rate, data, epochs=2, callbacks=[call], **QUIET)
    assert history["loss"] == [1.0, 1.0]

    def loss(_, output):
        return 0.0 * md.mean(model(output))

    assert md.fit(model, loss, rate, data, epochs=2, **QUIET)["loss"] == [2.0, 2.0]


def test_an_epoch_without_batches_is_an_error():
    model, optimizer, train = line()
    with pytest.raises(ValueError, match=r"none in epoch 2.*generator"):
        md.fit(model, MeanSquaredError(), optimizer, (b for b in train), epochs=2, **QUIET)


@pytest.mark.parametrize("empty", [[], (b for b in ()), Batches(np.ones((3, 1)), drop_last=True)])
def test_nothing_to_measure_on_is_an_error(empty):
    model, optimizer, train = line()
    with pytest.raises(ValueError, match="expected batches, got none"):
        md.evaluate(model, MeanSquaredError(), empty)
    with pytest.raises(ValueError, match="validation: expected batches, got none"):
        md.fit(model, MeanSquaredError(), optimizer, train, empty, **QUIET)


def test_one_callback_needs_no_list():
    model, optimizer, train = line()
    options = {"callbacks": LearningRateLog(), **QUIET}
    history = md.fit(model, MeanSquaredError(), optimizer, train, **options)
    assert history["learning_rate"] == [optimizer.rate]


class TestCallbacks:
    def test_progress_prints_a_line_an_epoch(self):
        model, optimizer, train = line()
        file = io.StringIO()
        md.fit(
            model, MeanSquaredError(), optimizer, train, epochs=2, callbacks=[ProgressBar(file)],
            allocator=False,
        )  # fmt: skip
        lines = file.getvalue().splitlines()
        assert [text.split()[:3] for text in lines] == [
            ["epoch", "1/2", "loss"], ["epoch", "2/2", "loss"],
        ]  # fmt: skip

    def test_a_terminal_gets_a_bar(self):
        pytest.importorskip("tqdm")

        class Terminal(io.StringIO):
            def isatty(self):
                return True

        model, optimizer, train = line()
        file = Terminal()
        md.fit(
            model, MeanSquaredError(), optimizer, train, callbacks=[ProgressBar(file)],
            read_every=1, allocator=False,
        )  # fmt: skip
        assert "epoch 1/1" in file.getvalue() and file.getvalue().endswith(" s\n")

    def test_verbose_prints(self, capsys):
        model, optimizer, train = line()
        md.fit(model, MeanSquaredError(), optimizer, train, allocator=False)
        assert capsys.readouterr().out.startswith("epoch 1/1  loss ")
        md.fit(model, MeanSquaredError(), optimizer, train, **QUIET)
        assert capsys.readouterr().out == ""

    def test_model_checkpoint_keeps_the_best(self, tmp_path):
        model, _, train = line()
        best = ModelCheckpoint(tmp_path / "best.npz", monitor="loss", save_best_only=True)
        each = ModelCheckpoint(tmp_path / "{epoch}-{loss:.1f}.npz")
        rates = lambda step: 0.3 if step < 8 else 3.0  # noqa: E731  worse from the third epoch on
        history = md.fit(
            model, MeanSquaredError(), SGD(model, rates), train, epochs=4, callbacks=[best, each],
            **QUIET,
        )  # fmt: skip
        assert best.best == min(history["loss"]) < history["loss"][-1]
        files = [f"{i + 1}-{loss:.1f}.npz" for i, loss in enumerate(history["loss"])]
        assert sorted(os.listdir(tmp_path)) == sorted([*files, "best.npz"])
        position = history["loss"].index(best.best)
        saved = [md.load(tmp_path / name)["model"] for name in ("best.npz", files[position])]
        for name, value in saved[0].items():
            np.testing.assert_array_equal(value, saved[1][name])

    def test_model_checkpoint_refuses(self, tmp_path):
        model, optimizer, train = line()
        callbacks = [ModelCheckpoint(tmp_path / "x.npz", save_best_only=True)]
        with pytest.raises(ValueError, match="'val_loss' is not measured, only loss"):
            md.fit(model, MeanSquaredError(), optimizer, train, callbacks=callbacks, **QUIET)
        with pytest.raises(ValueError, match="'min' or 'max'"):
            ModelCheckpoint("x", mode="best")

    def test_learning_rate_log(self):
        model, _, train = line()
        optimizer = SGD(model, lambda step: 0.1 / (1 + step))
        history = md.fit(
            model, MeanSquaredError(), optimizer, train, epochs=2, callbacks=[LearningRateLog()],
            **QUIET,
        )  # fmt: skip
        assert history["learning_rate"] == [0.1 / 4, 0.1 / 8]


def test_metrics_of_one_name_are_refused():
    model = Dense(1, input_size=2)
    data = [(np.ones((2, 2), "float32"), np.ones((2, 1), "float32"))]
    twice = [lambda t, y: y.mean(), lambda t, y: y.sum()]
    with pytest.raises(ValueError, match="metrics: expected different names"):
        md.fit(model, MeanSquaredError(), SGD(model), data, metrics=twice, verbose=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": "mse"}, "loss: expected md"),
        ({"loss": MeanSquaredError}, "loss: expected md"),
        ({"metrics": [md.metrics.MeanSquaredError]}, "metrics: expected md"),
        ({"callbacks": [LearningRateLog]}, "callbacks: expected a list of callbacks"),
        ({"optimizer": "adam"}, "optimizer: expected one such as"),
        ({"metrics": ["accuracy"]}, "metrics: expected md"),
        ({"loss": lambda t, y: 1.0}, "loss: expected a Tensor, got float"),
    ],
)
def test_what_fit_does_not_take(changed, message):
    model = Dense(1, input_size=2)
    data = [(np.ones((2, 2), "float32"), np.ones((2, 1), "float32"))]
    given = {"loss": MeanSquaredError(), "optimizer": SGD(model), "train": data} | changed
    with pytest.raises(TypeError, match=message):
        md.fit(model, **given, verbose=False)


@pytest.mark.parametrize("metric", [md.metrics.ConfusionMatrix(3), md.metrics.F1Score(None)])
def test_a_metric_whose_result_is_an_array_is_refused(metric):
    model = md.layers.Dense(3, input_size=2)
    loss = md.losses.SparseCategoricalCrossentropy(from_logits=True)
    batch = (np.ones((3, 2), np.float32), np.array([0, 1, 2]))
    with pytest.raises(TypeError, match="result is a number, got one of shape"):
        md.fit(
            model, loss, md.optimizers.SGD(model), [batch], metrics=[metric], verbose=False,
            allocator=False,
        )  # fmt: skip


def test_fit_refuses_the_optimizer_of_another_model():
    model, other = Dense(1, input_size=2), Dense(1, input_size=2)
    batch = (np.ones((2, 2), np.float32), np.ones((2, 1), np.float32))
    with pytest.raises(ValueError, match="none of its parameters is the model's"):
        md.fit(
            model, md.losses.MeanSquaredError(), md.optimizers.SGD(other), [batch], verbose=False,
            allocator=False,
        )  # fmt: skip
