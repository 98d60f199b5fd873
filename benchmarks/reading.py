"""W3: the training step of models/dgcnn.py, reading comprehension with gated convolutions.

Question and passage of random lengths, padded, with masks. Dropout is off, so that both systems can
be seen to do the same work.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from benchmarks.registry import REFERENCE, SAME_ALLOCATOR, Run, implements

VOCABULARY, SIZE, FLAGS, BATCH = 4_500, 128, 4, 32
QUESTION, PASSAGE = 20, 256  # steps
QUESTION_RATES, PASSAGE_RATES = (1, 2, 1), (1, 2, 4, 8, 16, 1)
BATCHES = 4  # in turn


class Pairs(NamedTuple):
    """question (batch, steps), passage (batch, steps, 1 + FLAGS) with its flags, their masks; marks
    (batch, steps, 2) of answers."""

    question: np.ndarray
    question_mask: np.ndarray
    passage: np.ndarray
    passage_mask: np.ndarray
    marks: np.ndarray


def pairs(seed: int) -> Pairs:
    """Random ids; lengths from half of the steps to all, the first one's all; an answer each."""
    rng = np.random.default_rng(seed)
    texts = []
    for steps in (QUESTION, PASSAGE):
        lengths = rng.integers(steps // 2, steps + 1, BATCH)
        lengths[0] = steps
        mask = np.arange(steps) < lengths[:, None]
        texts += [rng.integers(1, VOCABULARY, (BATCH, steps)) * mask, mask]
    flags = rng.integers(0, 2, (BATCH, PASSAGE, FLAGS)) * texts[3][:, :, None]
    texts[2] = np.concatenate([texts[2][:, :, None], flags], axis=2)
    marks = np.zeros((BATCH, PASSAGE, 2), np.float32)
    begin = rng.integers(0, PASSAGE // 2 - 4, BATCH)
    marks[range(BATCH), begin, 0] = marks[range(BATCH), begin + 3, 1] = 1
    return Pairs(*texts, marks)


def weights() -> dict[str, np.ndarray]:
    """The network's first weights, under minidl's names and in its layouts."""
    rng = np.random.default_rng(2)

    def normal(*shape: int) -> np.ndarray:
        inputs = np.prod(shape[:-1])
        return rng.standard_normal(shape, np.float32) * np.float32(inputs**-0.5)

    values = {"embedding.embeddings": rng.standard_normal((VOCABULARY, SIZE), np.float32)}
    for name, rates in (("asking", QUESTION_RATES), ("reading", PASSAGE_RATES)):
        for i in range(len(rates)):
            values[f"{name}.{i}.kernel"] = normal(3, SIZE, 2 * SIZE)
            values[f"{name}.{i}.bias"] = normal(1, 2 * SIZE)[0]
    for name in ("question_pooling", "passage_pooling"):
        values |= {f"{name}.kernel": normal(SIZE, SIZE), f"{name}.context": normal(SIZE, 1)}
    values |= {"character.kernel": normal(SIZE, SIZE), "asked.kernel": normal(SIZE, SIZE)}
    values |= {"shared.kernel": normal(FLAGS, SIZE), "position_asked.kernel": normal(SIZE, 2)}
    for name, inputs, outputs in (("position", SIZE, 2), ("whole", 2 * SIZE, 1)):
        values |= {f"{name}.kernel": normal(inputs, outputs), f"{name}.bias": np.zeros(outputs)}
    return {name: value.astype(np.float32) for name, value in values.items()}


@implements("W3", "minidl")
def _() -> Run:
    import minidl as md
    from models.dgcnn import DGCNN
    from models.text import Vocabulary

    vocabulary = Vocabulary([f"character {i}" for i in range(VOCABULARY - 2)])
    model = DGCNN(vocabulary, SIZE, rate=0.0)
    model.load_state_dict(weights())
    optimizer = md.optimizers.Adam(model, 1e-3)
    batches = [(tuple(p[:4]), p.marks, p.passage_mask) for p in map(pairs, range(BATCHES))]

    def run(count: int) -> float:
        train = [batches[i % BATCHES] for i in range(count)]
        return md.fit(model, model.loss, optimizer, train, verbose=False)["loss"][0]

    return run


@implements("W3", REFERENCE, SAME_ALLOCATOR)
def _() -> Run:
    import torch

    model = _torch_reader()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batches = [[torch.from_numpy(a) for a in pairs(i)] for i in range(BATCHES)]

    def focal(p: Any, marks: Any, mask: Any) -> Any:
        right = torch.where(marks > 0, p, 1 - p)
        weight = marks * 0.25 + (1 - marks) * 0.75
        losses = -weight * (1 - right) ** 2 * torch.log(right + 1e-7)
        return losses[mask].sum() / (2 * mask.sum())

    def run(count: int) -> Any:
        for i in range(count):
            *inputs, marks = batches[i % BATCHES]
            optimizer.zero_grad()
            loss = focal(model(*inputs), marks, inputs[3])
            loss.backward()
            optimizer.step()
        return loss.detach()

    return run


def _torch_reader() -> Any:
    """The same network in PyTorch's usual modules, channels first, with the same weights."""
    import torch
    from torch import nn

    class Gated(nn.Module):
        def __init__(self, rate: int) -> None:
            super().__init__()
            self.convolution = nn.Conv1d(SIZE, 2 * SIZE, 3, padding=rate, dilation=rate)

        def forward(self, x: Any, real: Any) -> Any:
            value, score = self.convolution(x).chunk(2, 1)
            gate = torch.sigmoid(score)
            return (x * (1 - gate) + value * gate) * real

    class Pooling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Linear(SIZE, SIZE, bias=False)
            self.context = nn.Linear(SIZE, 1, bias=False)

        def forward(self, x: Any, mask: Any) -> Any:
            scores = self.context(torch.tanh(self.kernel(x)))[:, :, 0]
            weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), 1)
            return (weights[:, None] @ x)[:, 0]

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, SIZE)
            self.asking = nn.ModuleList(map(Gated, QUESTION_RATES))
            self.reading = nn.ModuleList(map(Gated, PASSAGE_RATES))
            self.question_pooling, self.passage_pooling = Pooling(), Pooling()
            self.mixed = nn.Linear(SIZE + FLAGS + SIZE, SIZE, bias=False)
            self.position = nn.Linear(2 * SIZE, 2)
            self.whole = nn.Linear(2 * SIZE, 1)

        def forward(self, question: Any, question_mask: Any, passage: Any, mask: Any) -> Any:
            q = self._read(self.asking, self.embedding(question), question_mask)
            q = self.question_pooling(q, question_mask)
            asked = q[:, None].expand(-1, PASSAGE, -1)
            flags = passage[:, :, 1:].to(q.dtype)
            x = self.mixed(torch.cat([self.embedding(passage[:, :, 0]), flags, asked], -1))
            x = self._read(self.reading, x, mask)
            whole = self.whole(torch.cat([self.passage_pooling(x, mask), q], -1))
            ends = self.position(torch.cat([x, asked], -1))
            return torch.sigmoid(ends) * torch.sigmoid(whole)[:, None]

        def _read(self, blocks: Any, x: Any, mask: Any) -> Any:
            real = mask[:, None, :].to(x.dtype)
            x = x.transpose(1, 2) * real
            for block in blocks:
                x = block(x, real)
            return x.transpose(1, 2)

    values = weights()
    ours = ("character", "shared", "asked"), ("position", "position_asked")
    for name, parts in zip(("mixed", "position"), ours, strict=True):  # one Dense of all parts
        kernels = [values.pop(f"{part}.kernel") for part in parts]
        values[f"{name}.kernel"] = np.concatenate(kernels)
    model = Reader()
    model.load_state_dict(
        {_torch_name(name): _as_torch(name, value) for name, value in values.items()}
    )
    return model


def _torch_name(name: str) -> str:
    layer, _, part = name.rpartition(".")
    if "pooling" in layer:
        return f"{name}.weight"
    if "." in layer:
        layer += ".convolution"
    return f"{layer}.{'bias' if part == 'bias' else 'weight'}"


def _as_torch(name: str, value: np.ndarray) -> Any:
    """(outputs, inputs, steps) for minidl's (steps, inputs, outputs)."""
    import torch

    own = value if name.endswith(("bias", "embeddings")) else value.T
    return torch.from_numpy(np.ascontiguousarray(own))
