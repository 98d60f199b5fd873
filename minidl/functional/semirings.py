"""One recursion over a linear chain, many semirings: the definition of the CRF's sums.

Shapes and meanings as in `minidl.functional.crf`, but a forbidden start, step or end has score -inf
here. The fast kernels of `minidl.ops.crf` share no code with this file, and are tested against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidl import ops
from minidl.backend import namespace
from minidl.graph import Tensor, unwrap, wrap
from minidl.ops.crf import crf_log_partition, crf_path_score

_INF = float("inf")


@dataclass(frozen=True)
class Semiring:
    """What a set of paths weighs. A weight is an array with one axis more than scores, the last.

    lift(scores): the weights of single paths with these scores;
    times(weight, scores): each path of the set extended by a piece of this score;
    plus(weight, axis): the union of the sets along `axis` (counted from the front).
    """

    lift: Callable[[Any], Any]
    times: Callable[[Any, Any], Any]
    plus: Callable[[Any, int], Any]


def _lift(scores: Any) -> Any:
    return scores[..., None]


def _add(weight: Any, scores: Any) -> Any:
    return weight + scores[..., None]


def _with_zeros(scores: Any) -> Any:
    return ops.stack([scores, ops.zeros_like(scores)], -1)


def _plus_entropy(weight: Any, axis: int) -> Any:
    """With q_i the share of set i in the union: H = sum_i q_i (H_i - log q_i)."""
    log_weight, entropies = weight[..., 0], weight[..., 1]
    total = ops.logsumexp(log_weight, axis, keepdims=True)
    log_share = log_weight - ops.where(total > -_INF, total, 0.0)
    share = ops.exp(log_share)
    surprise = ops.where(share > 0, -log_share, 0.0)
    entropy = ops.sum(share * (entropies + surprise), axis)
    return ops.stack([ops.squeeze(total, axis), entropy], -1)


# Weight: log of the sum of exp(score).
LOG = Semiring(_lift, _add, lambda weight, axis: ops.logsumexp(weight, axis))
# Weight: the highest score.
MAX = Semiring(_lift, _add, lambda weight, axis: ops.max(weight, axis))
# Weight: the log of the sum, and the entropy of the paths' distribution (Li and Eisner 2009).
ENTROPY = Semiring(_with_zeros, lambda weight, s: weight + _with_zeros(s), _plus_entropy)


def k_best(k: int) -> Semiring:
    """Weight: the `k` highest scores in order, -inf where there are fewer paths."""

    def lift(scores: Any) -> Any:
        widths = [(0, 0)] * scores.ndim + [(0, k - 1)]
        return ops.pad(scores[..., None], widths, constant_values=-_INF)

    def plus(weight: Any, axis: int) -> Any:
        last = ops.moveaxis(weight, axis, -2)
        return ops.topk(last.reshape((*last.shape[:-2], last.shape[-2] * k)), k)[0]

    return Semiring(lift, _add, plus)


def full(like: Any, shape: tuple[int, ...], value: bool | None = None) -> Any:
    """Constants beside `like`: a bare array of a boolean `value`, else zeros of like's kind."""
    array = unwrap(like)
    xp = namespace(array)
    if value is not None:
        return xp.full(shape, value, dtype=bool)
    zeros = xp.zeros(shape, dtype=array.dtype)
    return wrap(zeros, None, None) if isinstance(like, Tensor) else zeros


def or_zeros(scores: Any, emissions: Any) -> Any:
    """`scores` (tags,), zeros where they are None."""
    return full(emissions, emissions.shape[2:]) if scores is None else scores


def scan(
    semiring: Semiring,
    emissions: Any,
    transitions: Any,
    mask: Any = None,
    start: Any = None,
    end: Any = None,
) -> tuple[Any, list]:
    """(weight of all paths of each row (batch, width), for each step the weights of the paths that
    end there in each tag (batch, tags, width)).

    The definition: as it reads, differentiable to any order, slow. Scores may be -inf. transitions
    may also be (batch, time - 1, tags, tags), one matrix for the step into each position but the
    first.
    """
    batch, time, tags = emissions.shape
    mask = full(emissions, (batch, time), True) if mask is None else unwrap(mask)
    start, end = or_zeros(start, emissions), or_zeros(end, emissions)
    emissions = ops.where(mask[:, :, None], emissions, 0.0)  # the rest may be anything, even NaN
    begun = full(emissions, (batch,), False)  # whether a position has been kept so far
    weight, weights = semiring.lift(full(emissions, (batch, tags))), []
    for t in range(time):
        scores = emissions[:, t]
        new = first = semiring.lift(scores + start)
        if t > 0:
            step = transitions if transitions.ndim == 2 else transitions[:, t - 1]
            arriving = semiring.plus(semiring.times(weight[:, :, None], step), 1)
            new = ops.where(begun[:, None, None], semiring.times(arriving, scores), first)
        weight = ops.where(mask[:, t, None, None], new, weight)
        weights.append(weight)
        begun = begun | mask[:, t]
    total = semiring.plus(semiring.times(weight, end), 1)
    return ops.where(begun[:, None], total, semiring.lift(full(emissions, (batch,)))), weights


@crf_log_partition.define
def _(emissions, transitions, start, end, mask):
    dtype = np.result_type(emissions.dtype, transitions.dtype)
    if emissions.dtype.itemsize < 4:  # float16 is too coarse for long sums
        emissions = ops.astype(emissions, np.float32)
    log_z = scan(LOG, emissions, transitions, mask, start, end)[0][:, 0]
    return log_z if log_z.dtype == dtype else ops.astype(log_z, dtype)


@crf_path_score.define
def _(emissions, transitions, start, end, tags, mask):
    """The sum as it is written, a position at a time."""
    batch, time, _ = emissions.shape
    tags = unwrap(tags)
    mask = full(emissions, (batch, time), True) if mask is None else unwrap(mask)
    start, end = or_zeros(start, emissions), or_zeros(end, emissions)
    rows = namespace(tags).arange(batch)
    begun = full(emissions, (batch,), False)
    total, previous = full(emissions, (batch,)), tags[:, 0] if time else None
    for t in range(time):
        on, tag = mask[:, t], tags[:, t] * mask[:, t]
        step = ops.where(begun, transitions[previous * begun, tag], start[tag])
        total = total + ops.where(on, step + emissions[rows, t, tag], 0.0)
        previous = ops.where(on, tag, previous)
        begun = begun | on
    if time:
        total = total + ops.where(begun, end[previous * begun], 0.0)
    return ops.where(total > -_INF, total, -_INF)  # no gradient for a forbidden path
