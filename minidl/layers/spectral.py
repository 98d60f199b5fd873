"""Spectral normalization: a layer around another, which sees its own kernel divided by its norm."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from minidl import backend, ops
from minidl.autodiff import replaying
from minidl.errors import ShapeError
from minidl.functional import spectral
from minidl.functional.activations import linear
from minidl.graph import Tensor, wrap
from minidl.layers.conv import DepthwiseConv2D
from minidl.layers.layer import Layer
from minidl.ops.shape import count_of


class SpectralNormalization(Layer):
    """`layer` with its kernel divided by its spectral norm and times `coefficient`.

    layer: any with a kernel, such as Dense, Conv2D or Embedding; `weight` names another attribute
    than "kernel" or "embeddings". Its parameters stay what they are, under `layer`; optimisers,
    regularizers and ties see these.

    method: "reshaped" takes the norm of the kernel as a matrix, its last axis the columns, as
    Keras, PyTorch (but of transposed convolutions) and Miyato et al. do; "operator" that of the
    convolution itself, on inputs of the size at build. Only the second bounds how much a
    convolution stretches its input.

    The norm is estimated from below by power iteration: `power_iterations` at each call in
    training mode, from the singular vectors of the last one, the buffers `u` and `v`, and
    `warmup_iterations` when it is built. The gradient holds them fixed. Evaluation, and what runs
    under `replaying()`, leaves them as they are: after weights were set from outside, call
    `iterate(n)`; in `md.recompute` a second run sees the vectors of the last call. A kernel of
    zeros stays one.

    Built at once where `layer` is and the method is "reshaped". Raises TypeError for a layer
    without such a weight, ValueError for what is no number above 0 and for an unknown method.
    Miyato et al. 2018.
    """

    u: Tensor
    v: Tensor

    def __init__(
        self,
        layer: Layer,
        power_iterations: int = 1,
        method: str = "reshaped",
        coefficient: float = 1.0,
        warmup_iterations: int = 15,
        weight: str | None = None,
    ) -> None:
        for name, value in (
            ("power_iterations", power_iterations),
            ("warmup_iterations", warmup_iterations),
        ):
            count_of("SpectralNormalization", name, value, least=1)
        if not coefficient > 0:
            raise ValueError(
                f"SpectralNormalization: coefficient: expected > 0, got {coefficient!r}"
            )
        if method not in ("reshaped", "operator"):
            raise ValueError(
                f"SpectralNormalization: method: expected 'reshaped' or 'operator', got {method!r}"
            )
        self.layer = layer
        self.power_iterations = power_iterations
        self.method = method
        self.coefficient = coefficient
        self.warmup_iterations = warmup_iterations
        self.weight = weight
        if method == "reshaped" and not layer._waits():
            self.build(None)

    def build(self, input_shape: Any) -> None:
        if self.layer._waits():
            self.layer.build(input_shape)
        kernel = self._kernel().detach()
        if self.method == "reshaped":
            shape, groups = spectral.as_matrix(kernel).shape[:1], 1
        else:
            shape, groups = _sizes(input_shape), getattr(self.layer, "groups", 1)
            if isinstance(self.layer, DepthwiseConv2D):
                groups = shape[-1]
        start = spectral.starting_vector(shape, kernel, groups)
        start = wrap(start[0] if self.method == "reshaped" else start, None, None)
        with backend.device(kernel.device):
            for name, value in zip("uv", self._vectors(kernel, start, self.warmup_iterations)):
                self.add_buffer(name, value)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        kernel, u, v = self._kernel(), self.u, self.v
        if self.training and not replaying():
            u, v = self._vectors(kernel, u, self.power_iterations)
            self.u, self.v = u, v
        normalized = self._normalized(kernel, u, v)
        return called_with(self.layer, {self._name: normalized}, args, kwargs)

    def iterate(self, steps: int = 100) -> SpectralNormalization:
        """Run `steps` power iterations on the kernel as it is now; returns self."""
        self.u, self.v = self._vectors(self._kernel(), self.u, steps)
        return self

    def normalized_kernel(self) -> Tensor:
        """The kernel that `layer` is called with in evaluation: coefficient * kernel / sigma."""
        return self._normalized(self._kernel(), self.u, self.v)

    def sigma(self) -> Tensor:
        """The estimate of the kernel's norm, never above it, differentiable in the kernel."""
        return self._sigma(self._kernel(), self.u, self.v)

    # One matrix, or a map

    def _vectors(self, kernel: Tensor, u: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        kernel = kernel.detach()
        if self.method == "reshaped":
            return spectral.singular_vectors(spectral.as_matrix(kernel), u, steps)
        return spectral.operator_singular_vectors(
            linear_map(self.layer, self._name, kernel), u, steps
        )

    def _sigma(self, kernel: Tensor, u: Tensor, v: Tensor) -> Tensor:
        if self.method == "reshaped":
            return spectral.singular_value(spectral.as_matrix(kernel), u, v)
        f = linear_map(self.layer, self._name, kernel)
        return ops.max(spectral.operator_singular_value(f, u, v))

    def _normalized(self, kernel: Tensor, u: Tensor, v: Tensor) -> Tensor:
        if self.method == "reshaped":
            matrix = spectral.normalize(spectral.as_matrix(kernel), u, v, self.coefficient)
            return matrix if kernel.ndim == 2 else ops.reshape(matrix, kernel.shape)
        scale = spectral.scale_for(self._sigma(kernel, u, v), self.coefficient)
        return kernel * scale.astype(kernel.dtype)

    @property
    def _name(self) -> str:
        """The attribute of the layer that is normalized."""
        names = (self.weight,) if self.weight else ("kernel", "embeddings")
        for name in names:
            if isinstance(getattr(self.layer, name, None), Tensor):
                return name
        raise TypeError(
            f"SpectralNormalization: layer: expected one with a {' or '.join(names)}, got "
            f"{type(self.layer).__name__}; name the attribute by weight="
        )

    def _kernel(self) -> Tensor:
        return getattr(self.layer, self._name)


SpectralNorm = SpectralNormalization


def _sizes(input_shape: Any) -> tuple[int, ...]:
    """An item's shape, which the operator of a convolution depends on."""
    if None in input_shape[1:]:
        raise ShapeError(
            "SpectralNormalization: method 'operator': expected sizes of the input, got "
            f"{tuple(input_shape)}; call the layer once on a batch"
        )
    return tuple(input_shape[1:])


def linear_map(layer: Layer, name: str, kernel: Any) -> Callable[[Any], Tensor]:
    """x -> layer(x) with `kernel` as its attribute `name`, without bias and activation.

    Raises TypeError for a layer that is not made of a linear map, a bias and an activation.
    """
    if not {"bias", "_activate"} <= vars(layer).keys():
        raise TypeError(
            "SpectralNormalization: method 'operator': expected a convolution or Dense, got "
            f"{type(layer).__name__}; use method='reshaped'"
        )
    bare = {"bias": None, "activity_regularizer": None, "_fused": None, "_activate": linear}
    return lambda x: called_with(layer, {**bare, name: kernel}, (x,), {})


def called_with(layer: Layer, values: dict[str, Any], args: tuple, kwargs: dict) -> Any:
    """layer(*args, **kwargs) as if `values` were its attributes of these names.

    The call is that of a shallow copy: the layer itself is never without its parameters, for other
    threads and after an exception too. What else the call leaves in the copy goes to the layer.
    """
    twin = copy.copy(layer)
    before = {**vars(twin), **values}
    vars(twin).update(values)
    try:
        output = twin(*args, **kwargs)
    except Exception as error:
        if vars(error).get("_left", (None,))[0] is twin:  # the note on it names the layer
            error._left = (layer, *error._left[1:])  # type: ignore[attr-defined]
        raise
    for loss in twin.forget_losses():
        layer.add_loss(loss)
    for name, value in vars(twin).items():
        if before.get(name) is not value:
            setattr(layer, name, value)
    return output
