"""W7: the training step of models/digits.py on batches mixed by mixup, targets and all.

Both systems mix by the same draws, and begin with the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.registry import REFERENCE, SAME_ALLOCATOR, Run, implements

SIDE, CLASSES, BATCH, ALPHA = 28, 10, 128, 0.4
FILTERS, SIZE = (32, 64), 128
BATCHES = 4  # in turn


def images(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Grey noise (BATCH, SIDE, SIDE, 1), and a class each."""
    rng = np.random.default_rng(seed)
    return rng.random((BATCH, SIDE, SIDE, 1), np.float32), rng.integers(0, CLASSES, BATCH)


def weights() -> dict[str, np.ndarray]:
    """The network's first weights, under minidl's names and in its layouts."""
    rng = np.random.default_rng(2)

    def layer(name: str, *shape: int) -> dict[str, np.ndarray]:
        scale = np.float32((2 / np.prod(shape[:-1])) ** 0.5)
        kernel = rng.standard_normal(shape, np.float32) * scale
        return {f"{name}.kernel": kernel, f"{name}.bias": np.zeros(shape[-1], np.float32)}

    first, second = FILTERS
    flat = second * ((SIDE - 4) // 2) ** 2
    return {
        **layer("first", 3, 3, 1, first),
        **layer("second", 3, 3, first, second),
        **layer("hidden", flat, SIZE),
        **layer("logits", SIZE, CLASSES),
    }


def draws() -> Iterator[tuple[float, np.ndarray]]:
    """What mixup draws, batch by batch, as md.transforms.Mixup draws it from a seed of 0."""
    rng = np.random.default_rng(0)
    while True:
        yield float(rng.beta(ALPHA, ALPHA)), rng.permutation(BATCH)


@implements("W7", "minidl")
def _() -> Run:
    import minidl as md
    from models.digits import DigitClassifier

    model = DigitClassifier(CLASSES, FILTERS, SIZE, side=SIDE)
    model.load_state_dict(weights())
    optimizer = md.optimizers.Adam(model, 1e-3)
    loss = md.losses.CategoricalCrossentropy(from_logits=True)
    mixup = md.transforms.Mixup(ALPHA, CLASSES)
    batches = [md.data.Batch(*images(i)) for i in range(BATCHES)]
    md.seed(0)

    def run(count: int) -> float:
        train = (mixup(batches[i % BATCHES]) for i in range(count))
        return md.fit(model, loss, optimizer, train, verbose=False)["loss"][0]

    return run


@implements("W7", REFERENCE, SAME_ALLOCATOR)
def _() -> Run:
    import torch

    model = _torch_classifier()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loss_of = torch.nn.CrossEntropyLoss()
    batches = [
        (torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.eye(CLASSES)[torch.from_numpy(y)])
        for x, y in map(images, range(BATCHES))
    ]
    drawn = draws()

    def run(count: int) -> Any:
        total = 0.0
        for i in range(count):
            x, y = batches[i % BATCHES]
            share, permutation = next(drawn)
            partners = torch.from_numpy(permutation)
            x = share * x + (1 - share) * x[partners]
            y = share * y + (1 - share) * y[partners]
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            total = total + loss.detach()
        return total / count  # as fit has it

    return run


def _torch_classifier() -> Any:
    """The same network in PyTorch's usual modules, channels first, with the same weights."""
    import torch
    from torch import nn

    first, second = FILTERS
    side = (SIDE - 4) // 2
    model = nn.Sequential(
        nn.Conv2d(1, first, 3),
        nn.ReLU(),
        nn.Conv2d(first, second, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * side * side, SIZE),
        nn.ReLU(),
        nn.Linear(SIZE, CLASSES),
    )
    values = weights()
    hidden = values["hidden.kernel"].reshape(side, side, second, SIZE)  # flat with channels last
    values["hidden.kernel"] = hidden.transpose(2, 0, 1, 3).reshape(-1, SIZE)
    state = {}
    for place, name in ((0, "first"), (2, "second"), (6, "hidden"), (8, "logits")):
        kernel = values[f"{name}.kernel"]
        axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
        state[f"{place}.weight"] = torch.from_numpy(kernel.transpose(axes).copy())
        state[f"{place}.bias"] = torch.from_numpy(values[f"{name}.bias"])
    model.load_state_dict(state)
    return model
