"""W6: a critic's training step, its slope held by a gradient penalty or by spectral normalization.

The Wasserstein loss of 64 real and 64 fake images of 28 x 28, gradients, Adam. Two networks: a
perceptron 784-512-256-1, and the three convolutions of models/gan.py. With the penalty the gradient
is differentiated again.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.registry import REFERENCE, SAME_ALLOCATOR, Run, as_in_fit, implements, repeated

BATCH, SIDE, WIDTHS, FILTERS = 64, 28, (512, 256), 32
RATE, PENALTY, SLOPE = 1e-3, 10.0, 0.2  # SLOPE: of leaky relu, below 0
NETWORKS = ("MLP", "conv")


def images(network: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Real and fake images, as the network takes them, and where between them the penalty looks."""
    rng = np.random.default_rng(0)
    shape = (BATCH, SIDE * SIDE) if network == "MLP" else (BATCH, SIDE, SIDE, 1)
    real, fake = (rng.uniform(size=shape).astype(np.float32) for _ in range(2))
    return real, fake, rng.uniform(size=BATCH).astype(np.float32)


def weights(network: str) -> list[np.ndarray]:
    """Kernels and biases of the network's layers, in minidl's layouts."""
    rng = np.random.default_rng(1)
    if network == "MLP":
        sides = (SIDE * SIDE, *WIDTHS, 1)
        shapes: list[tuple] = list(pairwise(sides))
    else:
        channels = (1, FILTERS, 2 * FILTERS, 4 * FILTERS)
        shapes = [(5, 5, *pair) for pair in pairwise(channels)]
        shapes.append((4 * 4 * channels[-1], 1))
    values = []
    for shape in shapes:
        inputs = np.prod(shape[:-1])
        values.append(rng.standard_normal(shape, np.float32) * np.float32(inputs**-0.5))
        values.append(0.1 * rng.standard_normal(shape[-1], np.float32))
    return values


def singular_vectors(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the kernel as a matrix (inputs, outputs), those of its largest singular value."""
    u, _, v = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), full_matrices=False)
    return u[:, 0], v[0]


# --- minidl ---------------------------------------------------------------------------------------


def _minidl(network: str, spectral: bool) -> Run:
    import minidl as md
    from minidl.functional.losses import gradient_penalty, wasserstein_critic

    critic = _critic(network, spectral)
    optimizer = md.optimizers.Adam(critic, RATE)
    real, fake, between = (md.tensor(array) for array in images(network))

    def step() -> Any:
        loss = wasserstein_critic(critic(real), critic(fake))
        if not spectral:
            loss = loss + PENALTY * gradient_penalty(critic, real, fake, between)
        optimizer.minimize(loss)
        return loss

    return as_in_fit(repeated(step), critic)


def _critic(network: str, spectral: bool) -> Any:
    import minidl as md
    from minidl.layers import Dense, Sequential, SpectralNormalization
    from models.gan import RECIPES, critic, leaky

    if network == "conv":
        model = critic(FILTERS, RECIPES["wasserstein-sn" if spectral else "wasserstein-gp"])
    else:
        sides = (SIDE * SIDE, *WIDTHS, 1)
        layers = [Dense(n, input_size=m) for m, n in pairwise(sides)]
        layers = [SpectralNormalization(x) for x in layers] if spectral else layers
        model = Sequential([x for layer in layers[:-1] for x in (layer, leaky())] + layers[-1:])
    for p, value in zip(model.parameters(), weights(network), strict=True):
        p.assign_(value)
    for _, layer in model.walk():
        if isinstance(layer, SpectralNormalization):
            kernel = layer.layer.kernel.numpy()
            layer.u, layer.v = map(md.tensor, singular_vectors(kernel))
    return model


# --- PyTorch --------------------------------------------------------------------------------------


def _torch(network: str, spectral: bool) -> Run:
    import torch

    critic = _torch_critic(network, spectral)
    optimizer = torch.optim.Adam(critic.parameters(), RATE)
    real, fake, between = map(torch.from_numpy, images(network))
    if network == "conv":
        real, fake = (x.permute(0, 3, 1, 2).contiguous() for x in (real, fake))
        between = between[:, None, None, None]
    else:
        between = between[:, None]

    def penalty() -> Any:
        x = (between * real + (1 - between) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        return ((slope.flatten(1).norm(dim=1) - 1) ** 2).mean()

    def step() -> Any:
        optimizer.zero_grad()
        loss = critic(fake).mean() - critic(real).mean()
        if not spectral:
            loss = loss + PENALTY * penalty()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return repeated(step)


def _torch_critic(network: str, spectral: bool) -> Any:
    """The same network in PyTorch's usual modules, with the same weights."""
    import torch
    from torch import nn
    from torch.nn.utils.parametrizations import spectral_norm

    values = weights(network)
    layers: list[Any] = []
    for kernel, bias in zip(values[::2], values[1::2]):
        *_, inputs, outputs = kernel.shape
        if kernel.ndim == 4:
            layer: Any = nn.Conv2d(inputs, outputs, 5, 2, padding=2)
            matrix = kernel.transpose(3, 2, 0, 1)
        else:
            layer, matrix = nn.Linear(inputs, outputs), kernel.T
        if network == "conv" and kernel.ndim == 2:  # rows in the order of channels, rows, columns
            layers.append(nn.Flatten())
            side = matrix.reshape(1, 4, 4, -1)
            matrix = side.transpose(0, 3, 1, 2).reshape(1, -1)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(matrix)))
            layer.bias.copy_(torch.from_numpy(bias))
        if spectral:
            layer = spectral_norm(layer)
            norm = layer.parametrizations.weight[0]
            if hasattr(norm, "_u"):
                v, u = singular_vectors(np.moveaxis(matrix, 0, -1))
                norm._u.copy_(torch.from_numpy(u))
                norm._v.copy_(torch.from_numpy(v))
        layers += [layer, nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers[:-1])


for _spectral, _name in ((False, "penalty"), (True, "spectral")):
    for _network in NETWORKS:
        _workload = f"W6 {_name} {_network}"
        implements(_workload, "minidl")(partial(_minidl, _network, _spectral))
        implements(_workload, REFERENCE, SAME_ALLOCATOR)(partial(_torch, _network, _spectral))
