"""Noise while training only. All of it comes from minidl's generator, so a resumed run draws what
the uninterrupted one would have drawn."""

from __future__ import annotations

import math
from typing import Any

from minidl import ops, random
from minidl.backend import Array, device_of, to_device
from minidl.graph import unwrap, wrap
from minidl.layers.dropout import Dropout
from minidl.layers.layer import Layer
from minidl.ops.activations import SELU_ALPHA, SELU_SCALE


class SpatialDropout1D(Dropout):
    """Dropout of whole channels of (batch, time, channels) (Tompson et al. 2015)."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate, (None, 1, None))


class SpatialDropout2D(Dropout):
    """Dropout of whole channels of (batch, height, width, channels) (Tompson et al. 2015)."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate, (None, 1, 1, None))


class GaussianNoise(Layer):
    """While training, x + normal noise of standard deviation `stddev`."""

    def __init__(self, stddev: float) -> None:
        if not stddev >= 0:
            raise ValueError(f"GaussianNoise: stddev: expected a number >= 0, got {stddev}")
        self.stddev = stddev

    def call(self, x: Any) -> Any:
        if not self.training or self.stddev == 0:
            return x
        return x + wrap(_normal(x, self.stddev), None, None)


class GaussianDropout(Layer):
    """While training, x times normal noise about 1 with the variance that Dropout's noise has,
    rate / (1 - rate) (Srivastava et al. 2014, section 10)."""

    def __init__(self, rate: float) -> None:
        Dropout(rate)  # refuses what is not a rate
        self.rate = rate

    def call(self, x: Any) -> Any:
        if not self.training or self.rate == 0:
            return x
        noise = _normal(x, math.sqrt(self.rate / (1 - self.rate)))
        noise += 1
        return x * wrap(noise, None, None)


class AlphaDropout(Layer):
    """Dropout to selu's lower limit instead of 0, shifted and scaled so that mean 0 and variance 1
    stay what they are (Klambauer et al. 2017)."""

    def __init__(self, rate: float) -> None:
        Dropout(rate)
        self.rate = rate

    def call(self, x: Any) -> Any:
        if not self.training or self.rate == 0:
            return x
        kept = random.generator().bernoulli(1 - self.rate, x.shape, device_of(unwrap(x)))
        low, rate = -SELU_SCALE * SELU_ALPHA, self.rate
        scale = ((1 - rate) * (1 + rate * low * low)) ** -0.5
        return ops.where(wrap(kept, None, None), x, low) * scale - scale * low * rate


def _normal(x: Any, stddev: float) -> Array:
    """Normal numbers of x's shape, dtype (if of floats) and device, drawn on the host."""
    dtype = x.dtype if x.dtype.kind == "f" else None  # None: the default one
    noise = random.generator().normal(x.shape, dtype)
    noise *= stddev
    return to_device(noise, device_of(unwrap(x)))
