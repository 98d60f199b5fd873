"""Runs of outputs that see the same taps."""

import itertools

import pytest

from minidl.ops.geometry import Axis, Run, meeting, runs_of


def test_runs_leave_out_the_taps_that_meet_padding():
    runs = runs_of(7, 4, 5, Axis(2, 2, 2), 3)
    assert runs == [
        Run(slice(0, 1), slice(2, 5)),
        Run(slice(1, 3), slice(0, 5)),
        Run(slice(3, 4), slice(0, 3)),
    ]


def test_there_is_one_run_where_hardly_anything_is_padding():
    assert runs_of(40, 40, 3, Axis(1, 1, 1), 9) == [Run(slice(0, 40), slice(0, 3))]


def test_there_are_not_more_runs_than_pay():
    assert len(runs_of(1000, 1000, 1000, Axis(1, 999, 0), 1000)) == 1000
    for most in (0, 1, 999):
        runs = runs_of(1000, 1000, 1000, Axis(1, 999, 0), most)
        assert runs == [Run(slice(0, 1000), slice(0, 1000))]


@pytest.mark.parametrize("length", [0, 1, 2, 5, 9])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize(("left", "right"), [(0, 0), (2, 2), (0, 7), (9, 1)])
def test_runs_cover_each_output_once_and_every_tap_it_needs(
    length, size, stride, dilation, left, right
):
    axis = Axis(stride, left, right, dilation)
    steps = axis.steps(length, size)
    runs = runs_of(length, steps, size, axis, 99)
    assert [i for run in runs for i in range(run.outs.start, run.outs.stop)] == list(range(steps))
    for run, tap in itertools.product(runs, range(size)):
        low, high, _ = meeting(tap, steps, length, axis)
        met = range(max(low, run.outs.start), min(high, run.outs.stop))
        assert not met or run.taps.start <= tap < run.taps.stop
