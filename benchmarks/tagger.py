"""W1, W1c, W1v: the segmenter's training step, its CRF loss alone, and Viterbi.

All with masks: sentences of random lengths, padded. PyTorch's CRF is pytorch-crf's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from benchmarks.registry import REFERENCE, SAME_ALLOCATOR, Run, as_in_fit, implements, repeated

VOCABULARY, SIZE, LAYERS, TAGS, LENGTH, BATCH = 5_000, 128, 3, 9, 60, 64
BATCHES = 8  # of W1, in turn


class Sentences(NamedTuple):
    """ids, tags and mask, each (batch, time)."""

    ids: np.ndarray
    tags: np.ndarray
    mask: np.ndarray


def sentences(seed: int, time: int = LENGTH, tags: int = TAGS) -> Sentences:
    """Random ids and tags; lengths from half of `time` to all of it, the first one's all."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(time // 2, time + 1, BATCH)
    lengths[0] = time
    mask = np.arange(time) < lengths[:, None]
    ids = rng.integers(1, VOCABULARY, (BATCH, time)) * mask
    return Sentences(ids, rng.integers(0, tags, (BATCH, time)) * mask, mask)


def crf_scores(time: int = LENGTH, tags: int = TAGS) -> dict[str, np.ndarray]:
    """Random emissions (batch, time, tags), and the CRF's weights."""
    rng = np.random.default_rng(1)
    shapes = {
        "emissions": (BATCH, time, tags),
        "transitions": (tags, tags),
        "start": (tags,),
        "end": (tags,),
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


# --- W1: a training step --------------------------------------------------------------------------


def weights() -> dict[str, np.ndarray]:
    """The network's first weights, under minidl's names and in its layouts."""
    rng = np.random.default_rng(2)

    def normal(*shape: int) -> np.ndarray:
        inputs = np.prod(shape[:-1])
        return rng.standard_normal(shape, np.float32) * np.float32(inputs**-0.5)

    values = {"embedding.embeddings": rng.standard_normal((VOCABULARY, SIZE), np.float32)}
    for i in range(LAYERS):
        values[f"convolutions.{i}.kernel"] = normal(3, SIZE, SIZE)
        values[f"convolutions.{i}.bias"] = normal(1, SIZE)[0]
    values |= {"emissions.kernel": normal(SIZE, TAGS), "emissions.bias": normal(1, TAGS)[0]}
    crf = crf_scores()
    return values | {f"crf.{name}": crf[name] for name in ("transitions", "start", "end")}


@implements("W1", "minidl")
def _() -> Run:
    import minidl as md
    from models.segmenter import Segmenter
    from models.text import Vocabulary

    model = Segmenter(Vocabulary([f"character {i}" for i in range(VOCABULARY - 2)]), size=SIZE)
    model.dropout = md.layers.Dropout(0.0)
    model.emissions = md.layers.Dense(TAGS, input_size=SIZE)
    model.crf = md.layers.CRF(TAGS)
    model.load_state_dict(weights())
    optimizer = md.optimizers.Adam(model, 1e-3)
    batches = [((s.ids, s.mask), s.tags, s.mask) for s in map(sentences, range(BATCHES))]

    def run(count: int) -> float:
        train = [batches[i % BATCHES] for i in range(count)]
        return md.fit(model, model.loss, optimizer, train, verbose=False)["loss"][0]

    return run


@implements("W1", REFERENCE, SAME_ALLOCATOR)
def _() -> Run:
    import torch

    model = _torch_tagger()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batches = [[torch.from_numpy(a) for a in sentences(i)] for i in range(BATCHES)]

    def run(count: int) -> Any:
        for i in range(count):
            optimizer.zero_grad()
            loss = model(*batches[i % BATCHES])
            loss.backward()
            optimizer.step()
        return loss.detach()

    return run


def _torch_tagger() -> Any:
    """The segmenter's network and loss in PyTorch's usual modules, with the same weights."""
    import torch
    from torch import nn
    from torchcrf import CRF

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, SIZE)
            self.convolutions = nn.ModuleList(
                nn.Conv1d(SIZE, SIZE, 3, padding=1) for _ in range(LAYERS)
            )
            self.emissions = nn.Linear(SIZE, TAGS)
            self.crf = CRF(TAGS, batch_first=True)

        def forward(self, ids: Any, tags: Any, mask: Any) -> Any:
            x = self.embedding(ids).transpose(1, 2)
            real = mask[:, None, :].to(x.dtype)
            for convolution in self.convolutions:
                x = torch.relu(convolution(x * real))
            emissions = self.emissions(x.transpose(1, 2))
            return -self.crf(emissions, tags, mask, reduction="mean")

    model, values = Tagger(), weights()
    parts = {"embeddings": "weight", "kernel": "weight"}
    parts |= {f"crf.{name}": f"crf.{name}_transitions" for name in ("start", "end")}
    state = {}
    for name, value in values.items():
        layer, _, part = name.rpartition(".")
        theirs = parts.get(name) or f"{layer}.{parts.get(part, part)}"
        array = value.T if part == "kernel" else value  # (outputs, inputs, steps)
        state[theirs] = torch.from_numpy(np.ascontiguousarray(array))
    model.load_state_dict(state)
    return model


# --- W1c: the loss alone, forward and backward ----------------------------------------------------


@implements("W1c", "minidl")
def _() -> Run:
    import minidl as md

    scores, text = crf_scores(), sentences(0)
    emissions = md.tensor(scores.pop("emissions"), requires_grad=True)
    crf = md.layers.CRF(TAGS)
    crf.load_state_dict(scores)
    tags, mask = md.tensor(text.tags), md.tensor(text.mask)
    inputs = [emissions, *crf.parameters()]

    def step() -> Any:
        for x in inputs:
            x.grad = None
        loss = crf.loss(emissions, tags, mask)
        loss.backward()
        return loss

    return as_in_fit(repeated(step))


@implements("W1c", REFERENCE, SAME_ALLOCATOR)
def _() -> Run:
    import torch

    scores, text = crf_scores(), sentences(0)
    emissions = torch.from_numpy(scores["emissions"]).requires_grad_()
    crf = _torch_crf(scores)
    tags, mask = torch.from_numpy(text.tags), torch.from_numpy(text.mask)
    inputs = [emissions, *crf.parameters()]

    def step() -> Any:
        for x in inputs:
            x.grad = None
        loss = -crf(emissions, tags, mask, reduction="mean")
        loss.backward()
        return loss.detach()

    return repeated(step)


def _torch_crf(scores: dict[str, np.ndarray]) -> Any:
    import torch
    from torchcrf import CRF

    crf = CRF(len(scores["start"]), batch_first=True)
    names = {"transitions": "transitions", "start": "start_transitions", "end": "end_transitions"}
    crf.load_state_dict({names[n]: torch.from_numpy(scores[n]) for n in names})
    return crf


@implements("W1c", "autograd")
def _() -> Run:
    import autograd.numpy as anp
    from autograd import value_and_grad
    from autograd.scipy.special import logsumexp

    scores, text = crf_scores(), sentences(0)
    on = text.mask.astype(np.float32)
    all_tags = np.eye(TAGS, dtype=np.float32)
    hot = all_tags[text.tags] * on[:, :, None]
    steps = np.einsum("bti,btj->ij", hot[:, :-1], hot[:, 1:])
    first = hot[:, 0].sum(0)
    last = hot[np.arange(BATCH), text.mask.sum(1) - 1].sum(0)

    def loss(emissions: Any, transitions: Any, start: Any, end: Any) -> Any:
        alpha = start + emissions[:, 0]
        for t in range(1, LENGTH):
            new = logsumexp(alpha[:, :, None] + transitions, axis=1) + emissions[:, t]
            alpha = anp.where(text.mask[:, t, None], new, alpha)
        log_z = anp.sum(logsumexp(alpha + end, axis=1))
        score = anp.sum(emissions * hot) + anp.sum(transitions * steps)
        return (log_z - score - anp.sum(start * first) - anp.sum(end * last)) / BATCH

    both = value_and_grad(loss, (0, 1, 2, 3))
    return repeated(lambda: both(*scores.values())[0])


# --- W1v: the best paths --------------------------------------------------------------------------
# The value is the sum of the tags of all best paths.


def _viterbi_minidl(tags: int, time: int) -> Run:
    from minidl.functional.crf import viterbi

    scores, text = crf_scores(time, tags), sentences(0, time, tags)

    def run(count: int) -> int:
        for _ in range(count):
            paths, _ = viterbi(mask=text.mask, **scores)
        return int(paths[text.mask].sum())

    return run


def _viterbi_torch(tags: int, time: int) -> Run:
    import torch

    scores, text = crf_scores(time, tags), sentences(0, time, tags)
    crf, mask = _torch_crf(scores), torch.from_numpy(text.mask)
    emissions = torch.from_numpy(scores["emissions"])

    def run(count: int) -> int:
        with torch.no_grad():
            for _ in range(count):
                paths = crf.decode(emissions, mask)
        return sum(map(sum, paths))

    return run


for _tags, _time in ((9, 60), (30, 200)):
    _name = f"W1v {_tags} tags x {_time}"
    implements(_name, "minidl")(lambda size=(_tags, _time): _viterbi_minidl(*size))
    implements(_name, REFERENCE, SAME_ALLOCATOR)(lambda size=(_tags, _time): _viterbi_torch(*size))
