"""W2: the training step of the text classifier by self-attention; W2a: multi-head attention alone.

Texts of random lengths, padded, with a mask. Dropout is off, so that both systems can be seen to do
the same work. PyTorch's module is called as it is by default, and then told that nobody wants the
weights of attention: the faster of its two ways.

`python -m benchmarks.attention` prints how memory and time grow with the length.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from benchmarks.registry import REFERENCE, SAME_ALLOCATOR, Run, implements, repeated

VOCABULARY, SIZE, HEADS, LENGTH, BATCH = 20_000, 128, 8, 200, 32
BATCHES = 8  # in turn


class Texts(NamedTuple):
    """ids and mask (batch, time), labels (batch,)."""

    ids: np.ndarray
    mask: np.ndarray
    labels: np.ndarray


def texts(seed: int) -> Texts:
    """Random ids; lengths from half of LENGTH to all of it, the first one's all."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(LENGTH // 2, LENGTH + 1, BATCH)
    lengths[0] = LENGTH
    mask = np.arange(LENGTH) < lengths[:, None]
    ids = rng.integers(1, VOCABULARY, (BATCH, LENGTH)) * mask
    return Texts(ids, mask, rng.integers(0, 2, BATCH).astype(np.float32))


def weights() -> dict[str, np.ndarray]:
    """The network's first weights, under minidl's names and in its layouts."""
    rng = np.random.default_rng(2)
    values = {"embedding.embeddings": rng.standard_normal((VOCABULARY, SIZE), np.float32)}
    for name in ("query", "key", "value", "output"):
        kernel = rng.standard_normal((SIZE, SIZE), np.float32) * np.float32(SIZE**-0.5)
        values[f"attend.{name}_kernel"] = kernel
        values[f"attend.{name}_bias"] = rng.standard_normal(SIZE, np.float32) * np.float32(0.1)
    values["logit.kernel"] = rng.standard_normal((SIZE, 1), np.float32)
    return values | {"logit.bias": np.zeros(1, np.float32)}


# --- W2: a training step --------------------------------------------------------------------------


def _minidl_step() -> Run:
    import minidl as md
    from models.classifier import AttentionClassifier
    from models.text import Vocabulary

    vocabulary = Vocabulary([f"character {i}" for i in range(VOCABULARY - 2)])
    model = AttentionClassifier(vocabulary, SIZE, HEADS)
    model.dropout = md.layers.Dropout(0.0)
    model.load_state_dict(weights())
    optimizer = md.optimizers.Adam(model, 1e-3)
    batches = [((t.ids, t.mask), t.labels) for t in map(texts, range(BATCHES))]

    def run(count: int) -> float:
        train = [batches[i % BATCHES] for i in range(count)]
        return md.fit(model, model.loss, optimizer, train, verbose=False)["loss"][0]

    return run


def _torch_step(**options: Any) -> Run:
    import torch

    model = _torch_classifier(options)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batches = [[torch.from_numpy(a) for a in texts(i)] for i in range(BATCHES)]

    def run(count: int) -> Any:
        for i in range(count):
            ids, mask, labels = batches[i % BATCHES]
            optimizer.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(ids, mask), labels)
            loss.backward()
            optimizer.step()
        return loss.detach()

    return run


def _torch_classifier(options: dict[str, Any]) -> Any:
    """The classifier in PyTorch's usual modules, with the same weights; options: of attention."""
    import torch
    from torch import nn

    from minidl.functional.attention import sinusoidal_positions
    from models.classifier import AttentionClassifier

    scale = AttentionClassifier.SCALE

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, SIZE)
            self.attend = nn.MultiheadAttention(SIZE, HEADS, batch_first=True)
            self.logit = nn.Linear(SIZE, 1)
            table = sinusoidal_positions(LENGTH, SIZE).numpy()
            self.register_buffer("positions", torch.tensor(scale * table), persistent=False)

        def forward(self, ids: Any, mask: Any) -> Any:
            x = self.embedding(ids) + self.positions
            x, _ = self.attend(x, x, x, key_padding_mask=~mask, **options)
            real = mask[..., None].to(x.dtype)
            mean = (x * real).sum(1) / real.sum(1)
            return self.logit(mean)[:, 0]

    values = weights()
    three = [values[f"attend.{name}_kernel"].T for name in ("query", "key", "value")]
    biases = [values[f"attend.{name}_bias"] for name in ("query", "key", "value")]
    state = {
        "embedding.weight": values["embedding.embeddings"],
        "attend.in_proj_weight": np.concatenate(three),
        "attend.in_proj_bias": np.concatenate(biases),
        "attend.out_proj.weight": values["attend.output_kernel"].T.copy(),
        "attend.out_proj.bias": values["attend.output_bias"],
        "logit.weight": values["logit.kernel"].T.copy(),
        "logit.bias": values["logit.bias"],
    }
    model = Classifier()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return model


for _name, _options in (("W2", {}), ("W2 need_weights=False", {"need_weights": False})):
    implements(_name, "minidl")(_minidl_step)
    implements(_name, REFERENCE, SAME_ALLOCATOR)(partial(_torch_step, **_options))


# --- W2a: attention alone, forward and backward ---------------------------------------------------
# PyTorch's by its definition, as one writes it, and by its fused op. The value is the sum of the
# squares of the query's gradient.


def _three() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (BATCH, HEADS, LENGTH, SIZE // HEADS)
    return [rng.standard_normal(shape, np.float32) for _ in range(4)]


@implements("W2a explicit", "minidl")
@implements("W2a sdpa", "minidl")
def _() -> Run:
    import minidl as md
    from minidl.functional.attention import attention

    *inputs, g = map(md.tensor, _three())
    for x in inputs:
        x.requires_grad = True
    mask = md.tensor(texts(0).mask[:, None, None])
    md.tune_allocator()

    def run(count: int) -> Any:
        with md.threads(2):
            for _ in range(count):
                gradient, *_ = md.grad(attention(*inputs, mask), inputs, g)
        return md.square(gradient).sum()

    return run


def _torch_attention(function: Any) -> Run:
    import torch

    *inputs, g = map(torch.from_numpy, _three())
    for x in inputs:
        x.requires_grad_()
    mask = torch.from_numpy(texts(0).mask[:, None, None])

    def step() -> Any:
        gradient, *_ = torch.autograd.grad(function(*inputs, mask), inputs, g)
        return gradient.square().sum()

    return repeated(step)


def _explicit(query: Any, key: Any, value: Any, mask: Any) -> Any:
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return scores.masked_fill(~mask, -math.inf).softmax(-1) @ value


def _fused(query: Any, key: Any, value: Any, mask: Any) -> Any:
    import torch

    return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)


implements("W2a explicit", REFERENCE, SAME_ALLOCATOR)(lambda: _torch_attention(_explicit))
implements("W2a sdpa", REFERENCE, SAME_ALLOCATOR)(lambda: _torch_attention(_fused))


# --- How memory and time grow with the length -----------------------------------------------------
# One head of 64, batch 1, forward and backward, one thread. Each row is a process of its own.

WAYS = {
    "definition": "the whole matrix of scores, as the definition says",
    "attention": "the fused op",
    "blockwise": "blockwise_attention, 256 sources at a time",
    "local": "local_attention, window 64",
    "atrous": "atrous_attention, stride 64",
    "sparse": "sparse_attention, window 64, stride 64",
}


def _function(way: str) -> Any:
    from minidl.functional import attention
    from minidl.ops.attention import attention_definition

    return {
        "definition": lambda q, k, v: attention_definition(q, k, v, scale=0.125)[0],
        "attention": attention.attention,
        "blockwise": attention.blockwise_attention,
        "local": lambda q, k, v: attention.local_attention(q, k, v, 64),
        "atrous": lambda q, k, v: attention.atrous_attention(q, k, v, 64),
        "sparse": lambda q, k, v: attention.sparse_attention(q, k, v, 64, 64),
    }[way]


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def grow(way: str, length: int) -> dict[str, float]:
    """MiB that one step adds to the process's peak, and the processor's milliseconds for it, the
    least of several: with one thread, what else the machine does hardly matters."""
    import minidl as md

    function = _function(way)
    rng = np.random.default_rng(0)

    def step(length: int) -> None:
        arrays = [rng.standard_normal((1, 1, length, 64), np.float32) for _ in range(3)]
        inputs = [md.tensor(a, requires_grad=True) for a in arrays]
        began = time.process_time()
        function(*inputs).sum().backward()
        times.append(time.process_time() - began)

    times: list[float] = []
    with md.threads(1):
        step(128)  # what is loaded and remembered once
        before = _peak_mib()
        step(length)
        peak, times = _peak_mib() - before, []
        while len(times) < 3 or (sum(times) < 0.5 and len(times) < 20):
            step(length)
    return {"mib": peak, "ms": 1000 * min(times)}


def main() -> None:
    """The tables: lengths from 1,024 to 8,192."""
    lengths = (1_024, 2_048, 4_096, 8_192)
    print(f"{'':<12}" + "".join(f"{n:>18,}" for n in lengths))
    print(f"{'':<12}" + f"{'ms':>9}{'MiB':>9}" * len(lengths))
    for way in WAYS:
        cells = ""
        for length in lengths:
            command = [sys.executable, "-m", "benchmarks.attention", way, str(length)]
            answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
            cells += f"{answer['ms']:>9.1f}{answer['mib']:>9.0f}"
        print(f"{way:<12}{cells}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(grow(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
