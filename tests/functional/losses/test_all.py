"""What holds for every loss: values, reductions, masks, gradients, dtypes, devices, PyTorch."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy import log, sqrt

import minidl as md
from minidl import functional
from minidl.errors import DtypeError, ShapeError
from minidl.testing import check_gradients, strict

rng = np.random.default_rng(0)
CLASSES = 5
WEIGHTS = np.array([1.0, 0.5, 2.0, 3.0, 0.25])


def reals(shape):
    return rng.normal(size=shape) * 1.5


def shares(shape):
    return rng.uniform(0.02, 0.98, shape)


def bits(shape):
    return rng.integers(0, 2, shape)


def signs(shape):
    return 2 * rng.integers(0, 2, shape) - 1


def labels(shape):
    return rng.integers(0, CLASSES, shape)


def distributions(shape):
    x = rng.uniform(0.05, 1, shape)
    return x / x.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_softmax(x):
    return x - log(np.exp(x).sum(-1, keepdims=True))


def picked(x, t):
    return np.take_along_axis(x, t[..., None], -1)[..., 0]


def length(x):
    return sqrt((x * x).sum(-1))


@dataclass
class Case:
    """A loss, what makes its arguments, its formula in NumPy, and PyTorch's function.

    rows: which arguments have a last axis more than the losses.
    """

    function: Callable
    make: tuple
    formula: Callable
    torch: Callable | None = None
    options: dict = field(default_factory=dict)
    rows: tuple = ()
    size: int = CLASSES

    def arguments(self, shape, dtype=np.float32):
        made = [
            make((*shape, self.size) if i in self.rows else shape)
            for i, make in enumerate(self.make)
        ]
        return [a.astype(dtype) if a.dtype.kind == "f" else a for a in made]

    def __call__(self, *args, **options):
        return self.function(*args, **self.options, **options)

    def losses(self, *args):
        return self.formula(*(a.astype(np.float64) if a.dtype.kind == "f" else a for a in args))


def weighted(x, t):
    return -WEIGHTS[t] * picked(log_softmax(x), t)


def smoothed(x, t, weights=None, e=0.2):
    w = np.ones(CLASSES) if weights is None else weights
    return w[t] * (1 - e) * -picked(log_softmax(x), t) - e * (w * log_softmax(x)).mean(-1)


def focal(x, t, alpha=0.25, gamma=2.0):
    q = np.where(t == 1, sigmoid(x), 1 - sigmoid(x))
    return -np.where(t == 1, alpha, 1 - alpha) * (1 - q) ** gamma * log(q)


def binary(x, t, w=1.0):
    return -w * t * log(sigmoid(x)) - (1 - t) * log(1 - sigmoid(x))


def huber(x, t, delta=1.0):
    d = np.abs(x - t)
    return np.where(d < delta, d * d / 2, delta * (d - delta / 2))


def hinge_of_classes(x, t):
    others = np.where(np.arange(x.shape[-1]) == t[..., None], -np.inf, x)
    return np.maximum(0, 1 + others.max(-1) - picked(x, t))


def contrastive(x, y, alike, m=2.5):
    d = length(x - y)
    return np.where(alike, d * d, np.maximum(0, m - d) ** 2) / 2


def torch_cross_entropy(f, x, t, weight=None, **options):
    if weight is not None:
        options["weight"] = x.new_tensor(weight)
    t = t.reshape(-1) if t.dim() < x.dim() else t.reshape(-1, CLASSES)
    losses = f.cross_entropy(x.reshape(-1, CLASSES), t, **options)
    return losses.reshape(x.shape[:-1]) if losses.dim() else losses


def torch_binary(f, x, t, reduction, w=None):
    weight = None if w is None else x.new_tensor(w)
    return f.binary_cross_entropy_with_logits(x, t.to(x.dtype), pos_weight=weight,
                                              reduction=reduction)  # fmt: skip


def torch_kl(f, x, t, reduction):
    losses = f.kl_div(x, t, reduction="none").sum(-1)
    return {"mean": losses.mean, "sum": losses.sum, "none": lambda: losses}[reduction]()


S = functional.softmax_cross_entropy
INTEGERS = (S, functional.categorical_hinge)  # their masks have the shape of the targets
W = {"class_weights": WEIGHTS}
E = {"label_smoothing": 0.2}
CASES = {
    "cross_entropy": Case(S, (reals, labels), lambda x, t: -picked(log_softmax(x), t),
                          torch_cross_entropy, rows=(0,)),
    "cross_entropy_weights": Case(
        S, (reals, labels), weighted,
        lambda f, x, t, **o: torch_cross_entropy(f, x, t, WEIGHTS, **o), W, rows=(0,)),
    "cross_entropy_smoothing": Case(
        S, (reals, labels), smoothed,
        lambda f, x, t, **o: torch_cross_entropy(f, x, t, **E, **o), E, rows=(0,)),
    "cross_entropy_both": Case(
        S, (reals, labels), lambda x, t: smoothed(x, t, WEIGHTS),
        lambda f, x, t, **o: torch_cross_entropy(f, x, t, WEIGHTS, **E, **o), W | E, rows=(0,)),
    "soft": Case(
        functional.soft_target_cross_entropy, (reals, distributions),
        lambda x, t: -(t * log_softmax(x)).sum(-1), torch_cross_entropy, rows=(0, 1)),
    "soft_both": Case(
        functional.soft_target_cross_entropy, (reals, distributions),
        lambda x, t: -((t * 0.8 + 0.2 / CLASSES) * WEIGHTS * log_softmax(x)).sum(-1),
        lambda f, x, t, **o: torch_cross_entropy(f, x, t, WEIGHTS, **E, **o), W | E, rows=(0, 1)),
    "binary": Case(functional.binary_cross_entropy_with_logits, (reals, shares), binary,
                   torch_binary),
    "binary_weight": Case(
        functional.binary_cross_entropy_with_logits, (reals, bits),
        lambda x, t: binary(x, t, 3.0),
        lambda f, x, t, **o: torch_binary(f, x, t, w=3.0, **o), {"pos_weight": 3.0}),
    "binary_smoothing": Case(
        functional.binary_cross_entropy_with_logits, (reals, bits),
        lambda x, t: binary(x, t * 0.8 + 0.1), None, E),
    "focal": Case(functional.binary_focal_with_logits, (reals, bits), focal),
    "focal_steep": Case(
        functional.binary_focal_with_logits, (reals, bits),
        lambda x, t: focal(x, t, 0.5, 0.7) * 2, None, {"alpha": None, "gamma": 0.7}),
    "squared": Case(functional.mean_squared_error, (reals, reals), lambda x, t: (x - t) ** 2,
                    lambda f, *a, **o: f.mse_loss(*a, **o)),
    "absolute": Case(functional.mean_absolute_error, (reals, reals), lambda x, t: np.abs(x - t),
                     lambda f, *a, **o: f.l1_loss(*a, **o)),
    "huber": Case(functional.huber, (reals, reals), huber,
                  lambda f, *a, **o: f.huber_loss(*a, **o)),
    "huber_narrow": Case(
        functional.huber, (reals, reals), lambda x, t: huber(x, t, 0.3),
        lambda f, *a, **o: f.huber_loss(*a, delta=0.3, **o), {"delta": 0.3}),
    "log_cosh": Case(functional.log_cosh, (reals, reals), lambda x, t: log(np.cosh(x - t))),
    "poisson": Case(functional.poisson, (reals, shares), lambda x, t: np.exp(x) - t * x,
                    lambda f, *a, **o: f.poisson_nll_loss(*a, **o)),
    "poisson_rate": Case(
        functional.poisson, (shares, shares), lambda x, t: x - t * log(x + 1e-8),
        lambda f, *a, **o: f.poisson_nll_loss(*a, log_input=False, **o), {"log_input": False}),
    "kl": Case(
        functional.kl_divergence, (lambda s: log(distributions(s)), distributions),
        lambda x, t: (t * (log(t) - x)).sum(-1), torch_kl, rows=(0, 1)),
    "hinge": Case(functional.hinge, (reals, signs), lambda x, t: np.maximum(0, 1 - t * x)),
    "squared_hinge": Case(functional.squared_hinge, (reals, signs),
                          lambda x, t: np.maximum(0, 1 - t * x) ** 2),
    "categorical_hinge": Case(functional.categorical_hinge, (reals, labels), hinge_of_classes,
                              rows=(0,)),
    "cosine": Case(
        functional.negative_cosine_similarity, (reals, reals),
        lambda x, y: -(x * y).sum(-1) / length(x) / length(y), rows=(0, 1)),
    "triplet": Case(
        functional.triplet_margin, (reals, reals, reals),
        lambda a, p, n: np.maximum(0, length(a - p) - length(a - n) + 1),
        lambda f, *a, **o: f.triplet_margin_loss(*a, eps=0.0, **o), rows=(0, 1, 2)),
    "contrastive": Case(functional.contrastive, (reals, reals, bits), contrastive, None,
                        {"margin": 2.5}, rows=(0, 1)),
    "ranking": Case(
        functional.margin_ranking, (reals, reals, signs),
        lambda x, y, t: np.maximum(0, 0.5 - t * (x - y)),
        lambda f, *a, **o: f.margin_ranking_loss(*a, margin=0.5, **o), {"margin": 0.5}),
}  # fmt: skip
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def mean_of(case, args, mask=...):
    """The mean of the losses where the mask keeps them, weighted where the classes are."""
    losses = case.losses(*args)[mask]
    if case.function is S and "class_weights" in case.options:
        return losses.sum() / WEIGHTS[args[1]][mask].sum()
    return losses.mean()


def differentiated(case, args, dtype=None, device="cpu", **options):
    """The value, and the gradients of the floating arguments that have one."""
    tensors = [md.tensor(a, device=device, dtype=dtype if a.dtype.kind == "f" else None)
               for a in args]  # fmt: skip
    constant = case.function is functional.binary_focal_with_logits
    for i, tensor in enumerate(tensors):
        tensor.requires_grad = tensor.dtype.kind == "f" and not (constant and i)
    value = case(*tensors, **options)
    value.backward()
    return value, [t.grad.numpy() for t in tensors if t.requires_grad]


@EACH
class TestAll:
    def test_values_and_reductions(self, case):
        args = case.arguments((4, 3))
        expected = case.losses(*args)
        found = np.asarray(case(*args, reduction="none"))
        np.testing.assert_allclose(found, expected, rtol=3e-5, atol=1e-6)
        assert float(case(*args)) == pytest.approx(mean_of(case, args), rel=1e-5)
        assert float(case(*args, reduction="sum")) == pytest.approx(expected.sum(), rel=1e-5)
        with pytest.raises(ValueError, match="'mean', 'sum' or 'none'"):
            case(*args, reduction="avg")

    def test_gradients(self, case):
        args = case.arguments((4, 3), np.float64)
        x, rest = args[0], args[1:]
        of_rows = np.array([True, False, False, True])
        for mask in (rng.uniform(size=(4, 3)) < 0.6, of_rows):
            if mask.ndim == 2 or case.function not in INTEGERS:
                check_gradients(lambda x, mask=mask: case(x, *rest, mask=mask), x, dtypes=False)

    def test_what_a_mask_leaves_out_never_matters(self, case):
        args = case.arguments((4, 3))
        mask = rng.uniform(size=(4, 3)) < 0.5
        whole, first = differentiated(case, args, mask=mask)
        assert float(whole) == pytest.approx(mean_of(case, args, mask), rel=1e-5)
        spoiled = [a.copy() for a in args]
        for i, a in enumerate(spoiled):
            a[~mask] = -7 if a.dtype.kind != "f" else (np.inf if i else np.nan)
        masked, gradients = differentiated(case, spoiled, mask=mask)
        assert float(masked) == float(whole)
        for expected, found in zip(first, gradients, strict=True):
            assert not found[~mask].any() and np.isfinite(found).all()
            np.testing.assert_array_equal(found, expected)
        assert not np.asarray(case(*spoiled, mask=mask, reduction="none"))[~mask].any()

    def test_a_graph_of_the_gradient_does_not_see_what_is_masked(self, case):
        args = case.arguments((4, 3))
        mask = np.array([[True], [False], [True], [True]]) & np.ones((4, 3), bool)
        args[0][~mask] = np.nan
        x = md.tensor(args[0], requires_grad=True)
        (g,) = md.grad(case(x, *args[1:], mask=mask), [x], create_graph=True)
        (h,) = md.grad((g * g).sum(), [x], allow_unused=True) if g.requires_grad else (None,)
        assert np.isfinite(g.numpy()).all()
        assert h is None or np.isfinite(h.numpy()).all()

    def test_nothing_counts(self, case):
        args = case.arguments((4, 3))
        value, gradients = differentiated(case, args, mask=np.zeros((4, 3), bool))
        assert float(value) == 0 and not any(g.any() for g in gradients)
        assert float(case(*case.arguments((0, 3)))) == 0

    def test_never_broadcasts(self, case):
        args = case.arguments((4, 3))
        for position in range(1, len(args)):
            for changed in (lambda a: a[:, :1], lambda a: a[:1], lambda a: a[0], lambda a: a[None]):
                given = [changed(a) if i == position else a for i, a in enumerate(args)]
                with pytest.raises(ShapeError, match=r"expected shape \(4, 3.*do not broadcast"):
                    case(*given)
        with pytest.raises(ShapeError, match="mask: expected shape"):
            case(*args, mask=np.ones((4, 1), bool))

    def test_a_mask_is_boolean(self, case):
        with pytest.raises(DtypeError, match="True = counts"):
            case(*case.arguments((4, 3)), mask=np.ones((4, 3), np.int64))

    def test_lists_and_float16(self, case):
        args = case.arguments((4, 3))
        assert case(*args).dtype == np.float32
        listed = case(*(a.tolist() for a in args))
        assert float(listed) == pytest.approx(float(case(*args)), rel=1e-6)
        half = [a.astype(np.float16) if a.dtype.kind == "f" else a for a in args]
        wide = [a.astype(np.float32) if a.dtype.kind == "f" else a for a in half]
        mask = np.ones((4, 3), bool)
        for options in ({}, {"mask": mask}):
            found = case(*half, **options)
            assert found.dtype == np.float16
            assert float(found) == np.float16(float(case(*wide, **options)))

    def test_float16_sums_in_float32(self, case):
        args = [np.repeat(a, 20_000, axis=0) for a in case.arguments((1, 4))]
        half = [a.astype(np.float16) if a.dtype.kind == "f" else a for a in args]
        value = case(*half, mask=np.ones(half[-1].shape[:1] + (4,), bool))
        assert float(value) == pytest.approx(mean_of(case, half), rel=2e-2)

    def test_on_the_device_without_waiting(self, case):
        args = case.arguments((4, 3))
        mask = rng.uniform(size=(4, 3)) < 0.5
        expected, gradients = differentiated(case, args, mask=mask)
        tensors = [md.tensor(a, device="strict") for a in args]
        on_device = md.tensor(mask, device="strict")
        x = md.tensor(tensors[0], requires_grad=True)
        with strict.forbid_sync():
            value = case(x, *tensors[1:], mask=on_device)
            value.backward()
        assert float(value) == pytest.approx(float(expected), rel=1e-5)
        np.testing.assert_allclose(x.grad.numpy(), gradients[0], rtol=1e-4, atol=1e-6)

    def test_large_batches_in_two_threads_give_the_same_bits(self, case):
        args = case.arguments((200, 130))
        mask = rng.uniform(size=(200, 130)) < 0.5
        results = []
        for threads in (1, 2):
            with md.threads(threads):
                value, gradients = differentiated(case, args, mask=mask)
                results.append([value.numpy(), *gradients])
        for one, two in zip(*results, strict=True):
            np.testing.assert_array_equal(one, two)
        assert results[0][0] == pytest.approx(mean_of(case, args, mask), rel=1e-4)


THEIRS = {name: case for name, case in CASES.items() if case.torch}


@pytest.mark.parametrize("case", THEIRS.values(), ids=THEIRS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_pytorch(case, reduction, dtype):
    torch = pytest.importorskip("torch")
    f, tolerance = torch.nn.functional, 1e-5 if dtype == np.float32 else 1e-10
    args = case.arguments((4, 3), dtype)
    mask = rng.uniform(size=(4, 3)) < 0.6
    for kept in (None, mask):
        theirs = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in args]
        chosen = theirs if kept is None else [t[torch.tensor(kept)] for t in theirs]
        wanted = case.torch(f, *chosen, reduction=reduction)
        ours = [md.tensor(a, requires_grad=a.dtype.kind == "f") for a in args]
        value = case(*ours, mask=kept, reduction=reduction)
        found = value if kept is None or value.ndim == 0 else value[kept]
        np.testing.assert_allclose(found.numpy(), wanted.detach().numpy(), rtol=tolerance,
                                   atol=tolerance)  # fmt: skip
        wanted.sum().backward()
        value.sum().backward()
        for one, two in zip(ours, theirs, strict=True):
            if one.requires_grad:
                np.testing.assert_allclose(one.grad.numpy(), two.grad.numpy(),
                                           rtol=tolerance, atol=tolerance)  # fmt: skip
