"""The CRF against enumeration of all paths, its kernels against each other, and its identities."""

import itertools

import numpy as np
import pytest

import minidl as md
from minidl.errors import DtypeError, ShapeError
from minidl.functional import crf, semirings
from minidl.random import Generator
from minidl.testing import check_gradients

INF = float("inf")


def model(batch, time, tags, seed=0, scale=1.0, dtype=np.float64):
    """Random emissions, transitions, start and end."""
    draw = np.random.default_rng(seed)
    shapes = (batch, time, tags), (tags, tags), (tags,), (tags,)
    return [scale * draw.normal(size=shape).astype(dtype) for shape in shapes]


def random_mask(batch, time, seed=0):
    return np.random.default_rng(seed).random((batch, time)) < 0.6


def enumerate_paths(emissions, transitions, start, end, mask):
    """[(score, path)] of one row: the definition, word for word; -1 where masked."""
    kept = np.flatnonzero(mask)
    found = []
    for path in itertools.product(range(len(start)), repeat=len(kept)):
        score = sum(emissions[t, tag] for t, tag in zip(kept, path, strict=True))
        score += sum(transitions[i, j] for i, j in itertools.pairwise(path))
        if path:
            score += start[path[0]] + end[path[-1]]
        full = np.full(len(mask), -1)
        full[kept] = path
        found.append((float(score), full))
    return sorted(found, key=lambda item: -item[0])


def forbid(scores, allowed):
    return np.where(allowed, scores, -INF)


def every_mask(time):
    return np.array(list(itertools.product([False, True], repeat=time)))


CASES = [(k, t) for k in (1, 2, 3, 4) for t in (1, 2, 3, 4, 5) if k**t <= 256]


def limits_of(kind, tags, seed):
    """allowed, allowed_start, allowed_end: none, sparse ones, or such that no path is left."""
    if kind == "free":
        return {}
    draw = np.random.default_rng(seed)
    limits = {
        "allowed": draw.random((tags, tags)) < 0.6,
        "allowed_start": draw.random(tags) < 0.7,
        "allowed_end": draw.random(tags) < 0.7,
    }
    if kind == "impossible":
        limits["allowed_start"] = np.zeros(tags, bool)
    return limits


@pytest.mark.parametrize("kind", ["free", "sparse", "impossible"])
@pytest.mark.parametrize(("tags", "time"), CASES)
def test_all_against_enumeration_over_all_masks(tags, time, kind):
    masks = every_mask(time)
    emissions, transitions, start, end = model(len(masks), time, tags, seed=tags + time)
    limits = limits_of(kind, tags, seed=10 * tags + time)
    options = dict(mask=masks, start=start, end=end, **limits)
    log_z = crf.log_partition(emissions, transitions, **options)
    entropy = crf.entropy(emissions, transitions, **options)
    marginals = crf.marginals(emissions, transitions, **options)
    best, best_score = crf.viterbi(emissions, transitions, **options)
    paths, scores = crf.viterbi_k_best(emissions, transitions, k=5, **options)
    if limits:
        transitions = forbid(transitions, limits["allowed"])
        start, end = forbid(start, limits["allowed_start"]), forbid(end, limits["allowed_end"])
    for b, mask in enumerate(masks):
        found = enumerate_paths(emissions[b], transitions, start, end, mask)
        found = [item for item in found if item[0] > -INF]
        if not found:
            assert log_z[b] == best_score[b] == -INF and entropy[b] == 0
            assert (marginals[b] == 0).all() and (best[b] == -1).all() and (paths[b] == -1).all()
            continue
        weights = np.exp([score for score, _ in found])
        p = weights / weights.sum()
        np.testing.assert_allclose(log_z[b], np.log(weights.sum()), atol=1e-12)
        np.testing.assert_allclose(entropy[b], -(p * np.log(p)).sum(), atol=1e-12)
        expected = sum(
            q * np.eye(tags + 1)[path][:, :tags] for q, (_, path) in zip(p, found, strict=True)
        )
        np.testing.assert_allclose(marginals[b], expected, atol=1e-12)
        np.testing.assert_allclose(best_score[b], found[0][0], atol=1e-12)
        np.testing.assert_array_equal(best[b], found[0][1])
        wanted = [score for score, _ in found[:5]] + [-INF] * (5 - len(found))
        np.testing.assert_allclose(scores[b], wanted, atol=1e-12)
        for rank, (_, path) in enumerate(found[:5]):
            np.testing.assert_array_equal(paths[b, rank], path)
        assert (paths[b, len(found) :] == -1).all()


@pytest.mark.parametrize("time", [1, 3, 4])
def test_path_score_against_enumeration(time):
    masks = every_mask(time)
    emissions, transitions, start, end = model(len(masks), time, 3)
    for b, mask in enumerate(masks):
        rows = slice(b, b + 1)
        for score, path in enumerate_paths(emissions[b], transitions, start, end, mask):
            tags = np.where(mask, path, 99)  # whatever stands in the padding
            got = crf.path_score(emissions[rows], tags[None], transitions, mask[None], start, end)
            np.testing.assert_allclose(got, [score], atol=1e-12)


def test_pairwise_marginals_against_enumeration():
    masks = every_mask(4)
    emissions, transitions, start, end = model(len(masks), 4, 3)
    pairs = crf.marginals(emissions, transitions, masks, start, end, pairwise=True)
    assert pairs.shape == (len(masks), 3, 3, 3)
    for b, mask in enumerate(masks):
        found = enumerate_paths(emissions[b], transitions, start, end, mask)
        weights = np.exp([score for score, _ in found])
        expected = np.zeros((3, 3, 3))
        for p, (_, path) in zip(weights / weights.sum(), found, strict=True):
            for before, t in itertools.pairwise(np.flatnonzero(mask)):
                expected[t - 1, path[before], path[t]] += p
        np.testing.assert_allclose(pairs[b], expected, atol=1e-12)


# --- Derivatives ----------------------------------------------------------------------------------


def test_marginals_are_the_gradient_of_log_z_and_sum_to_one():
    emissions, transitions, start, end = model(5, 6, 3)
    mask = random_mask(5, 6)
    x = md.tensor(emissions, requires_grad=True)
    (gradient,) = md.grad(crf.log_partition(x, transitions, mask, start, end).sum(), [x])
    marginals = crf.marginals(emissions, transitions, mask, start, end)
    np.testing.assert_array_equal(gradient.numpy(), marginals)
    np.testing.assert_allclose(marginals.sum(2), mask, atol=1e-14)


def test_transition_gradients_are_expected_counts():
    emissions, transitions, start, end = model(4, 6, 3)
    mask = random_mask(4, 6)
    parameters = [md.tensor(p, requires_grad=True) for p in (transitions, start, end)]
    log_z = crf.log_partition(emissions, parameters[0], mask, *parameters[1:])
    steps, opening, closing = (g.numpy() for g in md.grad(log_z.sum(), parameters))
    pairs = crf.marginals(emissions, transitions, mask, start, end, pairwise=True)
    np.testing.assert_allclose(steps, pairs.sum((0, 1)), atol=1e-12)
    singles = crf.marginals(emissions, transitions, mask, start, end)
    rows = mask.any(1)
    first, last = mask.argmax(1), 5 - mask[:, ::-1].argmax(1)
    np.testing.assert_allclose(opening, singles[rows, first[rows]].sum(0), atol=1e-12)
    np.testing.assert_allclose(closing, singles[rows, last[rows]].sum(0), atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_the_loss_to_second_order(masked):
    emissions, transitions, start, end = model(3, 4, 3)
    tags = np.random.default_rng(0).integers(0, 3, (3, 4))
    mask = np.array([[1, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]], bool) if masked else None
    allowed = ~np.eye(3, k=1, dtype=bool)

    def loss(emissions, transitions, start, end):
        return crf.log_partition(
            emissions, transitions, mask, start, end, allowed=allowed
        ).sum() - md.sum(crf.path_score(emissions, tags, transitions, mask, start, end))

    check_gradients(loss, emissions, transitions, start, end)


def test_gradients_of_marginals_and_entropy():
    emissions, transitions, start, end = model(2, 3, 3)
    mask = np.array([[1, 0, 1], [1, 1, 1]], bool)

    def both(emissions, transitions, start, end):
        args = emissions, transitions, mask, start, end
        return crf.marginals(*args), crf.marginals(*args, pairwise=True), crf.entropy(*args)

    check_gradients(both, emissions, transitions, start, end, order=1)


def test_marginals_are_differentiable_in_transitions_alone():
    emissions, transitions, _, _ = model(2, 3, 2)
    a = md.tensor(transitions, requires_grad=True)
    (g,) = md.grad(md.sum(crf.marginals(emissions, a) ** 2), [a])
    assert np.abs(g.numpy()).max() > 1e-3


def test_max_semiring_gives_the_best_path_as_its_gradient():
    emissions, transitions, start, end = model(3, 5, 4)
    x = md.tensor(emissions, requires_grad=True)
    best = semirings.scan(semirings.MAX, x, transitions, None, start, end)[0][:, 0]
    paths, scores = crf.viterbi(emissions, transitions, None, start, end)
    np.testing.assert_array_equal(best.numpy(), scores)
    (g,) = md.grad(best.sum(), [x])
    np.testing.assert_array_equal(g.numpy().argmax(2), paths)


def test_infeasible_rows_have_no_gradient():
    emissions, transitions, start, end = model(2, 3, 2)
    allowed = np.array([[False, True], [False, False]])  # no path has three steps
    mask = np.array([[True, True, True], [True, True, False]])
    tensors = [md.tensor(x, requires_grad=True) for x in (emissions, transitions, start, end)]
    args = tensors[1], mask, *tensors[2:], allowed
    log_z = crf.log_partition(tensors[0], *args)
    losses = crf.negative_log_likelihood(
        tensors[0], np.array([[0, 1, 1], [0, 1, 1]]), *args, reduction="none"
    )
    assert log_z.numpy()[0] == -INF and losses.numpy()[0] == INF
    assert np.isfinite([log_z.numpy()[1], losses.numpy()[1]]).all()
    for output in (log_z, losses):
        for create in (False, True):
            gradients = md.grad(output.sum(), tensors, create_graph=create, retain_graph=True)
            assert all(np.isfinite(g.numpy()).all() for g in gradients)
            assert (gradients[0].numpy()[0] == 0).all()
    assert md.grad(log_z.sum(), tensors)[0].numpy()[1].any()


def test_a_forbidden_path_has_no_gradient():
    emissions, transitions, _, _ = model(2, 3, 2)
    x = md.tensor(emissions, requires_grad=True)
    a = md.tensor(transitions, requires_grad=True)
    tags, allowed = np.array([[0, 1, 0], [0, 0, 0]]), np.array([[True, False], [True, True]])
    score = crf.path_score(x, tags, a, allowed=allowed)
    assert score.numpy()[0] == -INF and np.isfinite(score.numpy()[1])
    for create in (False, True):
        by_x, by_a = md.grad(score.sum(), [x, a], create_graph=create, retain_graph=True)
        np.testing.assert_array_equal(by_x.numpy(), [np.zeros((3, 2)), [[1, 0]] * 3])
        np.testing.assert_array_equal(by_a.numpy(), [[2, 0], [0, 0]])


# --- Identities -----------------------------------------------------------------------------------


def everything(emissions, transitions, mask, start, end):
    args = emissions, transitions, mask, start, end
    return [
        crf.log_partition(*args), crf.marginals(*args), crf.entropy(*args),
        *crf.viterbi(*args), *crf.viterbi_k_best(*args, k=3),
    ]  # fmt: skip


@pytest.mark.parametrize("filling", [1e30, -INF, np.nan])
def test_padding_never_matters(filling):
    emissions, transitions, start, end = model(4, 7, 3)
    mask = random_mask(4, 7)
    first = everything(emissions, transitions, mask, start, end)
    other = np.where(mask[:, :, None], emissions, filling)
    for x, y in zip(first, everything(other, transitions, mask, start, end), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-12)
    tensor = md.tensor(other, requires_grad=True)
    log_z = crf.log_partition(tensor, transitions, mask, start, end)
    for create in (False, True):
        (g,) = md.grad(log_z.sum(), [tensor], create_graph=create, retain_graph=True)
        np.testing.assert_allclose(g.numpy(), first[1], atol=1e-12)


def test_a_gap_joins_its_neighbours():
    emissions, transitions, start, end = model(1, 6, 3)
    mask = np.array([[False, True, False, False, True, True]])
    dense = [emissions[:, mask[0]], transitions, None, start, end]
    gaps = everything(emissions, transitions, mask, start, end)
    for x, y in zip(gaps, everything(*dense), strict=True):
        kept = x[..., mask[0]] if x.dtype.kind == "i" else x[:, mask[0]] if x.ndim == 3 else x
        np.testing.assert_allclose(kept, y, atol=1e-12)


def test_the_batch_is_its_items():
    emissions, transitions, start, end = model(5, 6, 3)
    mask = random_mask(5, 6)
    together = everything(emissions, transitions, mask, start, end)
    for b in range(5):
        rows = slice(b, b + 1)
        alone = everything(emissions[rows], transitions, mask[rows], start, end)
        for x, y in zip(together, alone, strict=True):
            np.testing.assert_allclose(x[rows], y, atol=1e-12)


def test_shifts():
    """A constant on all tags of a position moves all scores by it, and no probability."""
    emissions, transitions, start, end = model(3, 5, 3)
    mask = random_mask(3, 5)
    shift = np.random.default_rng(5).normal(size=(3, 5, 1))
    first = everything(emissions, transitions, mask, start, end)
    moved = everything(emissions + shift, transitions, mask, start, end)
    total = np.where(mask, shift[:, :, 0], 0.0).sum(1)
    for i, (x, y) in enumerate(zip(first, moved, strict=True)):
        by = {0: total, 4: total, 6: total[:, None]}.get(i, 0.0)
        np.testing.assert_allclose(x + by, y, atol=1e-12)


def test_entropy_is_log_z_less_the_expected_score():
    emissions, transitions, start, end = model(3, 6, 4)
    tensors = [md.tensor(x, requires_grad=True) for x in (emissions, transitions, start, end)]
    log_z = crf.log_partition(*tensors[:2], None, *tensors[2:])
    gradients = md.grad(log_z.sum(), tensors)
    expected = sum(np.vdot(g.numpy(), x.numpy()) for g, x in zip(gradients, tensors, strict=True))
    entropy = crf.entropy(emissions, transitions, None, start, end)
    np.testing.assert_allclose(entropy.sum(), log_z.numpy().sum() - expected, atol=1e-12)


@pytest.mark.parametrize(("batch", "time"), [(0, 3), (2, 0), (0, 0)])
def test_empty_batches_and_rows(batch, time):
    emissions, transitions, start, end = model(batch, time, 2)
    x = md.tensor(emissions, requires_grad=True)
    log_z = crf.log_partition(x, transitions, None, start, end)
    assert (log_z.numpy() == np.zeros(batch)).all()
    assert md.grad(log_z.sum(), [x])[0].shape == emissions.shape
    paths, scores = crf.viterbi(emissions, transitions, None, start, end)
    assert paths.shape == (batch, time) and (scores == np.zeros(batch)).all()
    assert crf.viterbi_k_best(emissions, transitions, k=3)[0].shape == (batch, 3, time)
    assert crf.sample(emissions, transitions, n=3).shape == (batch, 3, time)
    assert crf.path_score(emissions, np.zeros((batch, time), int), transitions).shape == (batch,)


@pytest.mark.parametrize("tags", [12, 200])
def test_tags_of_small_integers_do_not_overflow(tags):
    """tag * tags + tag is beyond int8 and uint8."""
    kind = "int8" if tags < 128 else "uint8"
    emissions, transitions, start, end = model(2, 4, tags)
    path = np.random.default_rng(1).integers(0, tags, (2, 4))
    gradients = []
    for given in (path, path.astype(kind)):
        x = md.tensor(transitions, requires_grad=True)
        (gradient,) = md.grad(crf.path_score(emissions, given, x, None, start, end).sum(), [x])
        gradients.append(gradient.numpy())
    np.testing.assert_array_equal(*gradients)


def test_float16_sums_in_float32_to_second_order():
    emissions, transitions, _, _ = model(2, 60, 3, scale=3.0, dtype=np.float16)
    for create_graph in (False, True):
        x, y = (md.tensor(a, requires_grad=True) for a in (emissions, transitions))
        log_z = crf.log_partition(x, y)
        marginals, steps = md.grad(log_z.sum(), [x, y], create_graph=create_graph)
        assert marginals.dtype == steps.dtype == np.float16
        np.testing.assert_allclose(marginals.numpy().sum(axis=2), 1.0, atol=2e-3)
        np.testing.assert_allclose(steps.numpy().astype(float).sum(), 2 * 59, rtol=2e-3)


@pytest.mark.parametrize(("batch", "time"), [(2, 0), (2, 1), (0, 3), (0, 1)])
def test_rows_without_steps_have_gradient_zero_by_transitions(batch, time):
    for create_graph in (False, True):
        scores = [md.tensor(x, requires_grad=True) for x in model(batch, time, 2)]
        emissions, transitions, start, end = scores
        log_z = crf.log_partition(emissions, transitions, None, start, end)
        gradients = md.grad(log_z.sum(), scores, create_graph=create_graph)
        assert [g.shape for g in gradients] == [x.shape for x in scores]
        assert not gradients[1].numpy().any()


def test_inputs_are_not_written_to():
    arrays = model(1, 4, 3)  # one row: its transposed array is contiguous, and could be shared
    before = [x.copy() for x in arrays]
    emissions, transitions, start, end = arrays
    everything(emissions, transitions, np.ones((1, 4), bool), start, end)
    crf.sample(emissions, transitions, None, start, end)
    for x, y in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(x, y)


# --- Sampling -------------------------------------------------------------------------------------


def test_sampling_frequencies():
    emissions, transitions, start, end = model(2, 4, 3)
    mask = np.array([[True, True, True, True], [False, True, False, True]])
    allowed = ~np.eye(3, dtype=bool)
    limits = {"allowed": allowed, "allowed_end": np.array([True, True, False])}
    n = 20_000
    args = emissions, transitions, mask, start, end
    paths = crf.sample(*args, **limits, generator=Generator(7), n=n)
    assert paths.shape == (2, n, 4)
    transitions, end = forbid(transitions, allowed), forbid(end, limits["allowed_end"])
    for b in range(2):
        found = enumerate_paths(emissions[b], transitions, start, end, mask[b])
        weights = np.exp([score for score, _ in found])
        p = weights / weights.sum()
        codes = (paths[b] + 1) @ 4 ** np.arange(4)
        hits = np.array([(codes == (path + 1) @ 4 ** np.arange(4)).sum() for _, path in found])
        assert hits.sum() == n and (hits[p == 0] == 0).all()
        deviation = np.sqrt(n * p * (1 - p))
        assert (np.abs(hits - n * p) <= 5 * deviation + 1e-9).all()


def test_sampling_uses_the_given_generator_or_minidls():
    emissions, transitions, _, _ = model(2, 20, 3)
    same = [crf.sample(emissions, transitions, generator=Generator(1)) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    md.seed(3)
    first = crf.sample(emissions, transitions)
    assert (first != crf.sample(emissions, transitions)).any()
    md.seed(3)
    np.testing.assert_array_equal(first, crf.sample(emissions, transitions))


# --- Ties, types and errors -----------------------------------------------------------------------


def test_ties_take_the_first_tag_and_k_best_paths_differ():
    emissions, transitions = np.zeros((1, 3, 2)), np.zeros((2, 2))
    paths, _ = crf.viterbi(emissions, transitions)
    np.testing.assert_array_equal(paths, [[0, 0, 0]])
    paths, scores = crf.viterbi_k_best(emissions, transitions, k=10)
    assert len({tuple(path) for path in paths[0, :8]}) == 8
    assert (scores[0, :8] == 0).all() and (scores[0, 8:] == -INF).all()


def test_tensors_give_tensors_and_arrays_arrays():
    emissions, transitions, _, _ = model(1, 2, 2)
    tensors = md.tensor(emissions), md.tensor(transitions)
    for function in (crf.log_partition, crf.marginals, crf.entropy, crf.sample):
        assert isinstance(function(emissions, transitions), np.ndarray)
        assert isinstance(function(*tensors), md.Tensor)


def test_device_arrays_are_not_waited_for(device):
    """On the stand-in: the training step and decoding stay on the device."""
    if device == "cpu":
        device = "strict"
    from minidl.testing import strict

    emissions, transitions, start, end = model(3, 4, 3)
    tags, mask = np.zeros((3, 4), int), random_mask(3, 4)
    limit = ~np.eye(3, k=1, dtype=bool)
    moved = [md.tensor(x, True, device=device) for x in (emissions, transitions, start, end)]
    where = md.tensor(mask, device=device), md.tensor(limit, device=device)
    labels = md.tensor(tags, device=device)
    with strict.forbid_sync():
        args = moved[1], where[0], *moved[2:], where[1]
        loss = crf.negative_log_likelihood(moved[0], labels, *args)
        loss.backward()
        paths, _ = crf.viterbi(moved[0], *args)
        drawn = crf.sample(moved[0], *args, generator=Generator(0), n=2)
    host = [md.tensor(x, True) for x in (emissions, transitions, start, end)]
    args = host[1], mask, *host[2:], limit
    expected = crf.negative_log_likelihood(host[0], tags, *args)
    expected.backward()
    np.testing.assert_allclose(loss.numpy(), expected.numpy(), rtol=1e-12)
    for x, y in zip(moved, host, strict=True):
        np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), atol=1e-12)
    np.testing.assert_array_equal(paths.numpy(), crf.viterbi(host[0], *args)[0].numpy())
    again = crf.sample(host[0], *args, generator=Generator(0), n=2)
    np.testing.assert_array_equal(drawn.numpy(), again.numpy())


def test_reductions():
    emissions, transitions, _, _ = model(3, 4, 2)
    tags = np.zeros((3, 4), int)
    each = crf.negative_log_likelihood(emissions, tags, transitions, reduction="none")
    for name, expected in (("sum", each.sum()), ("mean", each.mean())):
        got = crf.negative_log_likelihood(emissions, tags, transitions, reduction=name)
        np.testing.assert_allclose(got, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"emissions": np.zeros((2, 3))}, ShapeError, r"emissions: expected shape \(batch, time"),
        ({"emissions": np.zeros((2, 3, 0))}, ShapeError, "at least one tag"),
        ({"emissions": np.zeros((2, 3, 2), int)}, DtypeError, "emissions: expected floats"),
        ({"transitions": np.zeros((3, 3))}, ShapeError, r"transitions: expected shape \(2, 2\)"),
        ({"start": np.zeros(3)}, ShapeError, r"start: expected shape \(2,\)"),
        ({"end": np.zeros((2, 1))}, ShapeError, r"end: expected shape \(2,\)"),
        ({"mask": np.ones((2, 4), bool)}, ShapeError, r"mask: expected shape \(2, 3\)"),
        ({"mask": np.ones((2, 3))}, DtypeError, "mask: expected booleans"),
        ({"allowed": np.ones((2, 2))}, DtypeError, "allowed: expected booleans"),
        ({"allowed_start": np.ones(3, bool)}, ShapeError, r"allowed_start: expected shape \(2,\)"),
        ({"allowed_end": np.ones(3, bool)}, ShapeError, r"allowed_end: expected shape \(2,\)"),
    ],
)
@pytest.mark.parametrize("name", ["log_partition", "viterbi"])
def test_errors_name_op_and_argument(name, change, error, message):
    arguments = {"emissions": np.zeros((2, 3, 2)), "transitions": np.zeros((2, 2)), **change}
    with pytest.raises(error, match=f"{name}: .*{message}"):
        getattr(crf, name)(**arguments)


@pytest.mark.parametrize(
    ("tags", "error", "message"),
    [
        (np.full((2, 3), 2), ValueError, "tags: expected 0 to 1 where kept, got 2"),
        (np.full((2, 3), -1), ValueError, "tags: expected 0 to 1 where kept, got -1"),
        (np.zeros((2, 3)), DtypeError, "tags: expected integers"),
        (np.zeros((2, 2), int), ShapeError, r"tags: expected shape \(2, 3\)"),
    ],
)
def test_errors_of_tags(tags, error, message):
    emissions, transitions = np.zeros((2, 3, 2)), np.zeros((2, 2))
    for function in (crf.path_score, crf.negative_log_likelihood):
        with pytest.raises(error, match=message):
            function(emissions, tags, transitions)


def test_errors_of_counts():
    emissions, transitions = np.zeros((2, 3, 2)), np.zeros((2, 2))
    with pytest.raises(ValueError, match="viterbi_k_best: k: expected"):
        crf.viterbi_k_best(emissions, transitions, k=0)
    with pytest.raises(ValueError, match="sample: n: expected"):
        crf.sample(emissions, transitions, n=-1)
    with pytest.raises(ValueError, match="reduction"):
        crf.negative_log_likelihood(emissions, np.zeros((2, 3), int), transitions, reduction="all")
