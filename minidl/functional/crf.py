"""The linear-chain conditional random field (Lafferty, McCallum and Pereira 2001).

A path y of tags through a row has the score

    start[y_1] + sum_t emissions[t, y_t] + sum_t transitions[y_{t-1}, y_t] + end[y_last],

over the positions that the mask keeps: a gap joins its neighbours, the first kept position takes
the start, the last the end. Its probability is exp(score) / Z, Z the sum of exp(score) over all
paths. A row that keeps no position has one path, the empty one, of score 0.

What one wants to know of all these paths is one recursion, `scan`, with another way to sum in it: a
`Semiring` (semirings.py). It defines what `log_partition` and `viterbi` get from faster kernels.

Arguments common to all functions:
    emissions (batch, time, tags), transitions (tags, tags): [i, j] scores the step from i to j,
    mask (batch, time): booleans, True = keep, of any pattern; None keeps all,
    start (tags,), end (tags,): None counts as zeros,
    allowed (tags, tags), allowed_start (tags,), allowed_end (tags,): booleans, True = may be;
    a path that is not allowed has probability 0. They stand apart from the scores, so that no score
    is ever -inf: that would become NaN in training. A row without any allowed path has log Z -inf,
    gradient 0 and -1 for its best path.
All raise ShapeError for other shapes and DtypeError for scores that are not floats and masks that
are not booleans. Arrays give arrays, Tensors give Tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minidl import ops
from minidl import random as md_random
from minidl.autodiff import primitive
from minidl.backend import Array, device_of, is_array, namespace, to_device
from minidl.derivatives import vjp
from minidl.errors import DtypeError, ShapeError
from minidl.functional.semirings import ENTROPY, LOG, MAX, Semiring, full, k_best, or_zeros, scan
from minidl.graph import Tensor, unwrap
from minidl.ops.crf import crf_log_partition, crf_path_score, crf_viterbi
from minidl.samples import Draw, call, samples

__all__ = [
    "ENTROPY", "LOG", "MAX", "Semiring", "entropy", "k_best", "log_partition", "marginals",
    "negative_log_likelihood", "path_score", "sample", "scan", "viterbi", "viterbi_k_best",
]  # fmt: skip

_INF = float("inf")

# --- Sums over all paths --------------------------------------------------------------------------


def log_partition(
    emissions: Any,
    transitions: Any,
    mask: Any = None,
    start: Any = None,
    end: Any = None,
    allowed: Any = None,
    allowed_start: Any = None,
    allowed_end: Any = None,
) -> Any:
    """log Z (batch,): the log of the sum of exp(score) over all paths."""
    limits = allowed, allowed_start, allowed_end
    return crf_log_partition(
        *_checked("log_partition", emissions, transitions, mask, start, end, limits)
    )


def marginals(
    emissions: Any,
    transitions: Any,
    mask: Any = None,
    start: Any = None,
    end: Any = None,
    allowed: Any = None,
    allowed_start: Any = None,
    allowed_end: Any = None,
    pairwise: bool = False,
) -> Any:
    """The probability of each tag at each position, (batch, time, tags); 0 where masked.

    It is the gradient of log Z by the emissions, and taken so (Eisner 2016). pairwise: that of each
    pair of tags in succession instead, (batch, time - 1, tags, tags): [:, t - 1, i, j] of tag j at
    t and tag i at the kept position before it, 0 where there is none. Differentiable.
    """
    limits = allowed, allowed_start, allowed_end
    checked = _checked("marginals", emissions, transitions, mask, start, end, limits)
    scores, mask = list(checked[:4]), checked[4]
    if pairwise:
        batch, time, tags = scores[0].shape
        scores[1] = ops.broadcast_to(scores[1], (batch, max(0, time - 1), tags, tags))
    given = [i for i, x in enumerate(scores) if x is not None]

    def log_z(*xs: Any) -> Any:
        full = [None] * 4
        for i, x in zip(given, xs, strict=True):
            full[i] = x
        if pairwise:
            return scan(LOG, full[0], full[1], mask, full[2], full[3])[0][:, 0]
        return crf_log_partition(*full, mask)

    result, pullback = vjp(log_z, *(scores[i] for i in given))
    gradient = pullback(ops.ones_like(result))[int(pairwise)]
    return gradient if any(isinstance(scores[i], Tensor) for i in given) else gradient._data


def entropy(
    emissions: Any,
    transitions: Any,
    mask: Any = None,
    start: Any = None,
    end: Any = None,
    allowed: Any = None,
    allowed_start: Any = None,
    allowed_end: Any = None,
) -> Any:
    """The entropy (batch,) of the distribution over paths, in nats; 0 for rows without a path."""
    limits = allowed, allowed_start, allowed_end
    emissions, transitions, start, end, mask = _checked(
        "entropy", emissions, transitions, mask, start, end, limits
    )
    return scan(ENTROPY, emissions, transitions, mask, start, end)[0][:, 1]


# --- One path -------------------------------------------------------------------------------------


def path_score(
    emissions: Any,
    tags: Any,
    transitions: Any,
    mask: Any = None,
    start: Any = None,
    end: Any = None,
    allowed: Any = None,
    allowed_start: Any = None,
    allowed_end: Any = None,
) -> Any:
    """The score (batch,) of the path `tags` (batch, time); tags may be anything where masked.

    A path that is not allowed has score -inf and gradient 0. Raises DtypeError for tags that are
    not integers, ValueError for a tag out of range (seen on the CPU only: looking costs a GPU a
    wait).
    """
    limits = allowed, allowed_start, allowed_end
    *scores, mask = _checked("path_score", emissions, transitions, mask, start, end, limits)
    tags = _checked_tags("path_score", tags, scores[0], mask)
    return crf_path_score(*scores, tags, mask)


def negative_log_likelihood(
    emissions: Any,
    tags: Any,
    transitions: Any,
    mask: Any = None,
    start: Any = None,
    end: Any = None,
    allowed: Any = None,
    allowed_start: Any = None,
    allowed_end: Any = None,
    reduction: str = "mean",
) -> Any:
    """log Z - score(tags): a loss for each row ("none"), their sum, or their mean.

    A row whose path is not allowed has loss inf and gradient 0. Raises as `path_score`.
    """
    name = "negative_log_likelihood"
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    limits = allowed, allowed_start, allowed_end
    *scores, mask = _checked(name, emissions, transitions, mask, start, end, limits)
    tags = _checked_tags(name, tags, scores[0], mask)
    score = crf_path_score(*scores, tags, mask)
    log_z = crf_log_partition(*scores, mask)
    if any(limit is not None for limit in limits):
        possible = score > -_INF
        losses = ops.where(possible, log_z - ops.where(possible, score, 0.0), _INF)
    else:
        losses = log_z - score
    if reduction == "none":
        return losses
    total = ops.sum(losses)
    return total if reduction == "sum" else total * (1.0 / max(1, losses.shape[0]))


# --- Choosing paths -------------------------------------------------------------------------------
# After the scan has gone up, a path is traced back: at each kept position the tag is chosen by the
# weight of what leads to it plus the score of what follows, which is known by then.


def viterbi(
    emissions: Any,
    transitions: Any,
    mask: Any = None,
    start: Any = None,
    end: Any = None,
    allowed: Any = None,
    allowed_start: Any = None,
    allowed_end: Any = None,
) -> tuple[Any, Any]:
    """(the best path (batch, time), its score (batch,)) (Viterbi 1967).

    The path holds -1 where masked, and everywhere in a row that has no path. Of equal tags the
    first is taken, counted from the end. Constants: differentiate `path_score` of the path.
    """
    limits = allowed, allowed_start, allowed_end
    return crf_viterbi(*_checked("viterbi", emissions, transitions, mask, start, end, limits))


def viterbi_k_best(
    emissions: Any,
    transitions: Any,
    mask: Any = None,
    start: Any = None,
    end: Any = None,
    allowed: Any = None,
    allowed_start: Any = None,
    allowed_end: Any = None,
    k: int = 2,
) -> tuple[Any, Any]:
    """(the k best paths (batch, k, time), their scores (batch, k)), best first.

    -1 where masked. Where there are fewer than k paths: -1, with score -inf. Constants.
    """
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"viterbi_k_best: k: expected an integer of at least 1, got {k!r}")
    limits = allowed, allowed_start, allowed_end
    checked = _checked("viterbi_k_best", emissions, transitions, mask, start, end, limits)
    return _k_best_paths(*checked, k)


def sample(
    emissions: Any,
    transitions: Any,
    mask: Any = None,
    start: Any = None,
    end: Any = None,
    allowed: Any = None,
    allowed_start: Any = None,
    allowed_end: Any = None,
    generator: md_random.Generator | None = None,
    n: int = 1,
) -> Any:
    """`n` paths of each row drawn with their probabilities, independently: (batch, n, time).

    -1 where masked, and in a row that has no path. generator: minidl's own if None; it draws on the
    host.
    """
    if not isinstance(n, int) or n < 0:
        raise ValueError(f"sample: n: expected an integer of at least 0, got {n!r}")
    limits = allowed, allowed_start, allowed_end
    checked = _checked("sample", emissions, transitions, mask, start, end, limits)
    scores = unwrap(checked[0])
    generator = generator or md_random.generator()
    draws = generator.uniform(0.0, 1.0, (scores.shape[1], scores.shape[0], n), np.float64)
    return _sampled_paths(*checked, to_device(1.0 - draws, device_of(scores)))


@primitive(differentiable=False)
def _k_best_paths(emissions, transitions, start, end, mask, k):
    xp = namespace(emissions)
    total, weights = scan(k_best(k), emissions, transitions, mask, start, end)
    state = xp.zeros((len(emissions), k), dtype=np.int64) + xp.arange(k)  # the rank of each path

    def choose(t, onward, on):
        nonlocal state
        sums = weights[t][:, None] + onward[..., None]  # (batch, k, tags, ranks)
        flat = sums.reshape((*sums.shape[:2], sums.shape[2] * k))  # -1 fails for no rows
        places = xp.argsort(-flat, axis=2, kind="stable")
        place = xp.take_along_axis(places, state[:, :, None], 2)[:, :, 0]
        state = xp.where(on, place % k, state)
        return place // k

    paths = _trace(choose, emissions, transitions, end, mask, k)
    return xp.where((total > -_INF)[:, :, None], paths, xp.full_like(paths, -1)), total


@primitive(differentiable=False)
def _sampled_paths(emissions, transitions, start, end, mask, draws):
    xp = namespace(emissions)
    total, weights = scan(LOG, emissions, transitions, mask, start, end)

    def choose(t, onward, on):
        """The first tag at which the running sum of the probabilities reaches the draw."""
        running = xp.cumsum(ops.softmax(weights[t][:, None, :, 0] + onward), axis=2)
        level = draws[t].astype(running.dtype)[:, :, None] * running[:, :, -1:]
        return (running < level).sum(axis=2)

    paths = _trace(choose, emissions, transitions, end, mask, draws.shape[2])
    return xp.where((total > -_INF)[:, :, None], paths, xp.full_like(paths, -1))


def _trace(
    choose: Callable, emissions: Array, transitions: Array, end: Any, mask: Any, n: int
) -> Array:
    """Paths (batch, n, time) from the last position to the first: choose(t, onward, on) gives the
    tags (batch, n), from the scores (batch, n, tags) of each tag towards what was chosen after."""
    xp = namespace(emissions)
    batch, time, tags = emissions.shape
    mask = full(emissions, (batch, time), True) if mask is None else mask
    onward = xp.zeros((batch, n, tags), dtype=emissions.dtype) + or_zeros(end, emissions)
    paths = xp.full((batch, n, time), -1, dtype=np.int64)
    for t in range(time - 1, -1, -1):
        on = mask[:, t, None]
        tag = choose(t, onward, on)
        paths[:, :, t] = xp.where(on, tag, paths[:, :, t])
        onward = xp.where(on[:, :, None], transitions.T[tag], onward)
    return paths


# --- Arguments ------------------------------------------------------------------------------------


def _expect_shape(op: str, argument: str, value: Any, expected: tuple[int, ...], mend: str) -> None:
    if tuple(value.shape) != expected:
        raise ShapeError(
            f"{op}: {argument}: expected shape {expected}, got {tuple(value.shape)}; {mend}"
        )


def _floats(op: str, argument: str, value: Any) -> Any:
    value = value if isinstance(value, Tensor) or is_array(value) else Tensor(value)
    if value.dtype.kind != "f":
        raise DtypeError(
            f"{op}: {argument}: expected floats, got {value.dtype}; use .astype('float32')"
        )
    return value


def _booleans(
    op: str, argument: str, value: Any, expected: tuple[int, ...], emissions: Any, mend: str
) -> Array | None:
    if value is None:
        return None
    value = unwrap(value)
    if not is_array(value):
        value = to_device(np.asarray(value), device_of(unwrap(emissions)))
    if value.dtype != np.bool_:
        raise DtypeError(
            f"{op}: {argument}: expected booleans (True = keep), got {value.dtype}; use "
            f"{argument} != 0"
        )
    _expect_shape(op, argument, value, expected, mend)
    return value


def _checked(
    op: str, emissions: Any, transitions: Any, mask: Any, start: Any, end: Any, limits: tuple
) -> tuple[Any, Any, Any, Any, Array | None]:
    """(emissions, transitions, start, end, mask), -inf in the scores of what is not allowed."""
    emissions = _floats(op, "emissions", emissions)
    if emissions.ndim != 3 or emissions.shape[2] == 0:
        raise ShapeError(
            f"{op}: emissions: expected shape (batch, time, tags) with at least one tag, got "
            f"{tuple(emissions.shape)}; one row alone is emissions[None]"
        )
    batch, time, tags = emissions.shape
    mend = f"emissions {tuple(emissions.shape)} have {tags} tags"
    scores = []
    names = ("transitions", "start", "end")
    for name, value, limit in zip(names, (transitions, start, end), limits, strict=True):
        expected = (tags, tags) if name == "transitions" else (tags,)
        if value is not None or name == "transitions":
            value = _floats(op, name, value)
            _expect_shape(op, name, value, expected, mend)
        argument = "allowed" if name == "transitions" else f"allowed_{name}"
        limit = _booleans(op, argument, limit, expected, emissions, mend)
        if limit is not None:
            value = ops.where(limit, or_zeros(value, emissions), -_INF)
        scores.append(value)
    mend = f"emissions are {tuple(emissions.shape)}: one entry for each position"
    return (emissions, *scores, _booleans(op, "mask", mask, (batch, time), emissions, mend))


def _checked_tags(op: str, tags: Any, emissions: Any, mask: Array | None) -> Array:
    tags, scores = unwrap(tags), unwrap(emissions)
    if not is_array(tags):
        tags = to_device(np.asarray(tags), device_of(scores))
    if tags.dtype.kind not in "iu":
        raise DtypeError(
            f"{op}: tags: expected integers, got {tags.dtype}; use tags.astype('int64')"
        )
    mend = f"emissions are {scores.shape}: one tag for each position"
    _expect_shape(op, "tags", tags, scores.shape[:2], mend)
    if type(tags) is np.ndarray:
        wrong = (tags < 0) | (tags >= scores.shape[2])
        wrong = wrong if mask is None else wrong & mask
        if wrong.any():
            raise ValueError(
                f"{op}: tags: expected 0 to {scores.shape[2] - 1} where kept, got "
                f"{tags[wrong][0]}; mask out what has no tag"
            )
    return tags


# --- Samples --------------------------------------------------------------------------------------


def _draw_model(draw: Draw, options: bool = True) -> tuple[np.ndarray, np.ndarray, dict]:
    """(emissions, transitions, the rest by name); every row has an allowed path."""
    batch, time = draw.shape(min_dims=2, max_dims=2)
    tags = draw.integer(1, 3)
    rest: dict = {"mask": draw.mask((batch, time)) if draw.boolean() else None}
    if options:
        for name in ("start", "end"):
            rest[name] = draw.array((tags,)) if draw.boolean() else None
        if draw.boolean():
            rest["allowed"] = draw.mask((tags, tags)) | np.eye(tags, dtype=bool)
    return draw.array((batch, time, tags)), draw.array((tags, tags)), rest


@samples(log_partition)
@samples(entropy)
@samples(viterbi, differentiable=False)
def _(draw: Draw):
    emissions, transitions, rest = _draw_model(draw)
    return call(emissions, transitions, **rest)


@samples(marginals)
def _(draw: Draw):
    emissions, transitions, rest = _draw_model(draw)
    return call(emissions, transitions, **rest, pairwise=draw.boolean())


@samples(viterbi_k_best, differentiable=False)
def _(draw: Draw):
    emissions, transitions, rest = _draw_model(draw)
    return call(emissions, transitions, **rest, k=draw.integer(1, 3))


@samples(path_score)
@samples(negative_log_likelihood)
def _(draw: Draw):
    emissions, transitions, rest = _draw_model(draw)
    rest.pop("allowed", None)
    tags = draw.integers(emissions.shape[:2], 0, emissions.shape[2] - 1)
    return call(emissions, tags, transitions, **rest)
