"""Seeded draws, their state, and the device's stream."""

import json

import numpy as np

import minidl as md
from minidl import backend, random


def test_seed_repeats_and_state_goes_through_json():
    md.seed(3)
    first = random.generator().normal((4,))
    state = json.loads(json.dumps(random.generator().state()))
    second = random.generator().uniform(-1, 1, (3,))
    random.generator().set_state(state)
    np.testing.assert_array_equal(random.generator().uniform(-1, 1, (3,)), second)
    md.seed(3)
    np.testing.assert_array_equal(random.generator().normal((4,)), first)


def test_every_dtype_sees_the_same_numbers():
    a = random.Generator(1).normal((5,), "float64")
    b = random.Generator(1).normal((5,))
    assert b.dtype == np.float32
    np.testing.assert_array_equal(a.astype("float32"), b)


def test_replay_leaves_no_trace():
    generator = random.generator()
    state = generator.state()
    first = generator.normal((2,))
    after = generator.state()
    with random.replay(state):
        np.testing.assert_array_equal(generator.normal((2,)), first)
    assert generator.state() == after


def test_bernoulli_on_each_device():
    for device in ("cpu", "strict"):
        generator = random.Generator(0)
        keep = backend.to_host(generator.bernoulli(0.8, (100, 1000), device))
        assert keep.dtype == bool and abs(keep.mean() - 0.8) < 0.005
        assert abs(keep.mean(axis=0).std() - np.sqrt(0.16 / 100)) < 0.005
        again = backend.to_host(generator.bernoulli(0.8, (100, 1000), device))
        assert 0.3 < (keep != again).mean() < 0.34  # independent: 2 * 0.8 * 0.2
        assert backend.to_host(generator.bernoulli(1.0, (1000,), device)).all()
        assert not backend.to_host(generator.bernoulli(0.0, (1000,), device)).any()


def test_draw_on_host_gives_every_device_the_same_mask():
    with random.draw_on_host():
        masks = [
            backend.to_host(random.Generator(5).bernoulli(0.5, (50,), device))
            for device in ("cpu", "strict")
        ]
    np.testing.assert_array_equal(*masks)


def test_spawn_gives_independent_generators():
    generator = random.Generator(0)
    a, b = generator.spawn(), generator.spawn()
    assert not np.array_equal(a.normal((5,)), b.normal((5,)))
    assert sorted(generator.permutation(5).tolist()) == [0, 1, 2, 3, 4]
    assert set(generator.integers(0, 2, (50,)).tolist()) == {0, 1}
