"""Recurrent layers: SimpleRNN, GRU, LSTM, both directions at once, and several on top of another.

All take `mask` (batch, time), True = real, and treat masked positions as absent: the state stays as
it is, the output there is 0. Padding may stand anywhere, and one mask serves a whole stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minidl import initializers, ops
from minidl.functional import recurrent as functional
from minidl.graph import Tensor
from minidl.layers.layer import Layer

State = tuple[Any, ...]


class Recurrent(Layer):
    """What SimpleRNN, GRU and LSTM share; the subclass says which `cell` it is.

    (batch, time, inputs) -> the last output (batch, units), or with `return_sequences` all of them,
    (batch, time, units); with `return_state` a tuple of that and the last state's arrays. Named as
    in Keras: `kernel` (inputs, gates * units), `recurrent_kernel` (units, gates * units), `bias`
    (gates * units,), of a GRU (2, gates * units). Built at once where `input_size` is given.

    go_backwards: from the last position to the first. Outputs stand at the positions of their
    inputs all the same (Keras turns them round), so that the mask still fits; the last output is
    that at the first real position.
    """

    cell: functional.Cell

    def __init__(
        self,
        units: int,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        input_size: int | None = None,
    ) -> None:
        self.units = units
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.go_backwards = go_backwards
        self.use_bias = use_bias
        self._initializers = kernel_initializer, recurrent_initializer, bias_initializer
        if input_size is not None:
            self.build((None, None, input_size))

    def build(self, input_shape: Any) -> None:
        of_kernel, of_recurrent, of_bias = self._initializers
        width = self.cell.gates * self.units
        self.kernel = self.add_weight((input_shape[-1], width), of_kernel, "kernel")
        shape = (self.units, width)
        self.recurrent_kernel = self.add_weight(shape, of_recurrent, "recurrent_kernel")
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(self.cell.bias_shape(self.units), of_bias, "bias")

    def call(self, x: Any, mask: Any = None, initial_state: Any = None) -> Any:
        """initial_state: the arrays (batch, units) of the state, (h, c) of an LSTM, h or (h,) of
        the others; zeros if None. Raises ShapeError and DtypeError for arguments that do not fit.
        """
        direction = self.direction(initial_state)
        outputs, (last,) = functional.scan(self.cell, x, [direction], mask)
        return self._result(ops.squeeze(outputs, axis=2), last)

    def step(self, x: Any, state: Any = None) -> tuple[Tensor, State]:
        """One position: x (batch, inputs) and the state before give (output, the state after).

        A sequence of steps is what `call` computes, which is faster; steps are for decoding. State:
        as `initial_state`.
        """
        if not self.built:
            self._build_for(x)
        state = functional.as_state(self.cell, type(self).__name__, state)
        if state is None:
            state = functional.zero_state(self.cell, x, self.units)
        state = self.cell.step(x, state, self.kernel, self.recurrent_kernel, self.bias)
        return state[0], state

    def direction(self, initial_state: Any = None) -> functional.Direction:
        """The weights, the start and the way of this layer, as `functional.recurrent.scan` takes
        them."""
        state = functional.as_state(self.cell, type(self).__name__, initial_state)
        weights = self.kernel, self.recurrent_kernel, self.bias
        return functional.Direction(weights, state, self.go_backwards)

    def twin(self, go_backwards: bool) -> Recurrent:
        """A layer with the same options and weights of its own, as far as it has any."""
        twin = type(self)(**self._options() | {"go_backwards": go_backwards})
        if self.built:
            twin.build((None, None, self.kernel.shape[0]))
        return twin

    def _options(self) -> dict[str, Any]:
        of_kernel, of_recurrent, of_bias = self._initializers
        return {
            "units": self.units,
            "return_sequences": self.return_sequences,
            "return_state": self.return_state,
            "use_bias": self.use_bias,
            "kernel_initializer": of_kernel,
            "recurrent_initializer": of_recurrent,
            "bias_initializer": of_bias,
        }

    def _result(self, outputs: Tensor, last: State) -> Any:
        output = outputs if self.return_sequences else last[0]
        return (output, *last) if self.return_state else output


class SimpleRNN(Recurrent):
    """h_t = tanh(x_t kernel + h_{t-1} recurrent_kernel + bias); see Recurrent for the arguments."""

    cell = functional.SIMPLE_RNN


class GRU(Recurrent):
    """Gated recurrent unit, Keras's and cuDNN's form (reset_after); gates z r n, bias (2, 3 units).

    See functional.recurrent.gru_step for the equations, Recurrent for the arguments.
    """

    cell = functional.GRU


class LSTM(Recurrent):
    """Long short-term memory with gates i f g o side by side; its state is (h, c).

    unit_forget_bias: the forget gate's bias begins at 1 (Jozefowicz, Zaremba and Sutskever 2015).
    See functional.recurrent.lstm_step for the equations, Recurrent for the other arguments.
    """

    cell = functional.LSTM

    def __init__(
        self,
        units: int,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        unit_forget_bias: bool = True,
        input_size: int | None = None,
    ) -> None:
        self.unit_forget_bias = unit_forget_bias
        super().__init__(
            units, return_sequences, return_state, go_backwards, use_bias, kernel_initializer,
            recurrent_initializer, bias_initializer, input_size,
        )  # fmt: skip

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        if self.bias is not None and self.unit_forget_bias:
            bias = initializers.get(self._initializers[2])((4 * self.units,), self.bias.dtype)
            bias[self.units : 2 * self.units] = 1.0
            self.bias.assign_(bias)

    def _options(self) -> dict[str, Any]:
        return super()._options() | {"unit_forget_bias": self.unit_forget_bias}


class Bidirectional(Layer):
    """A recurrent layer and its twin of the other direction, over the same input.

    merge_mode: "concat" (batch, time, 2 units), "sum", "mul", "ave", or None: a tuple of both. The
    last outputs are merged in the same way where the layer does not return sequences. With
    `return_state`, the states of the first and those of the second follow, as in Keras; as
    `initial_state` they are taken in that order. Layers: `forward_layer`, `backward_layer`.

    The mask's real positions are what is turned round: the second layer starts at the last real
    one, wherever the padding is. Both directions run in one loop.
    """

    def __init__(
        self, layer: Recurrent, merge_mode: str | None = "concat", input_size: int | None = None
    ) -> None:
        if not isinstance(layer, Recurrent):
            raise TypeError(
                f"Bidirectional: layer: expected an LSTM, GRU or SimpleRNN, got {layer!r}; stack "
                "layers by StackedRNN([Bidirectional(...), ...])"
            )
        if merge_mode not in ("concat", "sum", "mul", "ave", None):
            raise ValueError(
                "Bidirectional: merge_mode: expected 'concat', 'sum', 'mul', 'ave' or None, got "
                f"{merge_mode!r}"
            )
        self.merge_mode = merge_mode
        self.forward_layer = layer
        self.backward_layer = layer.twin(go_backwards=not layer.go_backwards)
        if layer.built:
            self.built = True
        elif input_size is not None:
            self.build((None, None, input_size))

    @property
    def return_sequences(self) -> bool:
        """That of the layer inside."""
        return self.forward_layer.return_sequences

    @property
    def return_state(self) -> bool:
        """That of the layer inside."""
        return self.forward_layer.return_state

    def build(self, input_shape: Any) -> None:
        for layer in (self.forward_layer, self.backward_layer):
            if not layer.built:
                layer.build(input_shape)

    def call(self, x: Any, mask: Any = None, initial_state: Sequence | None = None) -> Any:
        """initial_state: the forward layer's arrays, then the backward layer's. Raises as LSTM."""
        cell = self.forward_layer.cell
        starts: Any = (None, None)
        if initial_state is not None:
            starts = initial_state[: cell.states], initial_state[cell.states :]
        layers = self.forward_layer, self.backward_layer
        directions = [layer.direction(s) for layer, s in zip(layers, starts, strict=True)]
        outputs, states = functional.scan(cell, x, directions, mask)
        if self.return_sequences:
            if self.merge_mode == "concat":
                batch, time, _, units = outputs.shape
                merged = ops.reshape(outputs, (batch, time, 2 * units))
            else:
                merged = self._merge(*ops.unstack(outputs, axis=2))
        else:
            merged = self._merge(states[0][0], states[1][0])
        if not self.return_state:
            return merged
        merged = merged if isinstance(merged, tuple) else (merged,)
        return (*merged, *states[0], *states[1])

    def _merge(self, forwards: Tensor, backwards: Tensor) -> Any:
        if self.merge_mode is None:
            return forwards, backwards
        if self.merge_mode == "concat":
            return ops.concatenate([forwards, backwards], axis=-1)
        if self.merge_mode == "mul":
            return forwards * backwards
        total = forwards + backwards
        return total if self.merge_mode == "sum" else total * 0.5


class StackedRNN(Layer):
    """Recurrent layers (Bidirectional too) on top of another, the mask handed to each.

    `stack[0]` is the first, and its kernel is named `0.kernel`. All but the last return sequences;
    what the last one returns is returned. If all return their state, the output is
    (output, [the states of each layer]), and `initial_state` is such a list.
    """

    _inline = ("layers",)

    def __init__(self, layers: Sequence[Recurrent | Bidirectional]) -> None:
        self.layers = list(layers)
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, (Recurrent, Bidirectional)):
                raise TypeError(
                    f"StackedRNN: layers[{i}]: expected a recurrent layer, got {layer!r}"
                )
            last = i + 1 == len(self.layers)
            if not last and not layer.return_sequences:
                raise ValueError(
                    f"StackedRNN: layers[{i}]: expected return_sequences=True, for the layer above "
                    "wants a sequence; only the last may return its last output alone"
                )
            if isinstance(layer, Bidirectional) and layer.merge_mode is None:
                raise ValueError(
                    f"StackedRNN: layers[{i}]: expected both directions merged, got "
                    "merge_mode=None; use 'concat'"
                )
            if layer.return_state != self.layers[0].return_state:
                raise ValueError(
                    "StackedRNN: layers: expected return_state=True of all or of none, got "
                    f"{[layer.return_state for layer in self.layers]}"
                )

    def call(self, x: Any, mask: Any = None, initial_state: Sequence | None = None) -> Any:
        """initial_state: a list, for each layer what it takes. Raises as the layers do."""
        states = []
        for layer, start in zip(self.layers, self._starts(initial_state), strict=True):
            x = layer(x, mask=mask, initial_state=start)
            if layer.return_state:
                x, *state = x
                states.append(tuple(state))
        return (x, states) if states else x

    def step(self, x: Any, state: Sequence | None = None) -> tuple[Tensor, list[State]]:
        """One position through all layers: x (batch, inputs) -> (output, [their states])."""
        states = []
        for layer, start in zip(self.layers, self._starts(state), strict=True):
            if not isinstance(layer, Recurrent):
                raise TypeError("StackedRNN: step: a Bidirectional layer needs the whole sequence")
            x, state = layer.step(x, start)
            states.append(state)
        return x, states

    def _starts(self, states: Sequence | None) -> Sequence:
        if states is None:
            return [None] * len(self.layers)
        if len(states) != len(self.layers):
            raise ValueError(
                f"StackedRNN: initial_state: expected {len(self.layers)}, one a layer, got "
                f"{len(states)}; give None for a layer that starts from zeros"
            )
        return states

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Recurrent | Bidirectional:
        return self.layers[index]
