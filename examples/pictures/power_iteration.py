"""How power iteration approaches the largest singular value:
`python -m examples.pictures.power_iteration PATH`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import minidl as md
from examples.pictures.plots import curves
from minidl.functional import spectral

STEPS = 1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200, 300, 500


def distances(
    step: Callable[[Any, int], tuple[Any, Any]], start: Any, exact: float, steps: tuple[int, ...]
) -> list[float]:
    """(exact - sigma) / exact after each of `steps`, nan below 1e-9; step(u, n) gives sigma and u
    after n more."""
    found, u, done = [], start, 0
    for n in steps:
        sigma, u = step(u, n - done)
        done = n
        distance = (exact - float(np.max(sigma))) / exact
        found.append(distance if distance > 1e-9 else np.nan)
    return found


def of_matrix(w: np.ndarray, steps: tuple[int, ...] = STEPS) -> list[float]:
    """Of a matrix, against its decomposition."""
    exact = float(spectral.spectral_norm(w))
    start = spectral.starting_vector(w.shape[:1], w)[0]
    return distances(lambda u, n: spectral.power_iteration(w, u, n)[:2], start, exact, steps)


def of_convolution(
    kernel: np.ndarray, shape: tuple[int, ...], steps: tuple[int, ...] = STEPS
) -> list[float]:
    """Of a convolution with padding "same", against the decomposition of its dense matrix."""
    f = spectral.convolution(kernel, padding="same")
    basis = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    exact = float(spectral.spectral_norm(f(basis).reshape(len(basis), -1)))

    def step(u: Any, n: int) -> tuple[Any, Any]:
        sigma, u, _ = spectral.operator_power_iteration(f, u, n)
        return sigma.numpy(), u

    return distances(step, spectral.starting_vector(shape, kernel), exact, steps)


def lines() -> dict[str, list[float]]:
    """What the picture shows, in float64."""
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(784, 512))
    u, s, vh = np.linalg.svd(dense, full_matrices=False)
    s[0] = 1.5 * s[1]
    kernel = rng.normal(size=(3, 3, 8, 8))
    return {
        "dense, random": of_matrix(dense),
        "dense, largest 1.5 x second": of_matrix(u * s @ vh),
        "kernel, reshaped": of_matrix(spectral.as_matrix(kernel)),
        "its convolution": of_convolution(kernel, (10, 10, 8)),
    }


def main(path: str) -> None:
    """Draw the picture."""
    curves(
        path, "Power iteration: how far sigma is below the largest singular value", STEPS, lines(),
        "iterations", "(exact - sigma) / exact", logarithmic="xy",
    )  # fmt: skip


if __name__ == "__main__":
    with md.threads(1):
        main(sys.argv[1])
