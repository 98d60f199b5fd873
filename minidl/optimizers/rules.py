"""The optimisers: what each makes of a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from minidl.backend import Array
from minidl.graph import Parameter
from minidl.layers.layer import Layer
from minidl.optimizers.optimizer import Optimizer


class SGD(Optimizer):
    """p -= rate * g; with momentum v = momentum * v + g and p -= rate * v, with `nesterov`
    p -= rate * (g + momentum * v) (Sutskever et al. 2013, in PyTorch's form)."""

    def __init__(
        self,
        parameters: Layer | Iterable[Parameter],
        learning_rate: float | Callable[[int], float] = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        **options: Any,
    ) -> None:
        self.momentum = momentum
        self.nesterov = nesterov
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov: needs momentum; give momentum=0.9")
        self.slots = ("velocity",) if momentum else ()
        super().__init__(parameters, learning_rate, **options)

    def update(self, xp, p, g, state, work, rate, count):  # type: ignore[no-untyped-def]
        step = work[0]
        if not self.momentum:
            xp.multiply(g, rate, out=step)
        else:
            velocity = state[0]
            velocity *= self.momentum
            velocity += g
            if self.nesterov:
                xp.multiply(velocity, self.momentum, out=step)
                step += g
                step *= rate
            else:
                xp.multiply(velocity, rate, out=step)
        p -= step


class Adam(Optimizer):
    """p -= rate * m / (sqrt(v) + epsilon), m and v the bias-corrected moving averages of g and g^2
    (Kingma and Ba 2015, algorithm 1).

    amsgrad: the largest v so far instead of v (Reddi et al. 2018, algorithm 2).

    The slots hold sum(beta^k g) and sum(beta^k g^2): the factors (1 - beta) and the correction of
    the bias are folded into two scalars.
    """

    slots: tuple[str, ...] = ("momentum", "velocity")

    def __init__(
        self,
        parameters: Layer | Iterable[Parameter],
        learning_rate: float | Callable[[int], float] = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        _check_shares(type(self).__name__, beta_1=beta_1, beta_2=beta_2)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        if amsgrad:
            self.slots = (*self.slots, "largest")
        super().__init__(parameters, learning_rate, **options)

    def update(self, xp, p, g, state, work, rate, count):  # type: ignore[no-untyped-def]
        step, root = work[0], math.sqrt((1 - self.beta_2) / (1 - self.beta_2**count))
        momentum, velocity = self._averages(xp, g, state, step)
        xp.sqrt(velocity, out=step)
        step += self.epsilon / root
        xp.divide(momentum, step, out=step)
        step *= rate * (1 - self.beta_1) / (1 - self.beta_1**count) / root
        p -= step

    def _averages(self, xp, g, state, step):  # type: ignore[no-untyped-def]
        """Take `g` into both sums; returns that of g, and that of g^2 or the largest so far."""
        momentum, velocity, *largest = state
        momentum *= self.beta_1
        momentum += g
        velocity *= self.beta_2
        velocity += xp.square(g, out=step, dtype=step.dtype)
        return momentum, xp.maximum(largest[0], velocity, out=largest[0]) if largest else velocity


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2): see Optimizer."""

    def __init__(
        self,
        parameters: Layer | Iterable[Parameter],
        learning_rate: float | Callable[[int], float] = 1e-3,
        weight_decay: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(parameters, learning_rate, weight_decay=weight_decay, **options)


class RAdam(Adam):
    """Adam that follows m alone until enough steps have shown the variance of g, and from then on
    scales its steps by how well it is known (Liu et al. 2020, algorithm 2; epsilon as in PyTorch,
    beside the square root of v before its bias is corrected)."""

    def update(self, xp, p, g, state, work, rate, count):  # type: ignore[no-untyped-def]
        step, decay = work[0], self.beta_2**count
        momentum, velocity = self._averages(xp, g, state, step)
        factor = rate * (1 - self.beta_1) / (1 - self.beta_1**count)
        limit = 2 / (1 - self.beta_2) - 1
        length = limit - 2 * count * decay / (1 - decay)
        if length <= 5:
            xp.multiply(momentum, factor, out=step)
        else:
            known = (length - 4) * (length - 2) * limit / ((limit - 4) * (limit - 2) * length)
            root = math.sqrt(1 - self.beta_2)
            xp.sqrt(velocity, out=step)
            step += self.epsilon / root
            xp.divide(momentum, step, out=step)
            step *= factor * math.sqrt(known * (1 - decay)) / root
        p -= step


class Adamax(Optimizer):
    """p -= rate * m / u, m the bias-corrected average of g, u = max(beta_2 u, abs(g) + epsilon)
    (Kingma and Ba 2015, algorithm 2)."""

    slots = ("momentum", "norm")

    def __init__(
        self,
        parameters: Layer | Iterable[Parameter],
        learning_rate: float | Callable[[int], float] = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **options: Any,
    ) -> None:
        _check_shares("Adamax", beta_1=beta_1, beta_2=beta_2)
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        super().__init__(parameters, learning_rate, **options)

    def update(self, xp, p, g, state, work, rate, count):  # type: ignore[no-untyped-def]
        (momentum, norm), step = state, work[0]
        momentum *= self.beta_1
        momentum += g
        norm *= self.beta_2
        xp.abs(g, out=step)
        step += self.epsilon
        xp.maximum(norm, step, out=norm)
        xp.divide(momentum, norm, out=step)
        step *= rate * (1 - self.beta_1) / (1 - self.beta_1**count)
        p -= step


class RMSProp(Optimizer):
    """p -= rate * g / (sqrt(v) + epsilon), v the moving average of g^2 (Tieleman and Hinton 2012).

    centered: v - m^2, the variance of g, instead of v (Graves 2013). momentum: the quotient is
    gathered, b = momentum * b + g / (...), and p -= rate * b. Epsilon stands as in PyTorch.
    """

    def __init__(
        self,
        parameters: Layer | Iterable[Parameter],
        learning_rate: float | Callable[[int], float] = 1e-3,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
        **options: Any,
    ) -> None:
        _check_shares("RMSProp", rho=rho)
        self.rho, self.momentum, self.epsilon, self.centered = rho, momentum, epsilon, centered
        self.slots = ("velocity",)
        self.slots += ("mean",) if centered else ()
        self.slots += ("step",) if momentum else ()
        super().__init__(parameters, learning_rate, **options)

    def update(self, xp, p, g, state, work, rate, count):  # type: ignore[no-untyped-def]
        own, step = dict(zip(self.slots, state, strict=True)), work[0]
        _average(own["velocity"], xp.square(g, out=step, dtype=step.dtype), self.rho)
        if self.centered:
            _average(own["mean"], xp.multiply(g, 1.0, out=step), self.rho)
            xp.square(own["mean"], out=step)
            xp.subtract(own["velocity"], step, out=step)
            xp.maximum(step, 0.0, out=step)  # rounding may leave less
            xp.sqrt(step, out=step)
        else:
            xp.sqrt(own["velocity"], out=step)
        step += self.epsilon
        xp.divide(g, step, out=step)
        if self.momentum:
            own["step"] *= self.momentum
            own["step"] += step
            xp.multiply(own["step"], rate, out=step)
        else:
            step *= rate
        p -= step


class Adagrad(Optimizer):
    """p -= rate * g / (sqrt(s) + epsilon), s the sum of all g^2 and of `initial_accumulator_value`
    (Duchi et al. 2011; epsilon as in PyTorch)."""

    slots = ("total",)

    def __init__(
        self,
        parameters: Layer | Iterable[Parameter],
        learning_rate: float | Callable[[int], float] = 1e-3,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        **options: Any,
    ) -> None:
        self.initial_accumulator_value, self.epsilon = initial_accumulator_value, epsilon
        super().__init__(parameters, learning_rate, **options)

    def update(self, xp, p, g, state, work, rate, count):  # type: ignore[no-untyped-def]
        (total,), step = state, work[0]
        total += xp.square(g, out=step, dtype=step.dtype)
        xp.add(total, self.initial_accumulator_value, out=step)
        xp.sqrt(step, out=step)
        step += self.epsilon
        xp.divide(g, step, out=step)
        step *= rate
        p -= step


class Adadelta(Optimizer):
    """p -= rate * d, d = sqrt(u + epsilon) / sqrt(v + epsilon) * g, u and v the moving averages of
    d^2 and g^2 (Zeiler 2012, algorithm 1)."""

    slots = ("velocity", "change")
    scratch = 2

    def __init__(
        self,
        parameters: Layer | Iterable[Parameter],
        learning_rate: float | Callable[[int], float] = 1.0,
        rho: float = 0.95,
        epsilon: float = 1e-7,
        **options: Any,
    ) -> None:
        _check_shares("Adadelta", rho=rho)
        self.rho, self.epsilon = rho, epsilon
        super().__init__(parameters, learning_rate, **options)

    def update(self, xp, p, g, state, work, rate, count):  # type: ignore[no-untyped-def]
        (velocity, change), (step, scale) = state, work
        _average(velocity, xp.square(g, out=step, dtype=step.dtype), self.rho)
        xp.add(change, self.epsilon, out=step)
        xp.add(velocity, self.epsilon, out=scale)
        step /= scale
        xp.sqrt(step, out=step)
        step *= g
        _average(change, xp.square(step, out=scale), self.rho)
        step *= rate
        p -= step


def _average(mean: Array, new: Array, share: float) -> None:
    """mean = share * mean + (1 - share) * new, in place; overwrites `new`."""
    mean *= share
    new *= 1 - share
    mean += new


def _check_shares(name: str, **shares: float) -> None:
    for what, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{name}: {what}: expected a number in [0, 1), got {share}")
