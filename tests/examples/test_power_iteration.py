"""The picture of power iteration's convergence."""

import numpy as np
import pytest

from examples import pictures
from examples.pictures import power_iteration


def test_distances_fall_and_end_at_the_decomposition():
    rng = np.random.default_rng(0)
    of_matrix = power_iteration.of_matrix(rng.normal(size=(12, 8)), (1, 5, 200))
    of_convolution = power_iteration.of_convolution(
        rng.normal(1, 1, (3, 3, 1, 2)), (4, 4, 1), (1, 5, 40)
    )
    for found in (of_matrix, of_convolution):
        assert 1 > found[0] > found[1] > 0 and not found[2] > 1e-5


@pytest.mark.skipif(not pictures.available(), reason="matplotlib is not installed")
def test_drawing(tmp_path, monkeypatch):
    numbers = np.geomspace(1, 1e-6, len(power_iteration.STEPS))
    monkeypatch.setattr(power_iteration, "lines", lambda: {"one": list(numbers)})
    power_iteration.main(str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").stat().st_size > 5000
