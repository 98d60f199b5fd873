"""Images from noise: a generator, and a critic that scores images of the data above its.

What keeps the critic from becoming too steep, and with that the training from failing, is a matter
of the recipe: spectral normalization, a penalty on its slope, or clipped weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import minidl as md
from minidl.constraints import Clip
from minidl.data import Batch
from minidl.errors import SerializationError
from minidl.functional import losses
from minidl.layers import (
    Activation,
    BatchNormalization,
    Conv2D,
    Conv2DTranspose,
    Dense,
    Flatten,
    Layer,
    Reshape,
    Sequential,
    SpectralNormalization,
)


@dataclass(frozen=True)
class Recipe:
    """How a critic is trained, and what bounds its slope.

    penalty: a function of critic, real and fake images, added to the critic's loss. clip: the
    largest size of its weights. critic_steps: how many to one of the generator.
    """

    critic_loss: Callable[[Any, Any], md.Tensor]
    generator_loss: Callable[[Any], md.Tensor]
    spectral: bool = False
    penalty: Callable[[Callable, Any, Any], md.Tensor] | None = None
    clip: float | None = None
    critic_steps: int = 1


def _slope_of_one(critic: Callable, real: Any, fake: Any) -> md.Tensor:
    return 10 * losses.gradient_penalty(critic, real, fake)


def _flat_at_data(critic: Callable, real: Any, fake: Any) -> md.Tensor:
    return 5 * losses.zero_centered_penalty(critic, real)


_wasserstein = partial(Recipe, losses.wasserstein_critic, losses.wasserstein_generator)

RECIPES = {
    "hinge": Recipe(losses.hinge_critic, losses.wasserstein_generator, spectral=True),
    "wasserstein-sn": _wasserstein(spectral=True),
    "wasserstein-gp": _wasserstein(penalty=_slope_of_one, critic_steps=2),
    "wasserstein-clip": _wasserstein(clip=0.01, critic_steps=5),
    "logistic-r1": Recipe(losses.logistic_critic, losses.logistic_generator, penalty=_flat_at_data),
}


def generator(noise: int, filters: int, side: int = 28) -> Sequential:
    """Noise (batch, noise) -> images (batch, side, side, 1) in (0, 1): a map of side / 4 with
    2 * filters channels, made twice as large by each of two transposed convolutions."""
    first = side // 4
    return Sequential(
        [
            Dense(first * first * 2 * filters, use_bias=False, input_size=noise),
            Reshape((first, first, 2 * filters)),
            BatchNormalization(momentum=0.9, input_size=2 * filters),
            Activation("relu"),
            Conv2DTranspose(filters, 4, 2, "same", use_bias=False, input_size=2 * filters),
            BatchNormalization(momentum=0.9, input_size=filters),
            Activation("relu"),
            Conv2DTranspose(1, 4, 2, "same", activation="sigmoid", input_size=filters),
        ]
    )


def leaky() -> Activation:
    """The critic's activation: x, or 0.2 x where that is below 0."""
    return Activation(partial(md.leaky_relu, negative_slope=0.2))


def critic(filters: int, recipe: Recipe, side: int = 28) -> Sequential:
    """Images (batch, side, side, 1) -> scores (batch, 1): three convolutions of size 5 with stride
    2, to filters, 2 filters and 4 filters channels, and a linear unit. No batch normalization: the
    penalties are on the slope at single images."""
    clip = None if recipe.clip is None else Clip(-recipe.clip, recipe.clip)
    wrapped = SpectralNormalization if recipe.spectral else lambda layer: layer
    network: list[Layer] = []
    channels = 1
    for size in (filters, 2 * filters, 4 * filters):
        convolution = Conv2D(
            size, 5, 2, 2, kernel_constraint=clip, bias_constraint=clip, input_size=channels
        )
        network += [wrapped(convolution), leaky()]
        channels, side = size, -(-side // 2)
    score = Dense(1, kernel_constraint=clip, bias_constraint=clip, input_size=side**2 * channels)
    return Sequential([*network, Flatten(), wrapped(score)])


class GAN(Layer):
    """A generator and its critic (Goodfellow et al. 2014; Radford et al. 2016), and how they train.

    `call(noise)` gives images: (batch, noise) -> (batch, side, side, 1). recipe: a name in RECIPES.
    critic_steps: how many to one of the generator, where not the recipe's. side: a multiple of 4.

    `train_step` takes the optimisers "critic" and "generator".
    """

    train_names = ("critic_loss", "generator_loss")
    BATCH = 250  # images that are made at once where nothing is trained

    def __init__(
        self,
        recipe: str = "hinge",
        noise: int = 64,
        filters: int = 32,
        critic_steps: int | None = None,
        side: int = 28,
    ) -> None:
        if recipe not in RECIPES:
            raise ValueError(f"GAN: recipe: expected one of {', '.join(RECIPES)}, got {recipe!r}")
        if side % 4:
            raise ValueError(f"GAN: side: expected a multiple of 4, got {side}")
        self.recipe, self.noise, self.filters, self.side = recipe, noise, filters, side
        self.critic_steps = critic_steps or RECIPES[recipe].critic_steps
        self.generator = generator(noise, filters, side)
        self.critic = critic(filters, RECIPES[recipe], side)

    def call(self, z: Any) -> md.Tensor:
        return self.generator(z)

    def draw(self, count: int) -> md.Tensor:
        """Standard normal noise for so many images, from minidl's generator: (count, noise)."""
        z = md.random.generator().normal((count, self.noise), self.dtype)
        return md.tensor(z, device=self.device)

    def critic_loss(self, real: Any, fake: Any) -> md.Tensor:
        """The recipe's loss of two batches of images, with its penalty."""
        recipe = RECIPES[self.recipe]
        loss = recipe.critic_loss(self.critic(real), self.critic(fake))
        return loss if recipe.penalty is None else loss + recipe.penalty(self.critic, real, fake)

    def generator_loss(self, z: Any) -> md.Tensor:
        """The recipe's loss of the images made from noise z."""
        return RECIPES[self.recipe].generator_loss(self.critic(self.generator(z)))

    def train_step(self, batch: Batch, optimizer: Any) -> dict[str, md.Tensor]:
        """A step of the critic, and after every `critic_steps` of them one of the generator."""
        real = batch.inputs
        with md.no_grad():
            fake = self.generator(self.draw(len(real)))
        found = {"critic_loss": self.critic_loss(real, fake)}
        optimizer["critic"].minimize(found["critic_loss"])
        if optimizer["critic"].iterations % self.critic_steps == 0:
            found["generator_loss"] = self.generator_loss(self.draw(len(real)))
            optimizer["generator"].minimize(found["generator_loss"])
        return found

    # Looking

    def images(self, z: np.ndarray) -> np.ndarray:
        """The images of noise z, in evaluation mode: (n, noise) -> (n, side, side, 1)."""
        with md.evaluating(self):
            parts = [
                self(md.tensor(z[i : i + self.BATCH], dtype=self.dtype, device=self.device))
                for i in range(0, max(1, len(z)), self.BATCH)
            ]
        return np.concatenate([part.numpy() for part in parts])

    def slopes(self, images: np.ndarray) -> np.ndarray:
        """|gradient of the critic| at each image, in evaluation mode: (n,)."""
        x = md.tensor(images, requires_grad=True, dtype=self.dtype, device=self.device)
        with md.evaluating(self), md.enable_grad():
            (g,) = md.grad(md.sum(self.critic(x)), [x])
        return np.sqrt(np.square(g.numpy(), dtype=np.float64).sum((1, 2, 3)))

    def save(self, path: str | os.PathLike) -> None:
        """Write the weights and what the networks are made of to `path`."""
        names = ("recipe", "noise", "filters", "critic_steps", "side")
        md.save(path, model=self, network={name: getattr(self, name) for name in names})


def load(path: str | os.PathLike) -> GAN:
    """The networks that `save` wrote to `path`, in evaluation mode."""
    contents = md.load(path)
    if not {"model", "network"} <= set(contents):
        raise SerializationError(
            f"{os.fspath(path)}: expected what GAN.save wrote, got {sorted(contents)}"
        )
    model = GAN(**contents["network"])
    model.load_state_dict(contents["model"])
    model.eval()
    return model
