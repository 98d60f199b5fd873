"""Losses of two networks that play against each other: a critic, which is to score data higher than
what a generator makes. Scores are arrays of any shape, those of real and of fake items not
necessarily of one; a loss is a mean over all scores, or the sum of the two means.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minidl import autodiff, ops, random
from minidl.backend import device_of, to_device
from minidl.errors import DtypeError, ShapeError
from minidl.functional.losses.checks import as_data, wide
from minidl.graph import Tensor, unwrap
from minidl.samples import Draw, call, samples

# --- Scores ---------------------------------------------------------------------------------------


def wasserstein_critic(real: Any, fake: Any) -> Tensor:
    """mean fake - mean real: minus the lower bound that a critic with slopes up to 1 gives of the
    Wasserstein distance (Arjovsky et al. 2017, eq. 2)."""
    return _mean(fake) - _mean(real)


def wasserstein_generator(fake: Any) -> Tensor:
    """-mean fake. It is the generator's loss beside the hinge as well."""
    return -_mean(fake)


def hinge_critic(real: Any, fake: Any) -> Tensor:
    """mean max(0, 1 - real) + mean max(0, 1 + fake) (Lim and Ye 2017, eq. 7)."""
    return _mean(ops.relu(1 - as_data(real))) + _mean(ops.relu(1 + as_data(fake)))


def logistic_critic(real: Any, fake: Any) -> Tensor:
    """Cross entropy of scores as logits of "real": mean log(1 + exp(-real)) + mean log(1 +
    exp(fake)) (Goodfellow et al. 2014, eq. 1)."""
    return _mean(ops.softplus(-as_data(real))) + _mean(ops.softplus(as_data(fake)))


def logistic_generator(fake: Any) -> Tensor:
    """mean log(1 + exp(-fake)): the form that does not saturate where the critic is sure
    (Goodfellow et al. 2014, section 3)."""
    return _mean(ops.softplus(-as_data(fake)))


def _mean(scores: Any) -> Tensor:
    return ops.mean(wide(as_data(scores)))


# --- Penalties on slopes --------------------------------------------------------------------------


def gradient_penalty(
    critic: Callable[[Tensor], Tensor],
    real: Any,
    fake: Any,
    weights: Any = None,
    one_sided: bool = False,
) -> Tensor:
    """mean (|gradient of critic at x| - 1)^2, with x = w real + (1 - w) fake drawn on the line
    between a real and a fake item (Gulrajani et al. 2017, eq. 3, where it counts 10 times).

    critic: a function of a batch, whose scores depend each on its own item (no batch
    normalisation). real, fake: (batch, ...) of one shape, taken as constants. weights: w, (batch,)
    in [0, 1]; drawn from minidl's generator where None. one_sided: only what is above 1 counts.

    The gradient is recorded: what comes back can be differentiated by the critic's parameters.
    Raises ShapeError for other shapes, DtypeError for integers.
    """
    real = unwrap(as_data(real))
    fake = unwrap(as_data(fake, real))
    if real.ndim < 1 or fake.shape != real.shape:
        raise ShapeError(
            "gradient_penalty: expected real and fake of one shape (batch, ...), got "
            f"{real.shape} and {fake.shape}"
        )
    if real.dtype.kind != "f" or fake.dtype.kind != "f":  # weights of their dtype would all be 0
        raise DtypeError(
            f"gradient_penalty: expected real and fake of floats, got {real.dtype} and "
            f"{fake.dtype}; use .astype('float32')"
        )
    count = real.shape[0]
    if weights is None:
        weights = random.generator().uniform(shape=(count,), dtype=real.dtype)
    weights = to_device(unwrap(as_data(weights, real)), device_of(real)).astype(real.dtype)
    if weights.shape != (count,):
        raise ShapeError(f"gradient_penalty: weights: expected ({count},), got {weights.shape}")
    w = weights.reshape((count,) + (1,) * (real.ndim - 1))
    slopes = wide(_slopes(critic, fake + w * (real - fake)))
    excess = ops.norm(slopes, axis=tuple(range(1, slopes.ndim))) - 1
    return ops.mean(ops.square(ops.relu(excess) if one_sided else excess))


def zero_centered_penalty(critic: Callable[[Tensor], Tensor], x: Any) -> Tensor:
    """mean |gradient of critic at x|^2 (Mescheder et al. 2018, eq. 9 and 10: R1 where x is real, R2
    where it is fake, there times gamma / 2).

    critic: as in gradient_penalty; x: (batch, ...), taken as a constant.
    """
    slopes = wide(_slopes(critic, unwrap(as_data(x))))
    return ops.sum(ops.square(slopes)) / slopes.shape[0]


def _slopes(critic: Callable[[Tensor], Tensor], x: Any) -> Tensor:
    """The gradient of the critic's score of each item, recorded: (batch, ...) -> the same."""
    points = Tensor(x, requires_grad=True, device=device_of(x))
    with autodiff.enable_grad():
        return autodiff.grad(ops.sum(critic(points)), [points], create_graph=True)[0]


@samples(wasserstein_critic)
@samples(hinge_critic)
@samples(logistic_critic)
def _(draw: Draw):
    shapes = [draw.shape(min_side=1) for _ in range(2)]
    return call(*(draw.array(shape, away=(-1.0, 1.0)) for shape in shapes))


@samples(wasserstein_generator)
@samples(logistic_generator)
def _(draw: Draw):
    return call(draw.array(draw.shape(min_side=1)))
