"""W5, W5l: the title writer's training step, and its bidirectional LSTM alone.

`python -m benchmarks.titles` prints another table, of bidirectional nets of W5l's sizes, forward
and backward on one thread: the fused op, its definition, and PyTorch. It counts the time that the
processor worked, which others on the machine disturb little.

W5 is the model of `python -m examples title` without dropout. All articles are of full length and
so are the titles: PyTorch's LSTM is then at its best, for it turns padded rows round only after
packing them. "W5l padded" is what that costs: rows of random lengths, with a mask here, packed
there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.registry import REFERENCE, SAME_ALLOCATOR, Run, as_in_fit, implements, repeated

TOKENS, SIZE, HEADS, SOURCE, TARGET, BATCH = 4_000, 128, 8, 100, 20, 32
BATCHES = 4  # of W5, in turn


class Pairs(NamedTuple):
    """ids: source (batch, source), inputs and targets (batch, target)."""

    source: np.ndarray
    inputs: np.ndarray
    targets: np.ndarray


def pairs(seed: int) -> Pairs:
    """Random ids, none of them padding; the targets are the inputs' next."""
    rng = np.random.default_rng(seed)
    title = rng.integers(2, TOKENS - 1, (BATCH, TARGET + 1))
    return Pairs(rng.integers(2, TOKENS - 1, (BATCH, SOURCE)), title[:, :-1], title[:, 1:])


# --- W5: a training step --------------------------------------------------------------------------


def titler() -> Any:
    """The model of the example, with the same first weights every time."""
    import minidl as md
    from models.text import Vocabulary
    from models.titler import Titler

    md.seed(0)
    characters = [chr(0x4E00 + i) for i in range(TOKENS - 3)]
    return Titler(Vocabulary(characters), dropout=0.0, size=SIZE, heads=HEADS)


@implements("W5", "minidl")
def _() -> Run:
    import minidl as md

    model = titler()
    optimizer = md.optimizers.Adam(model, 1e-3)
    mask = np.ones((BATCH, SOURCE), bool)
    batches = [((p.source, mask, p.inputs), p.targets) for p in map(pairs, range(BATCHES))]

    def run(count: int) -> float:
        train = [batches[i % BATCHES] for i in range(count)]
        return md.fit(model, model.loss, optimizer, train, verbose=False)["loss"][0]

    return run


@implements("W5", REFERENCE, SAME_ALLOCATOR)
def _() -> Run:
    import torch

    model = _torch_titler()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batches = [[torch.from_numpy(a) for a in pairs(i)] for i in range(BATCHES)]

    def run(count: int) -> Any:
        for i in range(count):
            source, inputs, targets = batches[i % BATCHES]
            optimizer.zero_grad()
            logits = model(source, inputs)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()
            optimizer.step()
        return loss.detach()

    return run


def _torch_titler() -> Any:
    """The same network of PyTorch's usual modules, with the same weights and the same names."""
    import torch
    from torch import nn

    from minidl.conversion import to_pytorch

    ours = titler()

    def norm(affine: bool) -> Any:
        return nn.LayerNorm(SIZE, ours.encoder_norms[0].epsilon, elementwise_affine=affine)

    class Conditional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm(affine=False)
            self.gamma, self.beta = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

        def forward(self, x: Any, condition: Any) -> Any:
            gamma, beta = self.gamma(condition)[:, None], self.beta(condition)[:, None]
            return self.norm(x) * (1 + gamma) + beta

    class Titler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(TOKENS, SIZE)
            self.encoder_norms = nn.ModuleList(norm(affine=True) for _ in range(2))
            self.encoder = nn.ModuleList(
                nn.LSTM(SIZE, SIZE // 2, batch_first=True, bidirectional=True) for _ in range(2)
            )
            self.decoder_norms = nn.ModuleList(Conditional() for _ in range(3))
            self.decoder = nn.ModuleList(nn.LSTM(SIZE, SIZE, batch_first=True) for _ in range(2))
            self.attention = nn.MultiheadAttention(SIZE, HEADS, batch_first=True)
            self.hidden, self.output = nn.Linear(2 * SIZE, SIZE), nn.Linear(SIZE, TOKENS)
            self.log_scale, self.shift = (nn.Parameter(torch.zeros(TOKENS)) for _ in range(2))

        def forward(self, source: Any, inputs: Any) -> Any:
            x = self.embedding(source)
            for before, lstm in zip(self.encoder_norms, self.encoder, strict=True):
                x, _ = lstm(before(x))
            pooled = x.max(1).values
            bag = torch.zeros(len(source), TOKENS).scatter_(1, source, 1.0)
            bag[:, -1] = 1.0  # the edge, without which no title ends
            prior = torch.exp(self.log_scale) * bag + self.shift
            y = self.embedding(inputs)
            *norms, last = self.decoder_norms
            for before, lstm in zip(norms, self.decoder, strict=True):
                y, _ = lstm(before(y, pooled))
            y = last(y, pooled)
            found, _ = self.attention(y, x, x, need_weights=False)
            hidden = self.hidden(torch.cat([y, found], -1))
            logits = self.output(nn.functional.leaky_relu(hidden, 0.2))
            return (logits + prior[:, None]) * 0.5

    model = Titler()
    state: dict[str, np.ndarray] = {}
    names = ("embedding", "encoder_norms", "encoder", "decoder", "attention", "hidden", "output")
    for name in names:
        part = getattr(ours, name)
        if isinstance(part, list):
            for i, layer in enumerate(part):
                state |= to_pytorch(layer, f"{name}.{i}")
        else:
            state |= to_pytorch(part, name)
    for i, layer in enumerate(ours.decoder_norms):
        state |= to_pytorch(layer.gamma, f"decoder_norms.{i}.gamma")
        state |= to_pytorch(layer.beta, f"decoder_norms.{i}.beta")
    state |= {"log_scale": ours.prior.log_scale.numpy(), "shift": ours.prior.shift.numpy()}
    model.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    return model


# --- W5l: the bidirectional LSTM alone, forward and backward --------------------------------------


def _articles() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, the outputs' gradient (batch, source, size), and lengths from half of the steps to all."""
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((BATCH, SOURCE, SIZE), np.float32) for _ in range(2))
    lengths = rng.integers(SOURCE // 2, SOURCE + 1, BATCH)
    lengths[0] = SOURCE
    return x, g, lengths


def _layer() -> Any:
    import minidl as md

    md.seed(0)
    return md.layers.Bidirectional(
        md.layers.LSTM(SIZE // 2, return_sequences=True, input_size=SIZE)
    )


def _lstm_minidl(padded: bool) -> Run:
    import minidl as md

    values, g, lengths = _articles()
    layer, x = _layer(), md.tensor(values, requires_grad=True)
    g, mask = md.tensor(g), md.tensor(np.arange(SOURCE) < lengths[:, None]) if padded else None

    def step() -> Any:
        for leaf in (x, *layer.parameters()):
            leaf.grad = None
        loss = (layer(x, mask=mask) * g).sum()
        loss.backward()
        return loss

    return as_in_fit(repeated(step))


def _lstm_torch(padded: bool) -> Run:
    import torch

    from minidl.conversion import to_pytorch

    values, g, lengths = map(torch.from_numpy, _articles())
    lstm = torch.nn.LSTM(SIZE, SIZE // 2, batch_first=True, bidirectional=True)
    lstm.load_state_dict({n: torch.from_numpy(a) for n, a in to_pytorch(_layer()).items()})
    x = values.requires_grad_()

    def step() -> Any:
        for leaf in (x, *lstm.parameters()):
            leaf.grad = None
        loss = (_run_torch(lstm, x, lengths if padded else None) * g).sum()
        loss.backward()
        return loss.detach()

    return repeated(step)


def _run_torch(module: Any, x: Any, lengths: Any) -> Any:
    """The outputs (batch, source, size); rows of several lengths have to be packed."""
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    if lengths is None:
        return module(x)[0]
    out, _ = module(pack_padded_sequence(x, lengths, True, enforce_sorted=False))
    return pad_packed_sequence(out, batch_first=True)[0]


for _name, _padded in (("W5l full", False), ("W5l padded", True)):
    implements(_name, "minidl")(lambda padded=_padded: _lstm_minidl(padded))
    implements(_name, REFERENCE, SAME_ALLOCATOR)(lambda padded=_padded: _lstm_torch(padded))


# --- One thread, by the processor's time ----------------------------------------------------------

ROUNDS = 7


def table() -> None:
    """Print milliseconds of the processor, the least of some rounds that take turns."""
    import threadpoolctl
    import torch

    import minidl as md

    md.tune_allocator()
    torch.set_num_threads(1)
    print(f"{'ms of the processor':<22}{'fused':>10}{'definition':>12}{'pytorch':>10}")
    nets = ("LSTM", "LSTM"), ("GRU", "GRU"), ("SimpleRNN", "RNN")
    with threadpoolctl.threadpool_limits(1):
        for padded in (False, True):
            for ours, theirs in nets:
                name = f"{ours}, padded" if padded else ours
                fused, defined, pytorch = _least(_ways(ours, theirs, padded))
                print(f"{name:<22}{fused:>10.1f}{defined:>12.1f}{pytorch:>10.1f}", flush=True)


def _ways(ours: str, theirs: str, padded: bool) -> list[Callable[[], None]]:
    """Forward and backward: the fused op, its definition, PyTorch."""
    import torch

    import minidl as md

    layer = getattr(md.layers, ours)(SIZE // 2, return_sequences=True)
    layer = md.layers.Bidirectional(layer, input_size=SIZE)
    module = getattr(torch.nn, theirs)(SIZE, SIZE // 2, batch_first=True, bidirectional=True)
    values, g, lengths = _articles()
    mask = np.arange(SOURCE) < lengths[:, None] if padded else None
    x, like = md.tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    count = torch.from_numpy(lengths) if padded else None
    return [
        lambda: layer(x, mask=mask).backward(g),
        lambda: _defined(layer, x, mask).backward(g),
        lambda: _run_torch(module, like, count).backward(torch.from_numpy(g)),
    ]


def _defined(layer: Any, x: Any, mask: Any) -> Any:
    """What the bidirectional layer computes, by the definition of its op."""
    import minidl as md

    cell, ways = layer.forward_layer.cell, (layer.forward_layer, layer.backward_layer)
    names = ("kernel", "recurrent_kernel", "bias")
    weights = [md.stack([getattr(way, name) for way in ways]) for name in names]
    outputs, _ = cell.fused.definition(x, *weights, None, mask, (False, True))
    return md.reshape(outputs, (BATCH, SOURCE, SIZE))


def _least(ways: list[Callable[[], None]]) -> list[float]:
    found = [float("inf")] * len(ways)
    for _ in range(ROUNDS):
        for i, way in enumerate(ways):
            began = time.process_time()
            way()
            found[i] = min(found[i], 1000 * (time.process_time() - began))
    return found


if __name__ == "__main__":
    table()
