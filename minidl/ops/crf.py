"""Kernels of the linear-chain CRF on bare arrays: log Z and its gradient, a path's score, Viterbi.

The definition of all this is `minidl.functional.semirings`, which shares no code with this file.
Shapes: emissions (batch, time, tags), transitions (tags, tags) from row to column, start and end
(tags,), mask (batch, time). A forbidden start, step or end has score -inf here.

On NumPy log Z is computed in exponential space (`Exponential`) as far as its guard allows. The rows
that the guard refuses, and other devices' arrays, are computed in log space (`Logarithmic`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl.autodiff import primitive
from minidl.backend import Array, namespace

__all__: list[str] = []  # internal: the public functions are in minidl.functional.crf

# --- Masks ----------------------------------------------------------------------------------------
# A gap joins its neighbours, so only the sequence of kept positions counts: `pack` moves those to
# the front of each row.


def pack(mask: Array) -> tuple[Array | None, Array]:
    """The order along time that puts kept positions first, and the mask in that order.

    The order is None where there are no gaps already (asked on the host only: a GPU would wait).
    """
    xp = namespace(mask)
    if xp is np and not np.any(mask[:, 1:] > mask[:, :-1]):
        return None, mask
    order = xp.argsort(xp.logical_not(mask), axis=1, kind="stable")
    return order, xp.take_along_axis(mask, order, 1)


def _ordered(values: Array, order: Array | None, inverse: bool = False) -> Array:
    """`values` (batch, time, ...) in that order along time, or back from it."""
    if order is None:
        return values
    xp = namespace(values)
    order = xp.argsort(order, axis=1) if inverse else order
    return xp.take_along_axis(values, order.reshape(order.shape + (1,) * (values.ndim - 2)), 1)


# --- Exponential space ----------------------------------------------------------------------------
# With factors x_t = exp(emissions_t - max), A = exp(transitions - max), all in [0, 1], a step is
#     y_t = x_t / sum(alpha_{t-1}),    alpha_t = y_t * (A^T alpha_{t-1}):
# one product for the whole batch, which yields the sum too (rows of ones under A^T). The step back,
#     v_t = A (y_{t+1} * v_{t+1}),
# is scaled by the same sums, so that alpha_t * v_t is the gradient of log Z by emissions_t.
#
# Arrays are (time, tags, batch): with the batch innermost, each pass over a step is one long run.
# Rows of several lengths get one tag more, "ended": a row goes there at its end, by the end's
# factors, and stays. All in float64, for its range.
#
# The guard. Factors under e^-150 are dropped (0). The paths so lost weigh at most
# tags**length * (the largest dropped factor), which must be negligible beside Z. The factors left
# are over 1e-66. As long as every alpha is 0 or over 1e-150, nothing underflows: by induction, a
# product is over 1e-150 * 1e-66 * 1e-66 / tags, and a 0 comes of a 0. Without any factor 0, alpha
# is over 1e-66 * 1e-66 anyway. Where alpha is 0 (no way leads there), v could grow without bounds:
# y is made 0 there.

_LEAST_LOG_FACTOR = -150.0
_LEAST_LOG_FLOAT32 = -80.0  # exp in float32 serves down to here, and is faster
_LEAST_ALPHA = 1e-150
_NEGLIGIBLE = -40.0  # log of the part of Z that may be lost


def _factors(scores: np.ndarray) -> tuple[np.ndarray, float, float]:
    """(exp(scores - top), top, log of the largest dropped factor)."""
    relative = scores.astype(np.float64)
    top = float(relative.max())
    top = 0.0 if top == -np.inf else top
    relative -= top
    dropped = relative < _LEAST_LOG_FACTOR
    if not dropped.any():
        return np.exp(relative), top, -np.inf
    lost = float(relative[dropped].max())
    relative[dropped] = -np.inf
    return np.exp(relative), top, lost


class Exponential:
    """Log Z by a scan in exponential space, and its gradients by `backward`. NumPy only.

    `log_z` (batch,) holds for the rows not in `refused` (batch,), which have gradient 0 here.
    `kept` is a mask without gaps; there is at least one step.
    """

    def __init__(
        self,
        emissions: np.ndarray,
        transitions: np.ndarray,
        start: np.ndarray,
        end: np.ndarray,
        kept: np.ndarray,
    ) -> None:
        self.tags = emissions.shape[2]
        self.lengths = kept.sum(1)
        ragged = not kept.all()
        with np.errstate(all="ignore"):  # a refused row may hold anything
            x, top_x, lost, dropped = self._emission_factors(emissions, kept, ragged)
            a, top_a, lost_a = _factors(transitions)
            first, top_first, lost_first = _factors(start)
            last, top_last, lost_last = _factors(end)
            zeros = dropped or not (a.all() and first.all() and last.all())
            lost = np.maximum(lost, max(lost_a, lost_first, lost_last))
            if ragged:
                first, a = np.append(first, 1.0), np.pad(a, (0, 1))
                a[:-1, -1], a[-1, -1] = last, 1.0
                last = np.append(last, 1.0)
            self.a, self.last = a, last
            self.y, self.alpha = self._scan(x, first)
            final = last @ self.alpha[-1]
            log_z = np.log(final) + np.log(self.alpha[:-1].sum(1)).sum(0)
            sound = self._sound(log_z, lost) if zeros else np.isfinite(log_z)
        self.refused = ~sound
        if zeros:
            np.copyto(self.y, 0.0, where=~(self.alpha > 0))
        if not sound.all():
            self.alpha[:, :, self.refused] = self.y[:, :, self.refused] = 0.0
        self.final = np.where(sound, final, np.inf)
        ends = (self.lengths > 0) * (top_first + top_last)
        self.log_z = log_z + top_x + np.maximum(self.lengths - 1, 0) * top_a + ends

    def _emission_factors(
        self, emissions: np.ndarray, kept: np.ndarray, ragged: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
        """(factors (time, tags, batch), the sum of the maxima taken out, log of the largest dropped
        factor, whether any was dropped). NaN in the padding comes through: the guard sees it."""
        batch, time, tags = emissions.shape
        x = emissions.reshape(batch, time * tags).T.copy().reshape(time, tags, batch)
        x = x if x.dtype.itemsize >= 4 else x.astype(np.float32)
        top = x.max(1)
        x -= top[:, None, :]
        lost = np.full(batch, -np.inf)
        lowest = x.min(initial=0.0)
        if not lowest >= _LEAST_LOG_FLOAT32:
            x = x.astype(np.float64)
        drop = not lowest >= _LEAST_LOG_FACTOR  # true for NaN, too
        if drop:
            small = x < _LEAST_LOG_FACTOR
            lost = np.where(small, x, -np.inf).max((0, 1))
            np.copyto(x, -np.inf, where=small)
        np.exp(x, out=x)
        top = top.astype(np.float64)
        if not ragged:
            return x.astype(np.float64), top.sum(0), lost, drop
        running = kept.T.astype(np.float64)
        factors = np.empty((time, tags + 1, batch))
        np.multiply(x, running[:, None, :], out=factors[:, :tags])
        np.subtract(1.0, running, out=factors[:, tags])
        return factors, (top * running).sum(0), lost, drop

    def _scan(self, x: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(y, alpha); y takes the place of x."""
        _, tags, batch = x.shape
        step = np.concatenate([self.a.T, np.ones((tags, tags))])
        alpha, product = np.empty(x.shape), np.empty((2 * tags, batch))
        moved, total = product[:tags], product[tags:]
        now = np.multiply(x[0], first[:, None], out=alpha[0])
        for y, new in zip(x[1:], alpha[1:], strict=True):
            np.dot(step, now, out=product)
            np.divide(y, total, out=y)
            now = np.multiply(y, moved, out=new)
        return x, alpha

    def _sound(self, log_z: np.ndarray, lost: np.ndarray) -> np.ndarray:
        """The guard, for factors of which some are 0. False for NaN."""
        least = np.where(self.alpha == 0, np.inf, self.alpha).min((0, 1))
        paths = self.lengths * np.log(self.tags)
        return (least >= _LEAST_ALPHA) & (lost + paths < log_z + _NEGLIGIBLE)

    def backward(self, g: np.ndarray) -> tuple[np.ndarray, ...]:
        """Gradients of sum(g * log_z) by emissions, transitions, start and end."""
        time, tags = len(self.y), self.tags
        p, flow = np.empty_like(self.y), np.empty_like(self.y)
        v = np.multiply(self.last[:, None], np.where(self.refused, 0.0, g) / self.final, out=p[-1])
        for t in range(time - 1, 0, -1):
            np.multiply(self.y[t], v, out=flow[t])
            v = np.dot(self.a, flow[t], out=p[t - 1])
        p *= self.alpha
        steps = np.matmul(self.alpha[:-1], flow[1:].transpose(0, 2, 1)).sum(0) * self.a
        by_end = p[-1, :tags].sum(1)
        if len(self.a) > tags:
            by_end += steps[:tags, tags]
        by_emissions = p[:, :tags].transpose(2, 0, 1)
        return by_emissions, steps[:tags, :tags], p[0, :tags].sum(1), by_end


# --- Log space ------------------------------------------------------------------------------------


def _finite(x: Array) -> Array:
    """`x` with 0 for -inf, fit to be subtracted."""
    xp = namespace(x)
    return xp.where(x == -xp.inf, xp.zeros_like(x), x)


def _logsumexp(x: Array, axis: int) -> Array:
    xp = namespace(x)
    top = _finite(x.max(axis=axis, keepdims=True))
    with np.errstate(divide="ignore"):
        return xp.log(xp.exp(x - top).sum(axis=axis)) + top.squeeze(axis)


class Logarithmic:
    """Log Z by a scan in log space, and its gradients by `backward`: for any scores, any device.

    `kept` is a mask without gaps; there is at least one step. The maximum is taken out at each
    step, so that a long row in float32 keeps its precision. A row without a path has log Z -inf
    and gradient 0.
    """

    def __init__(
        self, emissions: Array, transitions: Array, start: Array, end: Array, kept: Array
    ) -> None:
        self.shape, self.transitions, self.kept = emissions.shape, transitions, kept
        xp = namespace(emissions)
        batch, time, tags = emissions.shape
        total = xp.zeros((batch, 1), dtype=emissions.dtype)
        alpha = xp.zeros((batch, tags), dtype=emissions.dtype)
        self.alpha, self.predicted = [], []
        for t in range(time):
            if t == 0:
                predicted = xp.zeros_like(alpha) + start
            else:
                predicted = _logsumexp(alpha[:, :, None] + transitions, 1)
            new = predicted + emissions[:, t]
            top = _finite(new.max(axis=1, keepdims=True))
            on = kept[:, t, None]
            alpha = xp.where(on, new - top, alpha)
            total = total + xp.where(on, top, xp.zeros_like(top))
            self.alpha.append(alpha)
            self.predicted.append(predicted)
        self.final = alpha + end
        self.rest = _logsumexp(self.final, 1)
        self.some = kept.any(axis=1)
        self.log_z = xp.where(self.some, self.rest + total[:, 0], xp.zeros_like(self.rest))

    def backward(self, g: Array) -> tuple[Array, ...]:
        """Gradients of sum(g * log_z) by emissions, transitions, start and end."""
        xp = namespace(g)
        time = self.shape[1]
        closing = xp.exp(self.final - _finite(self.rest)[:, None])
        p = closing = xp.where(self.some, g, xp.zeros_like(g))[:, None] * closing
        nothing, steps = xp.zeros_like(p), xp.zeros_like(self.transitions)
        by_emissions = [nothing] * time
        for t in range(time - 1, -1, -1):
            on = self.kept[:, t, None]
            by_emissions[t] = xp.where(on, p, nothing)
            if t:
                share = self.alpha[t - 1][:, :, None] + self.transitions
                share = xp.exp(share - _finite(self.predicted[t])[:, None, :])
                flow = by_emissions[t][:, None, :] * share
                steps = steps + flow.sum(axis=0)
                p = xp.where(on, flow.sum(axis=2), p)
        opening = by_emissions[0].sum(axis=0)
        return xp.stack(by_emissions, axis=1), steps, opening, closing.sum(axis=0)


# --- Primitives -----------------------------------------------------------------------------------


def _or_zeros(scores: Array | None, like: Array) -> Array:
    return namespace(like).zeros_like(like[0]) if scores is None else scores


def _packed(emissions: Array, mask: Array | None) -> tuple[Array, Array | None, Array]:
    """(emissions without gaps, their order, the mask without gaps)."""
    if mask is None:
        return emissions, None, namespace(emissions).ones(emissions.shape[:2], dtype=bool)
    order, kept = pack(mask)
    return _ordered(emissions, order), order, kept


def _cast(dtype: Any, *arrays: Array) -> tuple[Any, Any, Any, Any]:
    emissions, transitions, start, end = (x.astype(dtype) for x in arrays)
    return emissions, transitions, start, end


@primitive(residuals=True)
def crf_log_partition(
    emissions: Array,
    transitions: Array,
    start: Array | None = None,
    end: Array | None = None,
    mask: Array | None = None,
) -> Any:
    """log Z of each row, (batch,); see minidl.functional.crf.log_partition."""
    xp = namespace(emissions)
    start, end = _or_zeros(start, transitions), _or_zeros(end, transitions)
    dtype = np.result_type(emissions.dtype, transitions.dtype)
    emissions, order, kept = _packed(emissions, mask)
    scores = (transitions, start, end)
    if not emissions.shape[1]:
        return xp.zeros(len(emissions), dtype=dtype), ([], None)
    if xp is not np:
        work = np.promote_types(dtype, np.float32)
        slow = Logarithmic(*_cast(work, emissions, *scores), kept)
        return slow.log_z.astype(dtype), ([(slice(None), slow)], order)
    fast = Exponential(emissions, *scores, kept)
    log_z = fast.log_z
    parts: list[tuple[Any, Any]] = [(slice(None), fast)]
    if fast.refused.any():
        rows = np.flatnonzero(fast.refused)
        slow = Logarithmic(*_cast(np.float64, emissions[rows], *scores), kept[rows])
        log_z[rows] = slow.log_z
        parts.append((rows, slow))
    return log_z.astype(dtype), (parts, order)


def _zero_gradients(
    g: Array, shape: tuple[int, ...], emissions_dtype: Any, transitions_dtype: Any
) -> tuple:
    """Of rows without any position."""
    xp, tags = namespace(g), shape[2]
    shared = [xp.zeros(s, dtype=transitions_dtype) for s in ((tags, tags), (tags,), (tags,))]
    return (xp.zeros(shape, dtype=emissions_dtype), *shared)


def _log_partition_rule(
    g: Array,
    kept: Any,
    emissions_shape: tuple[int, ...],
    emissions_dtype: Any,
    transitions_dtype: Any,
    needs: tuple[bool, ...],
) -> tuple:
    parts, order = kept
    if not parts:
        return _zero_gradients(g, emissions_shape, emissions_dtype, transitions_dtype)
    _, solver = parts[0]
    wide = np.float64 if type(g) is np.ndarray else np.promote_types(g.dtype, np.float32)
    g = g.astype(wide)
    by_emissions, *shared = solver.backward(g)
    for rows, solver in parts[1:]:
        of_rows, *more = solver.backward(g[rows])
        by_emissions[rows] = of_rows
        shared = [x + y for x, y in zip(shared, more, strict=True)]
    if needs[0]:
        by_emissions = _ordered(by_emissions.astype(emissions_dtype), order, inverse=True)
    return (by_emissions, *(x.astype(transitions_dtype) for x in shared))


crf_log_partition.defvjp(joint=_log_partition_rule, of=("emissions", "transitions", "start", "end"))


@primitive(residuals=True)
def crf_path_score(
    emissions: Array,
    transitions: Array,
    start: Array | None,
    end: Array | None,
    tags: Array,
    mask: Array | None = None,
) -> Any:
    """Score of one path of each row, (batch,); see minidl.functional.crf.path_score."""
    xp = namespace(emissions)
    dtype = np.result_type(emissions.dtype, transitions.dtype)
    if 0 in emissions.shape:
        return xp.zeros(emissions.shape[:1], dtype=dtype), None
    mask = xp.ones(tags.shape, dtype=bool) if mask is None else mask
    tags = xp.where(mask, tags, 0).astype(np.int64)  # small integers would overflow in products
    order, kept = pack(mask)
    path = _ordered(tags, order)
    nothing = xp.zeros((), dtype=dtype)
    score = xp.take_along_axis(emissions, tags[:, :, None], 2)[:, :, 0]
    score = xp.where(mask, score, nothing).sum(axis=1)
    steps = transitions[path[:, :-1], path[:, 1:]]
    score = score + xp.where(kept[:, 1:], steps, nothing).sum(axis=1)
    ends = xp.maximum(kept.sum(axis=1) - 1, 0)
    last, some = xp.take_along_axis(path, ends[:, None], 1)[:, 0], kept[:, 0]
    if start is not None:
        score = score + xp.where(some, start[path[:, 0]], nothing)
    if end is not None:
        score = score + xp.where(some, end[last], nothing)
    return score.astype(dtype), (tags, mask, path, kept, last, some)


def _path_score_rule(
    g: Array,
    out: Array,
    kept: Any,
    emissions_shape: tuple[int, ...],
    emissions_dtype: Any,
    transitions_dtype: Any,
    needs: tuple[bool, ...],
) -> tuple:
    if kept is None:
        return _zero_gradients(g, emissions_shape, emissions_dtype, transitions_dtype)
    xp, count = namespace(g), emissions_shape[2]
    tags, mask, path, kept, last, some = kept
    g = xp.where(out == -xp.inf, xp.zeros_like(g), g)  # a forbidden path
    weight = xp.where(some, g, xp.zeros_like(g))
    all_tags = xp.arange(count)
    by_emissions = None
    if needs[0]:
        by_emissions = xp.zeros(emissions_shape, dtype=emissions_dtype)
        weights = xp.where(mask, g[:, None], xp.zeros_like(g[:, None])).astype(emissions_dtype)
        xp.put_along_axis(by_emissions, tags[:, :, None], weights[:, :, None], 2)
    steps = xp.where(kept[:, 1:], g[:, None], xp.zeros_like(g[:, None]))
    by_transitions = _count_steps(path[:, :-1], path[:, 1:], steps, count)
    opening = _one_hot(path[:, 0], all_tags, weight).sum(axis=0)
    closing = _one_hot(last, all_tags, weight).sum(axis=0)
    shared = (x.astype(transitions_dtype) for x in (by_transitions, opening, closing))
    return (by_emissions, *shared)


crf_path_score.defvjp(joint=_path_score_rule, of=("emissions", "transitions", "start", "end"))


def _one_hot(tags: Array, all_tags: Array, weight: Array) -> Array:
    """`weight` at each tag's place along a new last axis, 0 elsewhere."""
    xp = namespace(weight)
    return xp.where(
        tags[..., None] == all_tags, weight[..., None], xp.zeros_like(weight[..., None])
    )


def _count_steps(origin: Array, target: Array, weight: Array, count: int) -> Array:
    """(tags, tags): the sum of the weights of the steps from i to j."""
    xp = namespace(weight)
    if xp is np:
        steps = (origin * count + target).ravel()
        return np.bincount(steps, weight.ravel(), count * count).reshape(count, count)
    all_tags = xp.arange(count)
    left = _one_hot(origin, all_tags, xp.ones_like(weight)).reshape(-1, count)
    return left.T @ _one_hot(target, all_tags, weight).reshape(-1, count)


@primitive(differentiable=False)
def crf_viterbi(
    emissions: Array,
    transitions: Array,
    start: Array | None = None,
    end: Array | None = None,
    mask: Array | None = None,
) -> tuple[Array, Array]:
    """(best path (batch, time), its score (batch,)); see minidl.functional.crf.viterbi.

    The way up keeps the scores only; the way back redoes the arg max along the path it follows.
    """
    xp = namespace(emissions)
    batch, time, _ = emissions.shape
    dtype = np.result_type(emissions.dtype, transitions.dtype)
    start, end = _or_zeros(start, transitions), _or_zeros(end, transitions)
    emissions, order, kept = _packed(emissions, mask)
    if not time:
        return xp.zeros((batch, 0), dtype=np.int64), xp.zeros(batch, dtype=dtype)
    transitions, ends = transitions.astype(dtype), xp.maximum(kept.sum(axis=1) - 1, 0)
    best = _best_scores(emissions.astype(dtype, copy=False), transitions, start.astype(dtype))
    incoming = xp.ascontiguousarray(transitions.T)  # [to, from]
    onward = xp.zeros_like(best[0]) + end.astype(dtype)  # of each tag to what is chosen after it
    score = (best[ends, xp.arange(batch)] + onward).max(axis=1)
    running = xp.ascontiguousarray(kept.T)[:, :, None]
    paths = xp.empty((time, batch), dtype=np.int64)
    for t in range(time - 1, -1, -1):
        paths[t] = tag = (best[t] + onward).argmax(axis=1)
        xp.copyto(onward, incoming.take(tag, axis=0), where=running[t])
    some = kept[:, 0]
    score = xp.where(some, score, xp.zeros_like(score))
    valid = xp.logical_and(kept, (score > -xp.inf)[:, None])
    paths = xp.where(valid, paths.T, xp.full_like(paths.T, -1))
    return _ordered(paths, order, inverse=True), score


def _best_scores(emissions: Array, transitions: Array, start: Array) -> Array:
    """(time, batch, tags): the score of the best path that ends there, padding run through."""
    xp = namespace(emissions)
    batch, time, tags = emissions.shape
    # (time, tags, batch) as above. transitions are written out for each row: adding them is faster.
    scores = emissions.reshape(batch, time * tags).T.copy().reshape(time, tags, batch)
    steps = xp.ascontiguousarray(xp.broadcast_to(transitions[:, :, None], (tags, tags, batch)))
    sums = xp.empty_like(steps)
    scores[0] += start[:, None]
    for t in range(1, time):
        xp.add(scores[t - 1][:, None, :], steps, out=sums)
        scores[t] += sums.max(axis=0)
    return xp.ascontiguousarray(scores.transpose(0, 2, 1))
