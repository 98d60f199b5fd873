"""Layer: members and names, building, modes, moving, state, looking."""

import copy
import gc
import weakref

import numpy as np
import pytest

import minidl as md
from minidl import layers
from minidl.errors import BuildError, SerializationError, ShapeError
from minidl.layers import Dense, Dropout, Layer, Parameter, Sequential


class Model(Layer):
    """Members of every kind: a list, a dict, a tied table, a parameter of its own."""

    def __init__(self):
        self.encoder = [Dense(3), Dense(3)]
        self.heads = {"a": Dense(2), "b": Dense(2)}
        self.scale = Parameter(np.ones(2, np.float32))
        self.options = {"size": 3, "names": ["x", "y"]}

    def call(self, x):
        for layer in self.encoder:
            x = layer(x)
        return (self.heads["a"](x) + self.heads["b"](x)) * self.scale


class Counter(Layer):
    """A buffer that counts the calls, and a loss of its own."""

    def __init__(self):
        self.add_buffer("calls", np.zeros((), np.int64))

    def call(self, x):
        if not md.autodiff.replaying():
            self.calls = self.calls + 1
        self.add_loss(md.mean(x * x))
        return x


def batch(*shape):
    return md.tensor(np.random.default_rng(0).normal(size=shape).astype(np.float32))


NAMES = [
    "encoder.0.kernel", "encoder.0.bias", "encoder.1.kernel", "encoder.1.bias",
    "heads.a.kernel", "heads.a.bias", "heads.b.kernel", "heads.b.bias",
]  # fmt: skip


class TestMembers:
    def test_names_follow_attributes_in_order(self):
        model = Model()
        model(batch(4, 5))
        assert [name for name, _ in model.named_parameters()] == ["scale", *NAMES]
        assert [name for name, _ in model.walk()] == [
            "", "encoder.0", "encoder.1", "heads.a", "heads.b",
        ]  # fmt: skip

    def test_layers_appended_later_belong(self):
        model = Model()
        model.encoder.append(Dense(3, input_size=3))
        assert "encoder.2" in dict(model.walk())

    def test_sequential_names_its_layers_by_number(self):
        inner = Sequential([Dense(2, input_size=3), Dense(1, input_size=2)])
        assert list(inner.state_dict()) == ["0.kernel", "0.bias", "1.kernel", "1.bias"]
        assert next(iter(Sequential([inner]).state_dict())) == "0.0.kernel"
        assert len(inner) == 2 and inner[1] is list(inner)[1]
        with pytest.raises(TypeError, match="Activation"):
            inner.add(md.relu)

    def test_tied_parameters_count_once(self):
        first, second = Dense(3, input_size=3), Dense(3, input_size=3)
        second.kernel = first.kernel
        model = Sequential([first, second])
        assert [n for n, _ in model.named_parameters()] == ["0.kernel", "0.bias", "1.bias"]
        assert "15 parameters" in model.summary()

    def test_a_layer_used_twice_and_a_cycle_are_walked_once(self):
        shared = Dense(3, input_size=3)
        model = Sequential([shared, shared])
        shared.owner = model
        assert [n for n, _ in model.walk()] == ["", "0"]


class TestBuild:
    def test_at_the_first_call_with_the_shape_of_the_input(self):
        layer = Dense(4)
        assert not layer.built
        layer(batch(2, 7, 5))
        assert layer.built and layer.kernel.shape == (5, 4)

    def test_at_once_when_the_size_is_given_or_build_is_called(self):
        assert Dense(4, input_size=5).kernel.shape == (5, 4)
        layer = Dense(4)
        layer.build((None, 5))
        kernel = layer.kernel
        layer(batch(2, 5))
        assert layer.kernel is kernel

    def test_several_inputs_give_their_shapes(self):
        class Two(Layer):
            def build(self, input_shape):
                self.shapes = input_shape

            def call(self, pair):
                return pair[0]

        layer = Two()
        layer([batch(2, 3), batch(2, 5)])
        assert layer.shapes == ((2, 3), (2, 5))

    def test_an_unbuilt_model_is_named(self):
        model = Model()
        model.encoder[0].build((None, 3))
        assert model.unbuilt() == ["encoder.1", "heads.a", "heads.b"]
        for use in (
            model.parameters,
            model.state_dict,
            lambda: model.load_state_dict({}),
            lambda: md.optimizers.SGD(model),
            lambda: md.save("never.npz", model=model),
        ):
            with pytest.raises(BuildError, match=r"encoder\.1, heads\.a, heads\.b.*call the model"):
                use()

    def test_a_layer_without_parameters_is_never_unbuilt(self):
        assert Sequential([Dropout(0.1)]).unbuilt() == []

    def test_parameters_are_made_where_the_input_is(self):
        with md.device("strict"):
            x = md.tensor(np.ones((2, 3), np.float32), device="strict")
        layer = Sequential([Dense(2)])
        layer(x)
        assert layer.device == "strict"
        with md.device("strict"):
            assert Dense(2, input_size=3).device == "strict"

    def test_default_dtype(self):
        with md.default_dtype("float64"):
            assert Dense(2, input_size=3).kernel.dtype == np.float64

    def test_call_is_to_be_written(self):
        with pytest.raises(NotImplementedError, match="write call"):
            Layer()(batch(1))


class TestErrors:
    def note(self, model, *inputs):
        with pytest.raises(ShapeError) as caught:
            model(*inputs)
        return caught.value.__notes__

    def test_the_layer_is_named_as_the_outermost_names_it(self):
        model = Model()
        model(batch(4, 5))
        model.heads["b"] = Sequential([Dense(2, input_size=7)])
        outer = Sequential([model])
        expected = ["in layer 0.heads.b.0 (Dense) of Sequential, given (4, 3)"]
        assert self.note(outer, batch(4, 5)) == expected
        assert self.note(outer, batch(4, 5)) == expected

    def test_by_itself_and_while_building(self):
        assert self.note(Dense(2, input_size=7), batch(4, 5)) == ["in layer Dense, given (4, 5)"]
        conv = Sequential([layers.Conv1D(4, 3, groups=2)])
        assert self.note(conv, batch(1, 6, 5)) == [
            "in layer 0 (Conv1D) of Sequential, given (1, 6, 5)"
        ]

    def test_other_notes_stay(self):
        class Wrong(Layer):
            def call(self, x):
                error = ShapeError("wrong")
                error.add_note("look here")
                raise error

        notes = self.note(Sequential([Wrong()]), 3)
        assert notes == ["look here", "in layer 0 (Wrong) of Sequential"]


class TestModes:
    def test_train_and_eval_reach_all_layers(self):
        model = Sequential([Sequential([Dropout(0.5)])])
        assert model.training
        assert model.eval() is model and not model[0][0].training
        assert model.train() is model and model[0][0].training

    def test_freezing(self):
        model = Sequential([Dense(3, input_size=3), Dense(1, input_size=3)])
        x = batch(4, 3)
        md.sum(model(x)).backward()
        model[0].trainable = False
        assert not model[0].kernel.requires_grad and model[0].kernel.grad is None
        md.sum(model(x)).backward()
        assert model[0].kernel.grad is None and model[1].kernel.grad is not None
        assert "16 parameters, 4 of them" in model.summary()
        model.trainable = True
        md.sum(model(x)).backward()
        assert model[0].kernel.grad is not None

    def test_freezing_before_building(self):
        class Lazy(Layer):
            def build(self, input_shape):
                self.inner = Dense(2, input_size=input_shape[-1])

            def call(self, x):
                return self.inner(x)

        for layer in (Dense(2), Lazy()):
            layer.trainable = False
            layer(batch(1, 3))
            assert not any(p.requires_grad for p in layer.parameters())


class TestLosses:
    def test_added_losses_are_taken_once(self):
        model = Sequential([Counter(), Counter()])
        x = batch(3)
        model(x)
        assert [float(v) for v in model.losses()] == pytest.approx([float(md.mean(x * x))] * 2)
        assert model.losses() == []

    def test_losses_of_several_calls_add_up(self):
        model = Sequential([Counter()])
        model(batch(3))
        model(batch(3))
        assert len(model.losses()) == 2

    def test_only_those_inside(self):
        one, other = Counter(), Counter()
        one(batch(3))
        other(batch(3))
        assert len(one.losses()) == 1 and len(other.losses()) == 1

    def test_extra_evaluations_add_nothing(self):
        layer = Counter()
        with md.autodiff.replay():
            layer(batch(3))
        assert layer.losses() == [] and int(layer.calls) == 0

    def test_scalars_only(self):
        with pytest.raises(ShapeError, match=r"scalar, got shape \(3,\)"):
            Layer().add_loss(batch(3))

    def test_a_copy_has_its_own(self):
        """What the original had not given yet when it was copied stays with the original."""
        layer = Counter()
        layer(batch(2))
        twin = copy.deepcopy(layer)
        twin(batch(2))
        assert len(twin.losses()) == 1 and len(layer.losses()) == 1

    def test_a_copy_after_a_call_that_was_recorded(self):
        layer = md.layers.Dense(2, activity_regularizer="l2", input_size=3)
        layer(batch(2, 3))
        assert copy.deepcopy(layer).losses() == [] and len(layer.losses()) == 1

    def test_forgotten_layers_are_freed(self):
        gc.collect()
        gc.disable()
        try:
            layer = Counter()
            layer(batch(3))
            alive = weakref.ref(layer)
            del layer
            assert alive() is None
        finally:
            gc.enable()


class TestBuffers:
    def test_rebound_not_written(self):
        layer = Counter()
        before = layer.calls
        layer(batch(3))
        assert int(before) == 0 and int(layer.calls) == 1

    def test_saved_loaded_and_moved(self):
        layer, other = Sequential([Counter()]), Sequential([Counter()])
        layer(batch(3))
        state = layer.state_dict()
        assert list(state) == ["0.calls"] and state["0.calls"] == 1
        other.load_state_dict(state)
        assert int(other[0].calls) == 1
        assert other.to("strict")[0].calls.device == "strict"
        other.load_state_dict({"0.calls": np.array(5)})
        assert other[0].calls.device == "strict" and int(other[0].calls) == 5

    def test_made_of_a_parameter_it_is_a_copy(self):
        layer = Dense(2, input_size=2)
        layer.add_buffer("first", layer.kernel)
        before = layer.first.numpy().copy()
        md.sum(layer(batch(3, 2))).backward()
        md.optimizers.SGD(layer, 1.0).step()
        np.testing.assert_array_equal(layer.first.numpy(), before)

    def test_declared_again_it_is_one(self):
        layer = Counter()
        layer.add_buffer("calls", np.ones((), np.int64))
        assert [name for name, _ in layer.named_buffers()] == ["calls"]

    def test_no_parameters(self):
        assert Counter().parameters() == []


class TestMoving:
    def test_to_and_astype_keep_the_parameter(self):
        model = Sequential([Dense(2, input_size=3)])
        kernel = model[0].kernel
        before = kernel.numpy().copy()
        assert model.to("strict").astype("float64") is model
        assert model[0].kernel is kernel and kernel.device == "strict"
        assert kernel.dtype == model.dtype == np.float64
        np.testing.assert_array_equal(model.to("cpu")[0].kernel.numpy(), before)

    def test_a_moved_model_trains(self):
        model = Sequential([Dense(2, input_size=3)]).astype("float64")
        md.sum(model(batch(2, 3).astype("float64"))).backward()
        assert model[0].kernel.grad.dtype == np.float64

    def test_backward_through_a_moved_parameter_raises(self):
        model = Dense(2, input_size=3)
        x = md.tensor(np.ones((2, 3), np.float32), requires_grad=True)
        loss = md.sum(model(x))
        model.astype("float64")
        with pytest.raises(md.errors.GradientError, match="changed in place"):
            loss.backward()

    def test_float_parameters_only(self):
        layer = Counter().astype("float64")
        assert layer.calls.dtype == np.int64


class TestState:
    def test_round_trip(self):
        one, other = Model(), Model()
        x = batch(4, 5)
        one(x)
        other(x)
        assert other.load_state_dict(one.state_dict()) == ([], [])
        np.testing.assert_array_equal(one(x).numpy(), other(x).numpy())

    def test_a_copy(self):
        model = Dense(2, input_size=3)
        state = model.state_dict()
        state["kernel"][...] = 7
        assert not (model.kernel.numpy() == 7).any()

    def test_one_name_for_two_parameters_is_refused(self):
        model = Layer()
        model.parts = {"a.b": Dense(1, input_size=1), "a": {"b": Dense(2, input_size=1)}}
        with pytest.raises(SerializationError, match=r"parts\.a\.b\.bias, parts\.a\.b\.kernel"):
            model.state_dict()

    def test_what_does_not_fit_is_named_and_changes_nothing(self):
        model = Dense(2, input_size=3)
        before = model.state_dict()
        state = {"kernel": np.ones((3, 2)), "other": np.ones(2)}
        with pytest.raises(SerializationError, match="missing: bias; unexpected: other"):
            model.load_state_dict(state)
        wrong = {"kernel": np.ones((2, 3)), "bias": np.ones(2)}
        for strict in (True, False):
            with pytest.raises(
                SerializationError, match=r"kernel: expected \(3, 2\), got \(2, 3\)"
            ):
                model.load_state_dict(wrong, strict)
        for name, value in model.state_dict().items():
            np.testing.assert_array_equal(value, before[name])
        assert model.load_state_dict(state, strict=False) == (["bias"], ["other"])
        assert (model.kernel.numpy() == 1).all()

    def test_loading_counts_a_version(self):
        model = Dense(1, input_size=2)
        x = md.tensor(np.ones((1, 2), np.float32), requires_grad=True)
        loss = md.sum(model(x))
        model.load_state_dict(model.state_dict())
        with pytest.raises(md.errors.GradientError, match="changed in place"):
            loss.backward()


class TestLooking:
    def test_summary(self):
        model = Sequential([layers.Embedding(10, 4), Dense(3), Dropout(0.5)])
        assert "not built yet: 1" in model.summary()
        model(np.zeros((2, 6), np.int64))
        lines = model.summary().splitlines()
        assert lines[3].split() == ["0", "(Embedding)", "(batch,", "6,", "4)", "40"]
        assert lines[4].split() == ["1", "(Dense)", "(batch,", "6,", "3)", "15"]
        assert lines[-1] == "55 parameters, 55 of them trainable"

    def test_repr(self):
        model = Sequential([Dense(3, activation="relu"), Sequential([Dropout(0.5)])])
        assert repr(model) == (
            "Sequential(\n  (0): Dense(units=3, activation='relu')\n  (1): Sequential(\n"
            "    (0): Dropout(rate=0.5)\n  )\n)"
        )
        assert repr(Dense(2, activation=md.tanh)) == "Dense(units=2, activation='tanh')"


def test_an_attribute_that_hides_a_method():
    class Listed(Layer):
        def __init__(self):
            self.losses = {"a": None}

        def call(self, x):
            return x

    with pytest.raises(TypeError, match=r"Listed: attribute 'losses' hides the method losses\(\)"):
        Listed()(np.zeros(2))


def test_a_tensor_that_requires_a_gradient_is_no_parameter():
    layer = md.layers.Dense(1, input_size=1)
    layer.scale = md.tensor([1.0], requires_grad=True)
    with pytest.raises(TypeError, match="scale: a layer trains Parameters"):
        layer.parameters()
