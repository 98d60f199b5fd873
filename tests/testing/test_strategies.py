"""Draws are valid calls, from a seed and from hypothesis alike."""

import doctest

import numpy as np
import pytest
from hypothesis import find, given
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

import minidl as md
from minidl import samples as samples_module
from minidl.samples import FORCES, REGISTRY, Call, Draw, call, samples
from minidl.testing import strategies


def each_draw(count=60):
    for force in (None, *FORCES):
        for seed in range(count):
            yield Draw(seed, force)


@pytest.mark.parametrize("module", [samples_module, strategies], ids=lambda m: m.__name__)
def test_examples(module):
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted >= 3 and result.failed == 0


class TestDraw:
    def test_a_seed_repeats(self):
        one, other = (Draw(5).array((3, 4)) for _ in range(2))
        np.testing.assert_array_equal(one, other)

    def test_shapes_keep_their_limits(self):
        for draw in each_draw():
            shape = draw.shape(1, 2, 1, 3)
            assert 1 <= len(shape) <= 2 and all(1 <= side <= 3 for side in shape)

    def test_forces_reach_their_corner(self):
        for seed in range(30):
            assert Draw(seed, "scalar").shape() == ()
            assert 0 in Draw(seed, "empty").shape()
            assert 1 in Draw(seed, "unit").shape()
            assert 0.0 in Draw(seed, "zeros").array((3, 2))
            tied = Draw(seed, "ties").array((3, 3), ties=True)
            assert len(np.unique(tied)) < tied.size
            assert not Draw(seed, "strided").array((2, 3)).flags.c_contiguous

    def test_an_unknown_force_is_refused(self):
        with pytest.raises(ValueError, match="force: expected one of"):
            Draw(force="sideways")

    def test_shapes_broadcast(self):
        pairs = set()
        for draw in each_draw():
            shapes = draw.broadcast_shapes(2, max_dims=2)
            np.broadcast_shapes(*shapes)
            grown = draw.broadcastable((2, 3))
            assert np.broadcast_shapes(grown, (2, 3)) == (2, 3)
            pairs.add(shapes)
        assert any(a != b for a, b in pairs)

    def test_axes_are_valid(self):
        for draw in each_draw():
            x = np.zeros(draw.shape())
            x.sum(axis=draw.axes(x.ndim))
            x.sum(axis=draw.axis(x.ndim))

    def test_entries_stay_in_the_domain(self):
        for draw in each_draw():
            x = draw.array(draw.shape(), low=-1.0, high=3.0, away=(0.0, 1.0), gap=0.2)
            assert np.all((x >= -1) & (x <= 3))
            assert np.all((np.abs(x) > 0.2 - 1e-12) & (np.abs(x - 1) > 0.2 - 1e-12))

    def test_distinct_entries_are_apart(self):
        for draw in each_draw():
            x = np.sort(draw.array((3, 4), distinct=True).ravel())
            assert np.all(np.diff(x) >= 0.03 - 1e-12)
        with pytest.raises(ValueError, match="distinct: 1000 entries do not fit"):
            Draw().array((10, 100), distinct=True)
        with pytest.raises(ValueError, match="away: nothing of"):
            Draw().array((2,), low=0.9, high=1.1, away=(1.0,))

    def test_integers_masks_and_dtype(self):
        for draw in each_draw(10):
            i = draw.integers((3, 2), -2, 4)
            assert i.dtype == np.int64 and i.min() >= -2 and i.max() <= 4
            assert draw.mask((4,)).dtype == bool
            assert sorted(draw.permutation(4)) == [0, 1, 2, 3]
        assert Draw(dtype=np.float32).array((2,)).dtype == np.float32

    @given(strategies.drawn(lambda draw: draw.array(draw.shape())))
    def test_layouts_keep_the_entries(self, x):
        for kind in range(7):
            draw = Draw(kind)
            np.testing.assert_array_equal(draw.layout(x), x)


class TestSamples:
    def test_a_users_op_can_be_registered_again_but_not_taken_over(self, monkeypatch):
        monkeypatch.setattr(samples_module, "REGISTRY", registry := {})
        cube = md.primitive(lambda x: x**3)
        cube.__name__ = cube.__qualname__ = "cube"
        for side in (2, 3):
            samples(cube)(lambda draw, side=side: call(draw.array((side,))))
        assert registry["cube"].draw_case(Draw()).args[0].shape == (3,)
        with pytest.raises(ValueError, match=r"'tanh' is taken by .*pass name="):
            samples(md.tanh)(None)
            samples(cube, name="tanh")(None)

    def test_a_call_shows_and_maps_its_arrays(self):
        one = call([np.zeros((2, 3)), 1], np.arange(2), slice(1, None), axis=0)
        assert repr(one) == "call([float64[2, 3], 1], int64[2], slice(1, None, None), axis=0)"
        assert one.map(lambda a: a.shape) == Call(([(2, 3), 1], (2,), slice(1, None)), {"axis": 0})


class TestStrategies:
    @given(strategies.broadcastable_shapes(3, min_dims=1))
    def test_broadcastable_shapes(self, shapes):
        np.broadcast_shapes(*shapes)

    @given(strategies.shapes().flatmap(lambda s: st.tuples(st.just(s), strategies.axes(len(s)))))
    def test_axes(self, drawn):
        np.zeros(drawn[0]).sum(axis=drawn[1])

    @given(strategies.indices(3, (2, 2)), strategies.masks((2,)), strategies.integers(None, 1, 4))
    def test_integers_and_masks(self, places, mask, labels):
        np.zeros(3)[places]
        assert mask.shape == (2,) and np.all((labels >= 1) & (labels <= 4))

    @given(strategies.dtypes().flatmap(lambda d: strategies.arrays((2, 3), 0.5, 1.0, dtype=d)))
    def test_arrays_of_a_domain(self, x):
        assert x.dtype in (np.float32, np.float64) and np.all((x >= 0.5) & (x <= 1))

    def test_layouts_are_all_found(self):
        x = np.arange(6.0).reshape(2, 3)
        for wanted in (lambda a: a.flags.f_contiguous, lambda a: a.strides[1] < 0):
            np.testing.assert_array_equal(find(strategies.layouts(x), wanted), x)

    def test_calls_by_function_and_by_name(self):
        for op in (md.multiply, "multiply"):
            small = find(strategies.calls(op), lambda c: c.args[0].size > 1)
            assert small.args[0].shape == (2,)
        with pytest.raises(ValueError, match="nothing has no samples"):
            strategies.calls("nothing")

    def test_forced_calls(self):
        with pytest.raises(NoSuchExample):
            find(strategies.calls("tanh", force="scalar"), lambda c: c.args[0].ndim > 0)

    @pytest.mark.parametrize("name", REGISTRY)
    def test_samples_use_only_the_source_they_are_given(self, name):
        """The same seed gives the same call: nothing comes from elsewhere."""
        one, other = (REGISTRY[name].draw_case(Draw(3)) for _ in range(2))
        assert repr(one) == repr(other)
