"""W4: the training step of models/spectra.py, a residual network over spectra of 2,600 points.

Six blocks of gated convolutions with batch normalization, the maximum of neighbours between them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.registry import REFERENCE, SAME_ALLOCATOR, Run, implements

POINTS, BATCH, CLASSES = 2_600, 64, 4
WIDTHS = (32, 32, 64, 64, 128, 128)
BATCHES = 4  # in turn


def spectra(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise (BATCH, POINTS, 1), and a class each."""
    rng = np.random.default_rng(seed)
    flux = rng.standard_normal((BATCH, POINTS, 1), np.float32)
    return flux, rng.integers(0, CLASSES, BATCH)


def weights() -> dict[str, np.ndarray]:
    """The network's first weights, under minidl's names and in its layouts."""
    rng = np.random.default_rng(2)

    def normal(*shape: int) -> np.ndarray:
        inputs = np.prod(shape[:-1])
        return rng.standard_normal(shape, np.float32) * np.float32(inputs**-0.5)

    values = {"stem.kernel": normal(7, 1, WIDTHS[0]), "stem.bias": normal(1, WIDTHS[0])[0]}
    last = WIDTHS[0]
    for i, width in enumerate(WIDTHS):
        block = f"blocks.{i}"
        if width != last:
            values[f"{block}.widen.kernel"] = normal(1, last, width)
        values[f"{block}.normalization.gamma"] = 1 + 0.1 * normal(1, width)[0]
        values[f"{block}.normalization.beta"] = normal(1, width)[0]
        values[f"{block}.convolution.kernel"] = normal(3, width, 2 * width)
        values[f"{block}.convolution.bias"] = normal(1, 2 * width)[0]
        last = width
    return values | {"dense.kernel": normal(2 * last, CLASSES), "dense.bias": np.zeros(CLASSES)}


@implements("W4", "minidl")
def _() -> Run:
    import minidl as md
    from models.spectra import SpectrumClassifier

    model = SpectrumClassifier(widths=WIDTHS)
    model.load_state_dict({**model.state_dict(), **weights()})
    optimizer = md.optimizers.Adam(model, 1e-3)
    loss = md.losses.SparseCategoricalCrossentropy(from_logits=True)
    batches = [spectra(i) for i in range(BATCHES)]

    def run(count: int) -> float:
        train = [batches[i % BATCHES] for i in range(count)]
        return md.fit(model, loss, optimizer, train, verbose=False)["loss"][0]

    return run


@implements("W4", REFERENCE, SAME_ALLOCATOR)
def _() -> Run:
    import torch

    model = _torch_classifier()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    loss_of = torch.nn.CrossEntropyLoss()
    batches = [
        (torch.from_numpy(flux.transpose(0, 2, 1).copy()), torch.from_numpy(classes))
        for flux, classes in map(spectra, range(BATCHES))
    ]

    def run(count: int) -> Any:
        for i in range(count):
            flux, classes = batches[i % BATCHES]
            optimizer.zero_grad()
            loss = loss_of(model(flux), classes)
            loss.backward()
            optimizer.step()
        return loss.detach()

    return run


def _torch_classifier() -> Any:
    """The same network in PyTorch's usual modules, channels first, with the same weights."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, filters: int) -> None:
            super().__init__()
            self.widen = nn.Identity()
            if inputs != filters:
                self.widen = nn.Conv1d(inputs, filters, 1, bias=False)
            self.normalization = nn.BatchNorm1d(filters, eps=1e-3)
            self.convolution = nn.Conv1d(filters, 2 * filters, 3, padding=1)

        def forward(self, x: Any) -> Any:
            x = self.normalization(self.widen(x))
            value, score = self.convolution(x).chunk(2, 1)
            gate = torch.sigmoid(score)
            return x * (1 - gate) + value * gate

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv1d(1, WIDTHS[0], 7, padding=3)
            self.blocks = nn.ModuleList(map(Block, (WIDTHS[0], *WIDTHS), WIDTHS))
            self.halve = nn.MaxPool1d(2)
            self.dense = nn.Linear(2 * WIDTHS[-1], CLASSES)

        def forward(self, x: Any) -> Any:
            x = self.stem(x)
            for block in self.blocks:
                x = block(self.halve(x))
            return self.dense(torch.cat([x.mean(2), x.amax(2)], 1))

    model = Classifier()
    state = {_torch_name(name): _as_torch(value) for name, value in weights().items()}
    missing, foreign = model.load_state_dict(state, strict=False)
    if foreign or not all(".normalization." in name for name in missing):  # moving averages
        raise RuntimeError(f"W4: weights: missing {missing}, foreign {foreign}")
    return model


def _torch_name(name: str) -> str:
    layer, _, part = name.rpartition(".")
    return f"{layer}.{'bias' if part in ('bias', 'beta') else 'weight'}"


def _as_torch(value: np.ndarray) -> Any:
    """(outputs, inputs, steps) for minidl's (steps, inputs, outputs)."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(value.T.astype(np.float32)))
