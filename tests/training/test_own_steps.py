"""Models with a train_step or test_step of their own, and several optimisers."""

import numpy as np
import pytest

import minidl as md
from minidl.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ExponentialMovingAverage,
    LearningRateLog,
    LearningRateScheduler,
    ReduceLROnPlateau,
    TerminateOnNaN,
)
from minidl.data import Batches
from minidl.errors import GradientError, SerializationError, ShapeError
from minidl.layers import Dense, Dropout, Layer, Sequential
from minidl.losses import MeanSquaredError
from minidl.optimizers import SGD, Adam, Lookahead, Optimizers
from minidl.schedules import ExponentialDecay
from minidl.testing import strict

QUIET = {"verbose": False, "allocator": False}


class Rivals(Layer):
    """Two critic steps to one of the generator, on points in the plane."""

    train_names = ("critic_loss", "generator_loss")
    test_names = ("difference",)

    def __init__(self):
        self.generator = Sequential([Dense(8, "tanh", input_size=2), Dense(2, input_size=8)])
        self.critic = Sequential([Dense(8, "relu", input_size=2), Dropout(0.1)])
        self.score = Dense(1, input_size=8)

    def call(self, z):
        return self.generator(z)

    def judged(self, x):
        return md.mean(self.score(self.critic(x)))

    def train_step(self, batch, optimizer):
        critic = optimizer["critic"]
        z = md.tensor(md.random.generator().normal(batch.inputs.shape), device=self.device)
        with md.no_grad():
            fake = self.generator(z)
        difference = self.judged(fake) - self.judged(batch.inputs)
        critic.minimize(difference + 0.1 * md.mean(md.square(self.score.kernel)))
        found = {"critic_loss": difference}
        if critic.iterations % 2 == 0:
            loss = -self.judged(self.generator(z))
            optimizer["generator"].minimize(loss)
            found["generator_loss"] = loss
        return found

    def test_step(self, batch):
        return {"difference": md.mean(self.generator(batch.inputs)) - md.mean(batch.inputs)}


def rivals():
    md.seed(3)
    model = Rivals()
    optimizers = {
        "critic": Adam([*model.critic.parameters(), *model.score.parameters()], 0.01, beta_1=0.5),
        "generator": Adam(model.generator, ExponentialDecay(0.05, 10, 0.9)),
    }
    rng = np.random.default_rng(0)
    points = rng.normal(2.0, 0.5, (40, 2)).astype(np.float32)
    return model, optimizers, Batches(points, batch_size=8)


class Do(Callback):
    def __init__(self, function):
        self.function = function

    def on_train_batch_end(self, batch, logs):
        self.function(self.run)


class TestTrainStep:
    def test_the_model_makes_the_steps_and_its_numbers_become_the_epochs(self):
        model, optimizers, points = rivals()
        fitted = md.fit(model, None, optimizers, points, points, 4, **QUIET)
        assert list(fitted.history) == ["critic_loss", "generator_loss", "val_difference"]
        assert optimizers["critic"].iterations == 20 and optimizers["generator"].iterations == 10
        assert abs(fitted["val_difference"][-1]) < abs(fitted["val_difference"][0])
        assert model.training

    def test_an_epochs_number_is_the_mean_over_items_of_the_batches_that_gave_it(self):
        given = []

        class Counts(Dense):
            train_names = ("loss", "first")

            def train_step(self, batch, optimizer):
                given.append((len(batch.inputs), float(md.mean(batch.inputs))))
                return {"loss": md.mean(batch.inputs)} | ({"first": 7} if len(given) == 1 else {})

        data = Batches(np.arange(10, dtype=np.float32)[:, None], batch_size=4)
        model = Counts(1, input_size=1)
        history = md.fit(model, None, SGD(model), data, epochs=2, **QUIET)
        assert np.allclose(history["loss"], [4.5, 4.5]) and len({n for n, _ in given}) == 2
        assert history["first"] == [7.0, None]

    def test_no_step_waits_for_the_device(self):
        with md.device("strict"), md.random.draw_on_host():
            model, optimizers, points = rivals()
            callbacks = [
                strict.ForbidSync(),
                ExponentialMovingAverage(0.9, optimizer="generator"),
                LearningRateLog(),
            ]
            history = md.fit(
                model, None, optimizers, points, epochs=2, callbacks=callbacks, read_every=100,
                **QUIET,
            )  # fmt: skip
        host = md.fit(*before(rivals()), epochs=2, **QUIET)
        assert np.allclose(history["critic_loss"], host["critic_loss"], atol=1e-4)

    def test_callbacks_read_the_declared_names(self):
        model, optimizers, points = rivals()
        stop = EarlyStopping("critic_loss", mode="min", patience=50)
        md.fit(model, None, optimizers, points, epochs=1, callbacks=[stop], **QUIET)
        with pytest.raises(ValueError, match="'loss' is not measured, only critic_loss, generat"):
            md.fit(
                model, None, optimizers, points, callbacks=[EarlyStopping("loss")], **QUIET
            )  # fmt: skip

    def test_a_loss_that_is_no_number_ends_the_training(self, capsys):
        model, optimizers, points = rivals()
        spoil = Do(lambda run: run.model.score.kernel.assign_(np.full((8, 1), np.nan)))
        history = md.fit(
            model, None, optimizers, points, epochs=3, callbacks=[spoil, TerminateOnNaN()],
            read_every=1, **QUIET,
        )  # fmt: skip
        assert not len(history) and "step 2: critic_loss is nan" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("returned", "error", "message"),
        [
            (3.0, TypeError, "expected a dict of numbers by name, got float"),
            ({"los": 1.0}, ValueError, "returned 'los', which is not among its names: loss"),
            ({"loss": np.ones(2)}, ShapeError, r"loss: expected a scalar, got \(2,\)"),
        ],
    )
    def test_what_a_step_may_not_return(self, returned, error, message):
        class Wrong(Dense):
            train_names = ("loss",)

            def train_step(self, batch, optimizer):
                return returned

        model = Wrong(1, input_size=2)
        with pytest.raises(error, match=rf"Wrong.train_step: .*{message}"):
            md.fit(model, None, SGD(model), Batches(np.zeros((4, 2))), **QUIET)

    def test_losses_that_layers_add_are_the_steps_to_take(self):
        class Adds(Dense):
            train_names = ("loss",)

            def train_step(self, batch, optimizer):
                self.add_loss(md.mean(md.square(self(batch.inputs))))
                (loss,) = self.losses()
                optimizer.minimize(loss)
                self.add_loss(loss * 0)  # left over
                return {"loss": loss}

        model = Adds(1, input_size=2)
        ones = Batches(np.ones((8, 2), np.float32), batch_size=4)
        history = md.fit(model, None, SGD(model, 0.2), ones, epochs=4, **QUIET)
        assert history["loss"][-1] < 0.1 * history["loss"][0] and model.losses() == []


def before(made):
    """The arguments of `fit`."""
    model, optimizers, data = made
    return model, None, optimizers, data


class TestArguments:
    def test_names_must_be_declared(self):
        class Silent(Dense):
            def train_step(self, batch, optimizer): ...

        model = Silent(1, input_size=2)
        with pytest.raises(TypeError, match=r'Silent has a train_step.*train_names = \("loss",\)'):
            md.fit(model, None, SGD(model), [], **QUIET)

    def test_what_would_not_be_used_is_refused(self):
        model, optimizers, points = rivals()
        for loss, metrics in ((MeanSquaredError(), ()), (None, [MeanSquaredError()])):
            with pytest.raises(ValueError, match="Rivals has a train_step and a test_step, which"):
                md.fit(model, loss, optimizers, points, points, metrics=metrics, **QUIET)
        with pytest.raises(ValueError, match="accumulate: Rivals makes its own steps"):
            md.fit(model, None, optimizers, points, accumulate=2, **QUIET)

    def test_without_a_test_step_the_loss_measures(self):
        class Own(Dense):
            train_names = ("loss",)

            def train_step(self, batch, optimizer):
                loss = md.mean(md.square(self(batch.inputs) - batch.targets))
                optimizer.minimize(loss)
                return {"loss": loss}

        x = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
        data, model = Batches(x, 2 * x, batch_size=5), Own(1, input_size=1)
        with pytest.raises(ValueError, match="no test_step to measure it by; write one, or give a"):
            md.fit(model, None, SGD(model), data, data, **QUIET)
        loss = MeanSquaredError()
        history = md.fit(model, loss, SGD(model, 0.5), data, data, 5, **QUIET)
        assert list(history.history) == ["loss", "val_loss"]
        assert history["val_loss"][-1] == md.evaluate(model, loss, data)["loss"] < 0.01

    def test_a_test_step_alone_measures_what_the_loss_trains(self):
        class Measured(Dense):
            test_names = ("largest_error",)

            def test_step(self, batch):
                assert not self.training
                return {"largest_error": md.max(md.abs(self(batch.inputs) - batch.targets))}

        x = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
        data, model = Batches(x, 2 * x, batch_size=20), Measured(1, input_size=1)
        history = md.fit(model, MeanSquaredError(), SGD(model, 0.5), data, data, 5, **QUIET)
        assert list(history.history) == ["loss", "val_largest_error"]
        found = md.evaluate(model, MeanSquaredError(), data)
        assert found == {"largest_error": history["val_largest_error"][-1]}


class TestResume:
    @pytest.mark.parametrize("step", [5, 7])
    def test_a_resumed_run_is_the_same_bit_for_bit(self, tmp_path, step):
        def callbacks(stop=None):
            after = [Do(lambda run: setattr(run, "stop", run.step == stop))]
            average = ExponentialMovingAverage(0.9, optimizer="generator")
            saving = Checkpoint(tmp_path / "run.npz", every_steps=1)
            return [average, LearningRateLog(), saving, *after]

        def run(stop=None, **options):
            model, optimizers, points = rivals()
            history = md.fit(
                model, None, optimizers, points, points, 3, callbacks(stop), **QUIET, **options
            )  # fmt: skip
            return model, optimizers, history

        whole, of_whole, expected = run()
        run(step)
        md.seed(99)
        model, optimizers, history = run(resume=tmp_path / "run.npz")
        assert history.rows == expected.rows
        assert set(expected.history) >= {"critic_learning_rate", "generator_learning_rate"}
        for name, value in whole.state_dict().items():
            np.testing.assert_array_equal(model.state_dict()[name], value)
        for name, one in of_whole.items():
            other = optimizers[name]
            assert one.iterations == other.iterations
            for slots, own in zip(*(o.state_dict()["slots"].values() for o in (one, other))):
                for slot in slots:
                    np.testing.assert_array_equal(slots[slot], own[slot])

    def test_a_run_of_the_other_kind_is_refused(self, tmp_path):
        class Own(Dense):
            train_names = ("loss",)

            def train_step(self, batch, optimizer):
                loss = md.mean(self(batch.inputs))
                optimizer.minimize(loss)
                return {"loss": loss}

        data = Batches(np.ones((4, 2), np.float32), np.ones((4, 1), np.float32), seed=0)
        plain, own = Dense(1, input_size=2), Own(1, input_size=2)
        runs = {"loss": (plain, MeanSquaredError()), "step": (own, None)}
        for name, (model, loss) in runs.items():
            saving = Checkpoint(tmp_path / f"{name}.npz")
            md.fit(model, loss, SGD(model), data, callbacks=saving, **QUIET)
        for name, of in (("loss", "of a step of the model"), ("step", "of a loss and metrics")):
            model, loss = runs[name]
            saving = Checkpoint(tmp_path / f"{'step' if name == 'loss' else 'loss'}.npz")
            with pytest.raises(SerializationError, match=of):
                md.fit(model, loss, SGD(model), data, callbacks=saving, resume=saving.path, **QUIET)

    def test_averages_of_two_optimisers_may_change_places(self, tmp_path):
        model, optimizers, points = rivals()
        kinds = [ExponentialMovingAverage(optimizer=name) for name in ("critic", "generator")]
        path = tmp_path / "run.npz"
        md.fit(model, None, optimizers, points, callbacks=[*kinds, Checkpoint(path)], **QUIET)
        names = set(md.load(path)["callbacks"])
        assert {f"ExponentialMovingAverage of {name}" for name in optimizers} <= names

    def test_other_optimisers_are_refused(self, tmp_path):
        model, optimizers, points = rivals()
        path = tmp_path / "run.npz"
        saving = [Checkpoint(path)]
        md.fit(model, None, optimizers, points, callbacks=saving, **QUIET)
        renamed = {"critic": optimizers["critic"], "other": optimizers["generator"]}
        for other, names in ((renamed, "critic, other"), (optimizers["critic"], "Optimizers")):
            with pytest.raises(SerializationError, match=names):
                md.fit(model, None, other, points, callbacks=saving, resume=path, **QUIET)


class TestSeveralOptimizers:
    def test_they_step_together_where_the_loss_trains(self):
        x = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
        results = []
        for several in (False, True):
            md.seed(0)
            data = Batches(x, 2 * x, batch_size=5)
            model = Sequential([Dense(4, "tanh", input_size=1), Dense(1, input_size=4)])
            optimizer = (
                {"body": SGD(model[0], 0.1), "head": Lookahead(SGD(model[1], 0.1), k=10**6)}
                if several
                else SGD(model, 0.1)
            )
            md.fit(model, MeanSquaredError(), optimizer, data, epochs=2, accumulate=2, **QUIET)
            results.append(model.state_dict())
        for name, value in results[0].items():
            np.testing.assert_allclose(results[1][name], value, rtol=1e-6)

    def test_one_optimiser_has_one_name(self):
        optimizer = SGD(Dense(1, input_size=2))
        with pytest.raises(ValueError, match="one optimiser has two names"):
            Optimizers({"a": optimizer, "b": optimizer})

    def test_it_is_a_mapping_of_optimisers(self):
        model = Dense(1, input_size=2)
        both = Optimizers({"a": SGD(model), "b": SGD([model.kernel])})
        assert list(both) == ["a", "b"] and len(both) == 2 and len(both.parameters) == 2
        with pytest.raises(KeyError, match="'c': there are a, b"):
            both["c"]
        with pytest.raises(ValueError, match="one optimiser or more"):
            Optimizers({})
        with pytest.raises(TypeError, match="'a': 3"):
            Optimizers({"a": 3})

    @pytest.mark.parametrize(
        "make",
        [
            lambda name: ExponentialMovingAverage(optimizer=name),
            lambda name: LearningRateScheduler(lambda epoch, rate: rate / 2, optimizer=name),
            lambda name: ReduceLROnPlateau("critic_loss", optimizer=name),
        ],
    )
    def test_callbacks_that_are_for_one_must_be_told_which(self, make):
        model, optimizers, points = rivals()
        with pytest.raises(ValueError, match="expected the name of one of critic, generator, got"):
            md.fit(model, None, optimizers, points, callbacks=[make(None)], **QUIET)
        md.fit(model, None, optimizers, points, callbacks=[make("critic")], **QUIET)
        with pytest.raises(ValueError, match="one optimiser only, and no 'critic'"):
            md.fit(
                model, None, optimizers["critic"], points, callbacks=[make("critic")], **QUIET
            )  # fmt: skip

    def test_one_average_for_each(self):
        model, optimizers, points = rivals()
        both = [ExponentialMovingAverage(0.5, optimizer=name) for name in optimizers]
        md.fit(model, None, optimizers, points, epochs=2, callbacks=both, **QUIET)
        own = model.state_dict()
        with both[0].applied():
            changed = {n for n, value in model.state_dict().items() if (value != own[n]).any()}
        # The scores' bias is in both terms of the critic's loss: it has gradient 0.
        assert changed == {"critic.0.kernel", "critic.0.bias", "score.kernel"}


class TestMinimize:
    def test_other_parameters_get_no_gradient(self):
        first, second = Dense(2, input_size=3), Dense(1, input_size=2)
        second.bias.requires_grad = False
        optimizer = SGD(second, 0.1)
        before = second.kernel.numpy().copy()
        optimizer.minimize(md.sum(second(first(np.ones((4, 3), np.float32)))))
        assert first.kernel.grad is None and optimizer.iterations == 1
        np.testing.assert_allclose(second.kernel.numpy(), before - 0.1 * second.kernel.grad.numpy())

    def test_a_loss_of_other_parameters_is_refused(self):
        first, second = Dense(2, input_size=3), Dense(2, input_size=3)
        optimizer = Adam(first)
        with pytest.raises(GradientError, match=r"Adam\.minimize: loss: depends on none of"):
            optimizer.minimize(md.mean(second(np.ones((4, 3), np.float32))))
        assert optimizer.iterations == 0

    def test_backward_reaches_leaves_only(self):
        x = md.tensor([1.0, 2.0], requires_grad=True)
        y = x * x
        with pytest.raises(GradientError, match="inputs: expected tensors made with requires_grad"):
            md.sum(y).backward(inputs=[y])
        md.sum(y).backward(inputs=[x])
        assert x.grad.tolist() == [2, 4]
