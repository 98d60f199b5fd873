"""Reports: a line a layer, rules of one's own, and layers that have none."""

import math

import numpy as np
import pytest

import minidl as md
from minidl import layers
from minidl.lipschitz import Bound, Report, register, upper_bound


def network():
    inner = layers.Sequential([layers.Dense(4, "relu"), layers.Dropout(0.5)])
    return layers.Sequential([layers.Flatten(), inner, layers.Dense(3, "sigmoid")])


def test_a_line_for_each_layer_and_their_product():
    model = network()
    report = upper_bound(model, (2, 3))
    assert [line.name for line in report.layers] == ["0", "1.0", "1.1", "2"]
    assert [line.kind for line in report.layers] == ["Flatten", "Dense", "Dropout", "Dense"]
    norms = [np.linalg.norm(model[i].kernel.numpy(), 2) for i in (2,)]
    norms.append(np.linalg.norm(model[1][0].kernel.numpy(), 2))
    assert np.allclose(report.constants, [1, norms[1], 1, norms[0] / 4], rtol=1e-5)
    assert (
        math.isclose(report.product, math.prod(report.constants))
        and float(report) == report.product
    )


def test_it_leaves_no_losses_behind():
    model = layers.Sequential([layers.Dense(3, activity_regularizer="l2"), layers.Dense(2)])
    upper_bound(model, (4,))
    assert not model.losses()


def test_the_table():
    first, *_, last = (table := str(upper_bound(network(), (2, 3)))).splitlines()
    assert first.split() == ["layer", "constant", "why"]
    assert "2 (Dense)" in table and "exact, by SVD; sigmoid 0.25" in table
    assert last.startswith("all of them") and last.endswith("the product")
    assert str(upper_bound(layers.Flatten(), (2,))).splitlines()[1].startswith("Flatten ")


def test_shapes_go_through():
    model = layers.Sequential(
        [layers.Conv1D(4, 3), layers.MaxPooling1D(2), layers.Flatten(), layers.Dense(2)]
    )
    assert len(upper_bound(model, (8, 1)).layers) == 4
    assert model[3].kernel.shape == (12, 2)  # built by the way


def test_a_layer_that_stops_everything():
    model = layers.Sequential(
        [layers.Dense(2, kernel_initializer="zeros"), layers.Activation("exp")]
    )
    assert upper_bound(model, (3,)).product == 0
    assert upper_bound(layers.Dense(2, "exp", kernel_initializer="zeros"), (3,)).product == 0


def test_only_what_the_input_goes_through_counts():
    class Model(layers.Sequential):
        pass

    model = Model([layers.Dense(2, kernel_initializer=np.eye(2))])
    model.other = layers.Dense(2, kernel_initializer="zeros", input_size=2)
    assert math.isclose(upper_bound(model, (2,)).product, 1, rel_tol=1e-9)


class Residual(layers.Layer):
    """x + f(x)."""

    def __init__(self, f):
        self.f = f

    def call(self, x):
        return x + self.f(x)


def test_rules_of_ones_own():
    with pytest.raises(
        TypeError, match=r"Residual has no rule; .*@md.lipschitz.register\(Residual\)"
    ):
        upper_bound(Residual(layers.ReLU()), (3,))

    @register(Residual)
    def _(layer, input_shape):
        return 1 + upper_bound(layer.f, input_shape).product

    block = Residual(layers.Dense(3, "relu", kernel_initializer=np.diag([1.0, 0.5, 0.0])))
    report = upper_bound(layers.Sequential([block, layers.LeakyReLU()]), (3,))
    assert np.allclose(report.constants, [2, 1])
    assert report.layers[0].why == "registered"

    class Named(Residual):
        pass

    @register(Named)
    def _(layer, input_shape):
        return Report(
            (*upper_bound(layer.f, input_shape).layers, md.lipschitz.Line("x", "+", 2, "twice"))
        )

    report = upper_bound(layers.Sequential([Named(network())]), (3,))
    assert [line.name for line in report.layers] == ["0.0", "0.1.0", "0.1.1", "0.2", "0.x"]

    @register(Named)
    def _(layer, input_shape):
        return Bound(math.nan, "?")

    with pytest.raises(
        ValueError, match="Named: expected a rule that returns a number >= 0, got nan"
    ):
        upper_bound(Named(network()), (3,))


def test_a_subclass_with_a_call_of_its_own_needs_a_rule():
    class Twice(layers.Dense):
        def call(self, x):
            return 2 * super().call(x)

    class Kept(layers.Dense):
        pass

    with pytest.raises(TypeError, match=r"Twice, other than Dense, has a call\(\) of its own"):
        upper_bound(Twice(2), (3,))
    assert upper_bound(Kept(2), (3,)).product > 0


def test_where_the_layer_without_a_rule_stands():
    model = layers.Sequential([layers.Dense(3), layers.Sequential([layers.LSTM(3)])])
    with pytest.raises(TypeError, match="LSTM has no rule") as error:
        upper_bound(model, (4, 3))
    assert error.value.__notes__ == [
        "in layer 0 (LSTM) of Sequential",
        "in layer 1 (Sequential) of Sequential",
    ]
