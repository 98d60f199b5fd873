"""W8: what an engine costs where the arrays are small.

Three workloads: (a*b + c).tanh().sum() on 10 elements, forward and backward, 100 times; the same
for a chain of 200 ops; ten training steps of a perceptron 32-64-10 with Adam. All in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.registry import REFERENCE, SAME_ALLOCATOR, Run, implements, repeated

ELEMENTWISE, CHAIN, PERCEPTRON = "W8 elementwise x100", "W8 chain of 200", "W8 perceptron x10"
REPEATS, PAIRS, STEPS = 100, 100, 10
FACTOR = 1.5  # of the chain: y -> tanh(FACTOR * y), PAIRS times
BATCH, INPUTS, HIDDEN, CLASSES = 32, 32, 64, 10
RATE = 1e-3


def vectors() -> list[np.ndarray]:
    """a, b and c."""
    return list(np.random.default_rng(0).standard_normal((3, 10), np.float32))


def perceptron() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Inputs, classes, and the weights: kernel, bias, kernel, bias."""
    rng = np.random.default_rng(1)
    shapes = (INPUTS, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,)
    weights = [0.1 * rng.standard_normal(shape, np.float32) for shape in shapes]
    x = rng.standard_normal((BATCH, INPUTS), np.float32)
    return x, rng.integers(0, CLASSES, BATCH), weights


def often(step: Callable[[], Any], times: int) -> Run:
    """`run(count)` that takes `times` steps for one time."""
    steps = repeated(step)
    return lambda count: steps(count * times)


# --- minidl ---------------------------------------------------------------------------------------


@implements(ELEMENTWISE, "minidl")
def _() -> Run:
    import minidl as md

    a, b, c = (md.tensor(v, requires_grad=True) for v in vectors())

    def step() -> Any:
        a.grad = b.grad = c.grad = None
        total = (a * b + c).tanh().sum()
        total.backward()
        return total

    return often(step, REPEATS)


@implements(CHAIN, "minidl")
def _() -> Run:
    import minidl as md

    a = md.tensor(vectors()[0], requires_grad=True)

    def step() -> Any:
        a.grad = None
        y = a
        for _ in range(PAIRS):
            y = (y * FACTOR).tanh()
        total = y.sum()
        total.backward()
        return total

    return repeated(step)


@implements(PERCEPTRON, "minidl")
def _() -> Run:
    import minidl as md
    from minidl.functional.losses import softmax_cross_entropy
    from minidl.layers import Dense, Sequential

    x, classes, weights = perceptron()
    x, classes = md.tensor(x), md.tensor(classes)
    model = Sequential(
        [Dense(HIDDEN, activation="relu", input_size=INPUTS), Dense(CLASSES, input_size=HIDDEN)]
    )
    for parameter, value in zip(model.parameters(), weights, strict=True):
        parameter.assign_(value)
    optimizer = md.optimizers.Adam(model, RATE)

    def step() -> Any:
        optimizer.zero_grad()
        loss = softmax_cross_entropy(model(x), classes)
        loss.backward()
        optimizer.step()
        return loss

    return often(step, STEPS)


# --- PyTorch --------------------------------------------------------------------------------------


@implements(ELEMENTWISE, REFERENCE, SAME_ALLOCATOR)
def _() -> Run:
    import torch

    a, b, c = (torch.tensor(v, requires_grad=True) for v in vectors())

    def step() -> Any:
        a.grad = b.grad = c.grad = None
        total = (a * b + c).tanh().sum()
        total.backward()
        return total.detach()

    return often(step, REPEATS)


@implements(CHAIN, REFERENCE, SAME_ALLOCATOR)
def _() -> Run:
    import torch

    a = torch.tensor(vectors()[0], requires_grad=True)

    def step() -> Any:
        a.grad = None
        y = a
        for _ in range(PAIRS):
            y = (y * FACTOR).tanh()
        total = y.sum()
        total.backward()
        return total.detach()

    return repeated(step)


@implements(PERCEPTRON, REFERENCE, SAME_ALLOCATOR)
def _() -> Run:
    import torch
    from torch import nn

    x, classes, weights = perceptron()
    x, classes = torch.from_numpy(x), torch.from_numpy(classes)
    model = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(value.T))
    optimizer = torch.optim.Adam(model.parameters(), RATE)

    def step() -> Any:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), classes)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return often(step, STEPS)


# --- Python engines -------------------------------------------------------------------------------


class Adam:
    """Adam in place on NumPy arrays, for the engines that have none."""

    def __init__(self, parameters: list[np.ndarray]) -> None:
        self.moments = [(p, np.zeros_like(p), np.zeros_like(p)) for p in parameters]
        self.count = 0

    def step(self, gradients: Any) -> None:
        self.count += 1
        root = (1 - 0.999**self.count) ** 0.5
        rate = RATE * root / (1 - 0.9**self.count)
        for (p, m, v), g in zip(self.moments, gradients, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            p -= rate * m / (np.sqrt(v) + 1e-8 * root)


@implements(ELEMENTWISE, "autograd")
def _() -> Run:
    import autograd.numpy as anp
    from autograd import value_and_grad

    both = value_and_grad(lambda a, b, c: anp.sum(anp.tanh(a * b + c)), (0, 1, 2))
    values = vectors()
    return often(lambda: both(*values)[0], REPEATS)


@implements(CHAIN, "autograd")
def _() -> Run:
    import autograd.numpy as anp
    from autograd import value_and_grad

    def total(y: Any) -> Any:
        for _ in range(PAIRS):
            y = anp.tanh(y * FACTOR)
        return anp.sum(y)

    both, a = value_and_grad(total), vectors()[0]
    return repeated(lambda: both(a)[0])


@implements(PERCEPTRON, "autograd")
def _() -> Run:
    import autograd.numpy as anp
    from autograd import value_and_grad
    from autograd.scipy.special import logsumexp

    x, classes, weights = perceptron()
    rows = np.arange(BATCH)

    def loss(kernel: Any, bias: Any, kernel2: Any, bias2: Any) -> Any:
        logits = anp.dot(anp.maximum(anp.dot(x, kernel) + bias, 0), kernel2) + bias2
        return anp.mean(logsumexp(logits, axis=1) - logits[rows, classes])

    both, adam = value_and_grad(loss, (0, 1, 2, 3)), Adam(weights)

    def step() -> Any:
        value, gradients = both(*weights)
        adam.step(gradients)
        return value

    return often(step, STEPS)


@implements(ELEMENTWISE, "mygrad")
def _() -> Run:
    import mygrad as mg

    a, b, c = map(mg.tensor, vectors())

    def step() -> Any:
        total = mg.tanh(a * b + c).sum()
        total.backward()
        return total

    return often(step, REPEATS)


@implements(CHAIN, "mygrad")
def _() -> Run:
    import mygrad as mg

    a = mg.tensor(vectors()[0])

    def step() -> Any:
        y = a
        for _ in range(PAIRS):
            y = mg.tanh(y * FACTOR)
        total = y.sum()
        total.backward()
        return total

    return repeated(step)


@implements(PERCEPTRON, "mygrad")
def _() -> Run:
    import mygrad as mg
    from mygrad.nnet.activations import relu
    from mygrad.nnet.losses import softmax_crossentropy

    x, classes, weights = perceptron()
    tensors = [mg.tensor(w, copy=False) for w in weights]
    kernel, bias, kernel2, bias2 = tensors
    adam = Adam(weights)

    def step() -> Any:
        hidden = relu(mg.matmul(x, kernel) + bias)
        loss = softmax_crossentropy(mg.matmul(hidden, kernel2) + bias2, classes)
        loss.backward()
        adam.step([t.grad for t in tensors])
        return loss

    return often(step, STEPS)


def _dezero() -> Any:
    np.int = int  # the last release still asks for a name that NumPy has dropped
    import dezero

    return dezero


@implements(ELEMENTWISE, "dezero")
def _() -> Run:
    dezero = _dezero()
    a, b, c = inputs = [dezero.Variable(v) for v in vectors()]

    def step() -> Any:
        for v in inputs:
            v.cleargrad()
        total = dezero.functions.sum(dezero.functions.tanh(a * b + c))
        total.backward()
        return total.data

    return often(step, REPEATS)


@implements(CHAIN, "dezero")
def _() -> Run:
    dezero = _dezero()
    a = dezero.Variable(vectors()[0])

    def step() -> Any:
        a.cleargrad()
        y = a
        for _ in range(PAIRS):
            y = dezero.functions.tanh(y * FACTOR)
        total = dezero.functions.sum(y)
        total.backward()
        return total.data

    return repeated(step)


@implements(PERCEPTRON, "dezero")
def _() -> Run:
    dezero = _dezero()
    functions, Linear = dezero.functions, dezero.layers.Linear
    x, classes, weights = perceptron()
    model = dezero.Model()
    model.first, model.second = Linear(HIDDEN, in_size=INPUTS), Linear(CLASSES, in_size=HIDDEN)
    model.first.W.data, model.first.b.data, model.second.W.data, model.second.b.data = weights
    optimizer = dezero.optimizers.Adam(RATE).setup(model)

    def step() -> Any:
        logits = model.second(functions.relu(model.first(x)))
        loss = functions.softmax_cross_entropy(logits, classes)
        model.cleargrads()
        loss.backward()
        optimizer.update()
        return loss.data

    return often(step, STEPS)
