"""The CRF's kernels against the definition, against each other, and where each would fail."""

import numpy as np
import pytest

import minidl as md
from minidl.autodiff import grad
from minidl.functional import crf, semirings
from minidl.ops import crf as kernels

INF = float("inf")


def model(batch, time, tags, seed=0, scale=1.0, dtype=np.float64):
    """Random emissions, transitions, start and end."""
    draw = np.random.default_rng(seed)
    shapes = (batch, time, tags), (tags, tags), (tags,), (tags,)
    return [scale * draw.normal(size=shape).astype(dtype) for shape in shapes]


def random_mask(batch, time, seed=0):
    return np.random.default_rng(seed).random((batch, time)) < 0.6


def forbid(scores, allowed):
    return np.where(allowed, scores, -INF)


def both_kernels(emissions, transitions, start, end, mask, g):
    """log Z and gradients in exponential space (with its refused rows), and in log space."""
    order, kept = kernels.pack(mask)
    packed = kernels._ordered(emissions, order)
    fast = kernels.Exponential(packed, transitions, start, end, kept)
    slow = kernels.Logarithmic(packed, transitions, start, end, kept)
    return fast, slow, fast.backward(np.where(fast.refused, 0.0, g)), slow.backward(g)


@pytest.mark.parametrize("density", [1.0, 0.5])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_exponential_space_agrees_with_log_space(scale, density):
    emissions, transitions, start, end = model(16, 12, 4, scale=scale)
    draw = np.random.default_rng(1)
    transitions = forbid(transitions, (draw.random((4, 4)) < density) | np.eye(4, dtype=bool))
    mask = random_mask(16, 12)
    g = draw.normal(size=16)
    fast, slow, by_fast, by_slow = both_kernels(emissions, transitions, start, end, mask, g)
    assert not fast.refused.any()
    np.testing.assert_allclose(fast.log_z, slow.log_z, atol=1e-10)
    for x, y in zip(by_fast, by_slow, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-10)


def extreme(kind):
    """Scores on which exponential space would fail in some rows, or all."""
    emissions, transitions, start, end = model(6, 8, 3)
    if kind == "emissions":  # the only way is through what exp() takes for 0
        emissions[1, 3] = [0.0, -2000.0, -2000.0]
        emissions[1, 4] = [-2000.0, 0.0, -3000.0]
        transitions[0, 1] = -INF
    elif kind == "huge":
        emissions[::2] *= 1e6
    elif kind == "transitions":
        transitions[:] = -1e4
    elif kind == "one way":  # left to right, against the emissions: alpha shrinks step by step
        transitions[np.tril_indices(3, -1)] = -INF
        end[:2] = -INF
        emissions[:3, :, 0] += 400.0
    elif kind == "inf":
        emissions[0, 2, :2] = -INF
        emissions[1, 2] = -INF
    return emissions, transitions, start, end


@pytest.mark.parametrize("kind", ["emissions", "huge", "transitions", "one way", "inf"])
def test_extreme_scores(kind):
    emissions, transitions, start, end = extreme(kind)
    mask = random_mask(6, 8, seed=3)
    mask[:3] = True
    tensors = [md.tensor(x, requires_grad=True) for x in (emissions, transitions, start, end)]
    log_z = crf.log_partition(*tensors[:2], mask, *tensors[2:])
    exact = semirings.scan(semirings.LOG, emissions, transitions, mask, start, end)[0][:, 0]
    np.testing.assert_allclose(log_z.numpy(), exact, rtol=1e-12, atol=1e-9)
    by_kernel = grad(log_z.sum(), tensors)
    log_z = crf.log_partition(*tensors[:2], mask, *tensors[2:])
    by_definition = grad(log_z.sum(), tensors, create_graph=True)
    for x, y in zip(by_kernel, by_definition, strict=True):
        assert np.isfinite(x.numpy()).all()
        np.testing.assert_allclose(x.numpy(), y.numpy(), atol=1e-9)


# Two tags that never change into each other: log Z is that of two paths. `gain` is what tag 1 has
# over tag 0 at each step; it wins in the end, after exponential space has lost sight of it.
COMEBACKS = {
    "by underflow": [-100.0] * 8 + [100.0] * 12,
    "by one dropped factor": [-200.0] + [100.0] * 5,
    "by a factor whose exp is 0": [-1000.0] + [100.0] * 15,
    "by a factor whose exp is 0 in float32": [-120.0] + [60.0] * 5,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gain", COMEBACKS.values(), ids=COMEBACKS.keys())
def test_no_path_is_lost_for_good(gain, dtype):
    emissions = np.zeros((2, len(gain), 2), dtype)
    emissions[0, :, 1] = gain
    x = md.tensor(emissions, requires_grad=True)
    stay = np.eye(2, dtype=bool)
    log_z = crf.log_partition(x, np.zeros((2, 2), dtype), allowed=stay)
    expected = [np.logaddexp(0.0, sum(gain)), np.log(2)]
    np.testing.assert_allclose(log_z.numpy(), expected, rtol=1e-6)
    log_z.sum().backward()
    np.testing.assert_allclose(x.grad.numpy()[0], [[0, 1]] * len(gain), atol=1e-6)
    np.testing.assert_allclose(x.grad.numpy()[1], 0.5, atol=1e-6)


def test_a_tag_that_cannot_be_reached_does_not_overflow():
    emissions = np.zeros((1, 30, 2))
    emissions[:, :, 1] = 100.0
    x = md.tensor(emissions, requires_grad=True)
    limits = {"allowed": np.eye(2, dtype=bool), "allowed_start": np.array([True, False])}
    transitions = md.tensor(np.zeros((2, 2)), requires_grad=True)
    crf.log_partition(x, transitions, **limits).sum().backward()
    np.testing.assert_allclose(x.grad.numpy()[0], [[1, 0]] * 30, atol=1e-12)
    np.testing.assert_allclose(transitions.grad.numpy(), [[29, 0], [0, 0]], atol=1e-12)


def test_both_spaces_are_used():
    emissions, transitions, start, end = extreme("emissions")
    kept = np.ones((6, 8), bool)
    fast = kernels.Exponential(emissions, transitions, start, end, kept)
    assert fast.refused.tolist() == [False, True, False, False, False, False]


def test_a_penalty_of_minus_ten_thousand_stays_in_exponential_space():
    emissions, transitions, start, end = model(3, 20, 4)
    transitions[0, 1:] = -1e4
    fast = kernels.Exponential(emissions, transitions, start, end, np.ones((3, 20), bool))
    exact = semirings.scan(semirings.LOG, emissions, transitions, None, start, end)[0][:, 0]
    assert not fast.refused.any()
    np.testing.assert_allclose(fast.log_z, exact, rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes_are_kept(dtype):
    tensors = [md.tensor(x, requires_grad=True) for x in model(3, 4, 3, dtype=dtype)]
    emissions, transitions, start, end = tensors
    tags = np.zeros((3, 4), int)
    loss = crf.negative_log_likelihood(emissions, tags, transitions, None, start, end)
    loss.backward()
    _, scores = crf.viterbi(emissions, transitions)
    found = [loss, scores, crf.entropy(emissions, transitions), *(x.grad for x in tensors)]
    found += [
        crf.marginals(emissions, transitions),
        crf.marginals(emissions, transitions, pairwise=True),
    ]
    assert {x.dtype for x in found} == {np.dtype(dtype)}


def test_float32_is_near_float64():
    exact = model(8, 30, 5, scale=3.0)
    mask = random_mask(8, 30)
    results = []
    for dtype in (np.float32, np.float64):
        emissions, transitions, start, end = (x.astype(np.float32).astype(dtype) for x in exact)
        args = emissions, transitions, mask, start, end
        results.append((crf.log_partition(*args), crf.marginals(*args)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_five_thousand_steps(dtype):
    emissions, transitions, start, end = model(2, 5000, 3, dtype=dtype)
    mask = np.ones((2, 5000), bool)
    mask[1, 4000:] = False
    x = md.tensor(emissions, requires_grad=True)
    log_z = crf.log_partition(x, transitions, mask, start, end)
    log_z.sum().backward()
    np.testing.assert_allclose(x.grad.numpy().sum(2), mask, atol=1e-5)
    wide = [a.astype(np.float64) for a in (emissions, transitions, start, end)]
    slow = kernels.Logarithmic(*wide, mask)
    np.testing.assert_allclose(log_z.numpy(), slow.log_z, rtol=1e-6)
    paths, scores = crf.viterbi(emissions, transitions, mask, start, end)
    again = crf.path_score(emissions, paths, transitions, mask, start, end)
    np.testing.assert_allclose(scores, again, rtol=1e-4)


# --- Another implementation -----------------------------------------------------------------------


def test_against_pytorch_crf():
    torch, torchcrf = pytest.importorskip("torch"), pytest.importorskip("torchcrf")
    emissions, transitions, start, end = model(6, 10, 4)
    lengths = np.array([10, 1, 4, 7, 10, 2])
    mask = np.arange(10) < lengths[:, None]
    tags = np.random.default_rng(0).integers(0, 4, (6, 10))
    theirs = torchcrf.CRF(4, batch_first=True).double()
    with torch.no_grad():
        for own, value in (("transitions", transitions), ("start_transitions", start)):
            getattr(theirs, own).copy_(torch.from_numpy(value))
        theirs.end_transitions.copy_(torch.from_numpy(end))
    x = torch.from_numpy(emissions).requires_grad_()
    their_loss = -theirs(x, torch.from_numpy(tags), torch.from_numpy(mask), reduction="sum")
    their_loss.backward()
    ours = [md.tensor(a, requires_grad=True) for a in (emissions, transitions, start, end)]
    args = ours[1], mask, *ours[2:]
    loss = crf.negative_log_likelihood(ours[0], tags, *args, reduction="sum")
    loss.backward()
    np.testing.assert_allclose(loss.item(), their_loss.item(), rtol=1e-12)
    gradients = [x.grad, theirs.transitions.grad]
    gradients += [theirs.start_transitions.grad, theirs.end_transitions.grad]
    for own, their in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(own.grad.numpy(), their.numpy(), atol=1e-12)
    paths, _ = crf.viterbi(ours[0], *args)
    decoded = theirs.decode(x, torch.from_numpy(mask))
    assert [path[path >= 0].tolist() for path in paths.numpy()] == decoded
