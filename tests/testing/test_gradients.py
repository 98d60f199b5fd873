"""check_gradients on functions, layers and closures: what it takes, reports and leaves alone."""

import doctest

import numpy as np
import pytest

import minidl as md
from minidl import autodiff, layers, ops
from minidl.testing import GradientCheckError, check_call, check_constant, check_gradients
from minidl.testing import gradients as module
from minidl.testing.problem import make_problem, same_layout

X = np.array([[0.4, -0.7, 1.1], [1.6, -1.3, 0.2]])


def test_examples():
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


class TestInputs:
    def test_arrays_tensors_lists_and_floats(self):
        report = check_gradients(
            lambda a, b, c, d: a * b + c[0] * c[1] + d[0],
            X, md.tensor(X.astype(np.float32)), [X[0], X[1]], [1.0, 2.0, 3.0],
        )  # fmt: skip
        assert report.arguments == ("a", "b", "c[0]", "c[1]", "d")

    def test_a_float_is_differentiated_and_an_integer_is_not(self):
        assert check_gradients(lambda x, n: x**n, 1.5, 3).arguments == ("x",)

    def test_integer_arrays_are_constants(self):
        report = check_gradients(lambda x, i: x[i] * x[i], X[0], np.array([0, 0, 2]))
        assert report.arguments == ("x",)

    def test_python_numbers_of_a_drawn_call_are_constants(self):
        assert check_call(md.clip, autodiff.call(X, -1.0, 1.0)).arguments == ("x",)

    def test_several_outputs(self):
        check_gradients(lambda x: {"a": md.sin(x), "b": [x * x, (x.argmax(), x.sum())]}, X)

    def test_an_array_for_an_output_is_refused(self):
        with pytest.raises(TypeError, match="returned ndarray, expected a Tensor"):
            check_gradients(lambda x: np.sin(x.numpy()), X)

    def test_infinite_outputs_with_gradient_zero(self):
        check_gradients(lambda x: md.logsumexp(x, axis=1), np.array([[-np.inf, -np.inf], [0, 1.0]]))

    def test_large_arrays_are_sampled(self):
        check_gradients(lambda x: md.tanh(x), np.random.default_rng(0).normal(size=(200, 50)))


class TestOrders:
    def test_the_third(self):
        report = check_gradients(lambda x: x**4 * md.sin(x), X, order=3, directions=1)
        assert report.comparisons == 3

    def test_the_first_alone(self):
        assert check_gradients(lambda x: x**4, X, order=1, directions=3).comparisons == 3

    def test_a_function_right_at_first_order_only(self):
        half = md.primitive(lambda x: x * x * x)
        half.defvjp(x=lambda g, x: g * 3.0 * ops.square(md.stop_gradient(x)))
        check_gradients(half, X, order=1)
        with pytest.raises(GradientCheckError) as caught:
            check_gradients(half, X)
        assert caught.value.stage == "gradient of the gradient"
        assert caught.value.cause.startswith("the gradient is zero: a dependence was dropped")


class TestReports:
    def test_of_a_failure(self):
        wrong = md.primitive(lambda x: x * x)
        wrong.__name__ = "wrong"
        wrong.defvjp(x=lambda g, x: g * x * np.array([2.0, 2.0, -2.0]))
        with pytest.raises(GradientCheckError, match=r"x\[0, 2\].*likely cause") as caught:
            check_gradients(wrong, np.array([[0.1, 0.2, 3.0], [1.0, 1.0, 0.5]]))
        error = caught.value
        assert (error.stage, error.op, error.argument, error.index) == (
            "gradient", "wrong", "x", (0, 2),
        )  # fmt: skip
        assert error.analytic == pytest.approx(-error.numeric)

    def test_of_kinks(self):
        report = check_gradients(lambda x: md.relu(x), np.array([0.0, 2.0, -1.0]))
        assert len(report.kinks) == 1 and report.kinks[0].startswith("x[0]: slopes")
        assert "kink: x[0]" in str(report)

    def test_a_gradient_outside_a_kink_is_wrong(self):
        wrong = md.primitive(lambda x: np.abs(x))
        wrong.defvjp(x=lambda g, x: g * (1.5 * ops.astype(x >= 0, "float64") - 0.5))
        with pytest.raises(GradientCheckError):
            check_gradients(wrong, np.array([0.0]))

    def test_equal_entries_share_a_maximum(self):
        report = check_gradients(lambda x: md.max(x), np.array([1.0, 2.0, 2.0]))
        assert len(report.kinks) == 2


class Centre(layers.Layer):
    """Subtracts the mean of what it saw, which it counts and keeps."""

    def build(self, input_shape):
        self.scale = self.add_weight((input_shape[-1],), "ones")
        self.add_buffer("mean", np.zeros(input_shape[-1], np.float32))
        self.updates = 0

    def call(self, x):
        if self.training and not autodiff.replaying():
            self.mean, self.updates = 0.5 * self.mean + 0.5 * x.detach().mean(0), self.updates + 1
        self.add_loss(md.sum(self.scale))
        return (x - self.mean) * self.scale * self.scale


class TestLayers:
    def test_parameters_are_found_and_left_as_they_were(self):
        model = layers.Sequential([layers.Dense(4, activation="tanh"), layers.Dense(2)])
        report = check_gradients(model, X)
        assert [name.split(".", 1)[-1] for name in report.arguments[1:]] == ["kernel", "bias"] * 2
        for p in model.parameters():
            assert p.dtype == np.float32 and p.grad is None and p.requires_grad
        md.sum(model(md.tensor(X, dtype="float32"))).backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_buffers_losses_and_random_state_are_left_alone(self):
        model = layers.Sequential([Centre(), layers.Dropout(0.5)])
        model.train()(md.tensor(X, dtype="float32"))
        model.losses()
        state, mean = md.random.generator().state(), model.layers[0].mean.numpy().copy()
        check_gradients(model, X)
        assert md.random.generator().state() == state
        assert model.layers[0].updates == 1
        np.testing.assert_array_equal(model.layers[0].mean.numpy(), mean)
        assert model.losses() == []

    def test_a_parameter_in_a_rule_is_differentiated_twice(self):
        """A rule that takes the parameter for a constant is wrong from the second order on."""
        product = md.primitive(lambda x, y: x * y)
        product.defvjp(x=lambda g, y: g * md.stop_gradient(y), y=lambda g, x: g * x)
        kernel = md.Parameter(X)
        with pytest.raises(GradientCheckError) as caught:
            check_gradients(lambda x: product(x, kernel), X, parameters=[kernel])
        assert caught.value.stage == "gradient of the gradient"

    def test_parameters_of_a_closure(self):
        layer = layers.Dense(3, input_size=3)
        report = check_gradients(lambda x: md.sum(layer(x) ** 2), X, parameters=layer)
        assert report.arguments == ("x", "kernel", "bias")
        scale = md.Parameter(2.0, name="scale")
        assert check_gradients(lambda x: x * scale, X, parameters=[scale]).arguments[1] == "scale"

    def test_a_frozen_layer_has_no_parameters_to_check(self):
        layer = layers.Dense(3, input_size=3)
        layer.trainable = False
        assert check_gradients(layer, X, dtypes=False).arguments == ("inputs[0]",)


class TestCare:
    def test_inputs_are_not_written_to(self):
        x = X.copy()
        check_gradients(lambda x: x * x, x)
        np.testing.assert_array_equal(x, X)

    @pytest.mark.parametrize(
        "array",
        [
            X,
            X.T,
            X[::-1],
            X[:, ::2],
            X[::-1, ::-2],
            np.broadcast_to(X[0], (2, 3)),
            X[:0],
            X[0, 0:1],
        ],
    )
    def test_layouts_are_kept(self, array):
        copy = same_layout(array, np.float32)
        np.testing.assert_array_equal(copy, array.astype(np.float32))
        assert not np.shares_memory(copy, array) and copy.flags.writeable
        if 0 not in array.strides and array.size > 1:
            assert [2 * s for s in copy.strides] == list(array.strides)

    def test_the_point_has_the_layout_of_the_input(self):
        problem = make_problem(md.tanh, (X.T,), {})
        with problem.at(problem.point) as (leaves, _):
            assert leaves[0]._data.strides == X.T.strides

    def test_elsewhere(self, device):
        check_gradients(lambda x: md.tanh(x @ x.T), X, device=device)

    def test_a_tensor_decides_the_device(self):
        seen = []
        check_gradients(lambda x: seen.append(x.device) or x * x, md.tensor(X, device="strict"))
        assert set(seen) == {"strict"}


def test_a_constant_op_must_be_one():
    check_constant(md.argmax, autodiff.call(X, axis=1))
    with pytest.raises(GradientCheckError, match="differentiable=False"):
        check_constant(md.tanh, autodiff.call(X))
    with pytest.raises(GradientCheckError, match="shares memory"):
        check_constant(lambda x: x.detach(), autodiff.call(X))


class TestFunctionsThatDifferentiate:
    """Gradient penalties: `md.grad` inside of f, though the checker also evaluates unrecorded."""

    @staticmethod
    def penalty(x, w):
        (g,) = md.grad(md.tanh(x @ w).sum(), [x], create_graph=True)
        return ((md.norm(g, axis=-1) - 1) ** 2).mean()

    def test_a_gradient_penalty(self):
        assert check_gradients(self.penalty, X, X.T.copy()).comparisons > 0

    def test_in_a_recomputed_part(self):
        check_gradients(lambda x, w: md.recompute(self.penalty, x, w), X, X.T.copy())

    def test_in_a_layer(self):
        class Penalty(layers.Layer):
            def __init__(self):
                super().__init__()
                self.dense = layers.Dense(2)

            def call(self, x):
                (g,) = md.grad(md.tanh(self.dense(x)).sum(), [x], create_graph=True)
                return (g * g).sum()

        check_gradients(Penalty(), X)

    def test_a_wrong_one_is_caught(self):
        def detached(x):
            (g,) = md.grad((x * x * x).sum(), [x])
            return (g * x).sum()

        with pytest.raises(GradientCheckError):
            check_gradients(detached, X)


@pytest.mark.parametrize(
    "f", [lambda x: x.tanh() + 1, lambda x: md.stack([x.tanh(), x]).sum(), lambda x: md.tanh(x) + 1]
)
def test_the_op_to_blame_is_found_behind_a_method(f):
    rule = md.tanh.rules["x"].function
    try:
        md.tanh.defvjp(x=lambda g, out: g * out)
        with pytest.raises(GradientCheckError) as caught:
            check_gradients(f, X)
    finally:
        md.tanh.defvjp(x=rule)
    assert caught.value.op == "tanh"


@pytest.mark.parametrize("distance", [10.0**-k for k in range(2, 13)] + [3e-5, 3e-6, 3e-7, 3e-8])
@pytest.mark.parametrize("f", [md.relu, md.abs])
def test_a_kink_at_any_distance_is_no_error(f, distance):
    for point in (distance, -distance):
        check_gradients(f, np.array([point, 1.0]))


def test_a_layer_of_many_relus_at_random():
    for seed in range(15):
        draw = np.random.default_rng(seed)
        x, w = draw.normal(size=(32, 5)), draw.normal(size=(5, 16))
        check_gradients(lambda x, w: md.relu(x @ w), x, w, order=1)


def test_nothing_to_differentiate_by():
    with pytest.raises(TypeError, match="integers are constants"):
        check_gradients(md.exp, np.array([1, 2]))
    with pytest.raises(TypeError, match="nothing to differentiate by"):
        check_gradients(lambda: md.tensor(1.0))
