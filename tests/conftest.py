"""Options, profiles and fixtures for all tests."""

import importlib
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # one core a worker: BLAS's threads would fight
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest

import minidl as md

hypothesis.settings.register_profile(
    "person", max_examples=6, derandomize=True, database=None, deadline=None
)
hypothesis.settings.register_profile(  # the verdict depends on the commit, not on luck
    "ci", max_examples=150, derandomize=True, database=None, deadline=None
)
hypothesis.settings.register_profile(  # for a search now and then: other examples each time
    "hunt", max_examples=150, deadline=None, print_blob=True
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "person"))


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        default="cpu",
        choices=("cpu", "strict", "gpu"),
        help="where tests with the `device` fixture keep their arrays",
    )


def pytest_configure():
    """With MINIDL_ORACLE set, as in CI, comparisons with PyTorch may not be skipped."""
    if os.environ.get("MINIDL_ORACLE"):
        for oracle in ("torch", "torchcrf"):
            importlib.import_module(oracle)


@pytest.fixture(scope="session")
def device(request):
    """The device of --device; move arrays there with md.backend.to_device(array, device)."""
    name = request.config.getoption("--device")
    try:
        md.backend.to_device(np.zeros(1), name)
    except md.errors.DeviceError as error:
        pytest.skip(str(error))
    return name


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Every test starts from the same random state, whichever tests ran before."""
    ours, numpys = md.random.generator().state(), np.random.get_state()
    md.seed(0)
    np.random.seed(0)
    yield
    md.random.generator().set_state(ours)
    np.random.set_state(numpys)
