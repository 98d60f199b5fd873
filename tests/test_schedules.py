"""Schedules: their shape, and that a checkpoint can hold them."""

import json
import math
from dataclasses import dataclass

import pytest

from minidl import schedules
from minidl.errors import SerializationError
from minidl.schedules import (
    Constant,
    CosineDecay,
    CosineDecayRestarts,
    ExponentialDecay,
    InverseSquareRoot,
    InverseTimeDecay,
    OneCycle,
    PiecewiseConstantDecay,
    PolynomialDecay,
    Schedule,
    StepDecay,
    WarmUp,
)


def test_constant_and_steps():
    assert [Constant(0.1)(s) for s in (0, 9)] == [0.1, 0.1]
    assert [StepDecay(1.0, 3, 0.5)(s) for s in range(7)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_cosine():
    schedule = CosineDecay(2.0, 10, alpha=0.1)
    assert schedule(0) == 2 and schedule(10) == schedule(99) == pytest.approx(0.2)
    assert schedule(5) == pytest.approx(1.1)
    rates = [schedule(s) for s in range(11)]
    assert rates == sorted(rates, reverse=True)


def test_exponential_and_inverse_time():
    smooth, stairs = ExponentialDecay(1.0, 4, 0.25), ExponentialDecay(1.0, 4, 0.25, staircase=True)
    assert [smooth(s) for s in (0, 2, 4, 8)] == [1, 0.5, 0.25, 0.0625]
    assert [stairs(s) for s in (0, 3, 4, 8)] == [1, 1, 0.25, 0.0625]
    smooth, stairs = InverseTimeDecay(1.0, 4, 2.0), InverseTimeDecay(1.0, 4, 2.0, staircase=True)
    assert [smooth(s) for s in (0, 2, 6)] == [1, 0.5, 0.25]
    assert [stairs(s) for s in (0, 3, 4)] == [1, 1, pytest.approx(1 / 3)]


def test_polynomial():
    line, square = PolynomialDecay(1.0, 4, 0.5), PolynomialDecay(1.0, 4, 0.0, power=2)
    assert [line(s) for s in (0, 2, 4, 9)] == [1, 0.75, 0.5, 0.5]
    assert [square(s) for s in (0, 2, 4)] == [1, 0.25, 0]


def test_piecewise():
    schedule = PiecewiseConstantDecay([2, 5], [1.0, 0.5, 0.1])
    assert [schedule(s) for s in (0, 2, 3, 5, 6, 99)] == [1, 1, 0.5, 0.5, 0.1, 0.1]
    with pytest.raises(ValueError, match="values: expected 2, one more"):
        PiecewiseConstantDecay([1], [1.0])
    with pytest.raises(ValueError, match="in order"):
        PiecewiseConstantDecay([2, 1], [1.0, 2.0, 3.0])


def test_inverse_square_root_is_that_of_the_transformer():
    size, warmup = 512, 40
    schedule = InverseSquareRoot((size * warmup) ** -0.5, warmup)
    for step in (1, 7, 40, 41, 1000):
        theirs = size**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert schedule(step - 1) == pytest.approx(theirs)


def test_restarts():
    schedule = CosineDecayRestarts(1.0, 4, t_mul=2.0, m_mul=0.5, alpha=0.1)
    assert [schedule(s) for s in (0, 4, 12)] == [1, 0.5, 0.25]
    assert schedule(2) == pytest.approx(0.55) and schedule(8) == pytest.approx(0.275)
    assert schedule(3.999) == pytest.approx(0.1, abs=1e-6)
    with pytest.raises(ValueError, match="1 or more, got 4 and"):
        CosineDecayRestarts(1.0, 4, t_mul=0.5)


def test_restarts_are_pytorchs():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3, 2)
    for step in range(25):
        rate = theirs.get_last_lr()[0]
        assert CosineDecayRestarts(1.0, 3)(step) == pytest.approx(rate, abs=1e-12)
        optimizer.step()
        theirs.step()


def test_warm_up():
    schedule = WarmUp(StepDecay(1.0, 5, 0.1), 4)
    assert [schedule(s) for s in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert schedule(8) == 1 and schedule(9) == pytest.approx(0.1)
    assert [WarmUp(2.0, 2, start=0.5)(s) for s in range(3)] == [1, 1.5, 2]


def test_one_cycle_by_hand():
    schedule = OneCycle(1.0, 100)
    assert schedule(0) == pytest.approx(0.04)
    assert schedule(29) == pytest.approx(1.0) and max(map(schedule, range(100))) == schedule(29)
    assert schedule(99) == schedule(500) == pytest.approx(4e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_one_cycle_of_few_steps(steps):
    rates = [OneCycle(1.0, steps)(s) for s in range(steps + 2)]
    assert all(0 < rate <= 1 and math.isfinite(rate) for rate in rates)


def test_one_cycle_is_pytorchs():
    torch = pytest.importorskip("torch")
    p = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=40)
    ours = OneCycle(0.5, 40)
    for step in range(39):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_state_through_json():
    for schedule in (
        WarmUp(CosineDecay(1.0, 10), 3),
        OneCycle(0.1, 7, rise=0.5),
        Constant(1.0),
        PiecewiseConstantDecay([1], [1.0, 0.5]),
        CosineDecayRestarts(1.0, 3),
    ):
        assert schedules.from_state(json.loads(json.dumps(schedule.state_dict()))) == schedule


def test_ones_own():
    @dataclass(frozen=True)
    class Halving(Schedule):
        first: float

        def __call__(self, step):
            return self.first / 2**step

    assert schedules.from_state(Halving(8.0).state_dict())(3) == 1
    with pytest.raises(SerializationError, match="'Unheard' is unknown"):
        schedules.from_state({"kind": "Unheard"})
