"""Primitives: ops with a derivative rule for each argument, and how their calls are recorded.

A primitive is a plain function on arrays. Called with Tensors it computes on their arrays and
records a Node that keeps what the rules name; called with arrays it just computes. The rules are
written with ops, so they work on arrays and on Tensors alike (see autodiff.py).
"""

from __future__ import annotations

import contextvars
import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, update_wrapper
from operator import itemgetter
from typing import Any

import numpy as np

from minidl import backend, random
from minidl.arguments import (
    agree,
    array_of,
    explain,
    positional,
    refuse_constant,
    refuse_lost,
    refuse_mixed,
)
from minidl.errors import GradientError
from minidl.graph import Leaf, Node, Parameter, Tensor, unwrap, wrap

Place = Node | Leaf
_OFF, _ON, _TRACING = 0, 1, 2  # bits
_recording: contextvars.ContextVar[int] = contextvars.ContextVar("minidl_recording", default=_ON)
_replaying: contextvars.ContextVar[bool] = contextvars.ContextVar("minidl_replay", default=False)
_SCALARS = frozenset({float, int, bool})
_KEPT_AS_IT_IS = _SCALARS | {Tensor, Parameter, str, type(None)}
_OUT, _KEPT = -1, -2
_new = object.__new__


@contextmanager
def _mode(clear: int, add: int) -> Iterator[None]:
    token = _recording.set(_recording.get() & ~clear | add)
    try:
        yield
    finally:
        _recording.reset(token)


def no_grad():
    """Context (and decorator) in which nothing is recorded."""
    return _mode(_ON, _OFF)


def enable_grad():
    """Context (and decorator) in which ops are recorded, also inside `no_grad`."""
    return _mode(_OFF, _ON)


def anomaly_mode():
    """Context that remembers where each op was called: a backward pass through such ops raises
    GradientError at the first gradient that is not finite, and names that place. Slow."""
    return _mode(_OFF, _TRACING)


def is_recording() -> bool:
    """True where ops on tensors that require a gradient are recorded."""
    return bool(_recording.get() & _ON)


def replaying() -> bool:
    """True inside an extra evaluation (`recompute`, the gradient checker): a layer must then
    neither update its buffers nor add losses."""
    return _replaying.get()


@contextmanager
def replay(state: dict | None = None) -> Iterator[None]:
    """An extra evaluation: draws from `state`, leaves the generator and layers' buffers alone."""
    token = _replaying.set(True)
    try:
        with random.replay(state):
            yield
    finally:
        _replaying.reset(token)


# --- Primitives -----------------------------------------------------------------------------------


class Rule:
    """A derivative rule, and the names of what it needs."""

    def __init__(self, function: Callable, primitive: Primitive) -> None:
        self.function = function
        code = getattr(function, "__code__", None)  # much faster than a signature, at import
        if code is not None and not hasattr(function, "__wrapped__"):
            self.names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        else:
            self.names = tuple(inspect.signature(function).parameters)
        if self.names[:1] != ("g",):
            raise TypeError(
                f"{primitive.__name__}: a rule's first parameter is the incoming gradient, g; got "
                f"({', '.join(self.names)})"
            )
        for name in self.names[1:]:
            base = name.removesuffix("_shape").removesuffix("_dtype")
            if base not in primitive.names and base not in ("out", "kept", "needs"):
                raise TypeError(
                    f"{primitive.__name__}: a rule asks for {name!r}; expected out, kept, needs "
                    f"or one of {', '.join(primitive.names)} (with _shape or _dtype)"
                )
        if "kept" in self.names and not primitive.residuals:
            raise TypeError(
                f"{primitive.__name__}: a rule asks for kept; make the op with residuals=True"
            )


class Plan:
    """What a call saves, for one set of arguments that need a gradient, and the rules to call then.

    `names` lists what is saved: the arguments that `pick` takes, then the `derived` values. `rules`
    holds (the argument's number among those with rules, its name, the function, where its own
    arguments lie among what is saved, `needs` behind that).
    """

    def __init__(self, primitive: Primitive, wanted: int) -> None:
        rules: list[tuple[int, str, Rule]] = [
            (position, name, primitive.rules[name])
            for position, name in enumerate(primitive.differentiable)
            if primitive.joint is None and wanted >> position & 1
        ]
        if primitive.joint is not None:
            rules = [(0, "joint", primitive.joint)]
        named = {name for _, _, rule in rules for name in rule.names}
        if primitive.definition is not None:  # the composition's path needs every argument
            named |= set(primitive.names)
        kept = [name for name in primitive.names if name in named]
        self.pick = _picker([primitive.names.index(name) for name in kept])
        derived = sorted(named - {"g", "needs", *kept})
        self.derived = tuple(self._source(primitive, name) for name in derived)
        self.names = (*kept, *derived)
        self.out = self.names.index("out") if "out" in named else -1
        self.keeps = "kept" in named
        at = {name: i for i, name in enumerate((*self.names, "needs"))}
        self.rules = [
            (position, name, rule.function, tuple(at[n] for n in rule.names[1:]))
            for position, name, rule in rules
        ]

    def _source(self, primitive: Primitive, name: str) -> tuple[int, str]:
        """Where a value that is no argument comes from: (argument or _OUT or _KEPT, attribute)."""
        if name in ("out", "kept"):
            return (_OUT if name == "out" else _KEPT), ""
        base, _, attribute = name.rpartition("_")
        return (_OUT if base == "out" else primitive.names.index(base)), attribute


def _picker(places: list[int]) -> Callable | None:
    """A function that takes the values at `places` out of a list, as a sequence."""
    if len(places) == 1:
        return itemgetter(slice(places[0], places[0] + 1))
    return itemgetter(*places) if places else None


class Primitive:
    """An op: a function on arrays (`body`) and its derivative rules. Made by `@primitive`."""

    __name__: str

    def __init__(
        self, body: Callable, view: bool, floats: bool, residuals: bool, constant: bool
    ) -> None:
        update_wrapper(self, body)
        self.function = body
        self.body = positional(body)
        self.view = view
        self.floats = floats
        self.residuals = residuals
        self.constant = constant
        parameters = inspect.signature(body).parameters.values()
        self.names = tuple(p.name for p in parameters)
        if taken := {"g", "out", "kept", "needs"} & set(self.names):
            raise TypeError(
                f"{self.__name__}: an op's parameter cannot be called {min(taken)!r}: in rules "
                "that means another thing; rename it"
            )
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self._required = len(self.names) - len(self.defaults)
        self._tail = tuple(self.defaults.values())
        self.differentiable: tuple[str, ...] = ()
        self.rules: dict[str, Rule] = {}
        self.joint: Rule | None = None
        self.definition: Callable | None = None
        self._bits = (0,) * len(self.names)
        self._pair: tuple[int, int] | None = None  # the positions of two arguments of data
        self._one = self._two = False  # one argument of data, then options; or two, both data
        self._plans: dict[int, Plan] = {}

    def defvjp(
        self, joint: Callable | None = None, of: Sequence[str] = (), **rules: Callable
    ) -> None:
        """Set the derivative: `argument=rule` for each differentiable one, or `joint=rule` of
        several. A rule's parameter names say what it needs: `g`, `out`, the op's own arguments,
        `<argument>_shape`, `<argument>_dtype`, `kept`, and for a joint one `needs`.
        """
        self.differentiable = tuple(of or rules or (self.names[:1] if self.variadic else ()))
        unknown = set(self.differentiable) - set(self.names)
        if unknown or not self.differentiable:
            raise TypeError(
                f"{self.__name__}: defvjp: expected rules for {', '.join(self.names)} "
                f"(joint=rule, of=(...) for several), got {sorted(unknown)}"
            )
        self.joint = None if joint is None else Rule(joint, self)
        self.rules = {name: Rule(rule, self) for name, rule in rules.items()}
        self.differentiable = tuple(n for n in self.names if n in self.differentiable)
        if self.joint is not None and of and tuple(of) != self.differentiable:
            raise TypeError(f"{self.__name__}: defvjp: of must be in the order of the arguments")
        self._bits = tuple(
            1 << self.differentiable.index(n) if n in self.differentiable else 0 for n in self.names
        )
        data = [i for i, bit in enumerate(self._bits) if bit]
        self._pair = (data[0], data[1]) if len(data) == 2 else None
        first_alone = self._bits[:1] == (1,) and len(data) == self._required == 1
        self._one = first_alone and not self.variadic
        self._two = self._bits == (1, 2) and not self.floats
        self._plans.clear()

    def define(self, composition: Callable) -> Callable:
        """Set the readable composition of this op: what `create_graph=True` differentiates when
        the rules work on arrays only."""
        self.definition = composition
        self._plans.clear()
        return composition

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for arg in args:
            if isinstance(arg, Tensor):
                return self.apply(args, kwargs)
        if kwargs and any(isinstance(arg, Tensor) for arg in kwargs.values()):
            return self.apply(args, kwargs)
        if args and args[0].__class__ is list and self._bits[0] and not self.variadic:
            args = (array_of(self, args[0]), *args[1:])
        if self.floats and args and getattr(args[0], "dtype", _FLOAT).kind in "iub":
            args = (args[0].astype(backend.current_dtype()), *args[1:])
        try:
            out = self.function(*args, **kwargs)
        except TypeError:
            refuse_mixed(self, args)
            raise
        return out[0] if self.residuals else out

    def __repr__(self) -> str:
        return f"<primitive {self.__name__}({', '.join(self.names)})>"

    def _bind(self, args: Sequence, kwargs: dict) -> list:
        """The arguments by position, defaults filled in; TypeError as Python's for wrong ones."""
        if len(args) > len(self.names):
            inspect.signature(self.body).bind(*args, **kwargs)
        if not kwargs and len(args) >= self._required:
            return [*args, *self._tail[len(args) - self._required :]]
        bound, kwargs = list(args), dict(kwargs)
        for name in self.names[len(args) :]:
            if name in kwargs:
                bound.append(kwargs.pop(name))
            elif name in self.defaults:
                bound.append(self.defaults[name])
            else:
                raise TypeError(f"{self.__name__}: missing argument {name!r}")
        if kwargs:
            name = min(kwargs)
            mend = {"dim": "; use axis", "keepdim": "; use keepdims", "out": "; use md's function"}
            raise TypeError(
                f"{self.__name__}: unexpected or repeated argument {name!r}{mend.get(name, '')}"
            )
        return bound

    def apply(self, args: Sequence, kwargs: dict) -> Any:
        """Compute on the Tensors' arrays, and record unless nothing needs a gradient."""
        count = len(args)
        if count == 1 and self._one and not kwargs:  # the hot paths, unrolled
            (x,) = args
            a = x._data
            if not self.floats or a.dtype.kind == "f":
                p = x._node
                result = self.body(a, *self._tail)
                return self._record((x, *self._tail), (p,), p is not None, result)
        if count == 2 and self._two and not kwargs:
            x, y = args
            a, p = (x._data, x._node) if isinstance(x, Tensor) else (x, None)
            b, q = (y._data, y._node) if isinstance(y, Tensor) else (y, None)
            if a.__class__ is b.__class__:
                fits = a.dtype is b.dtype
            elif b.__class__ in _SCALARS:
                fits = a.dtype.kind == "f"
            else:
                fits = a.__class__ in _SCALARS and b.dtype.kind == "f"
            if fits:
                wanted = (p is not None) + 2 * (q is not None)
                try:
                    result = self.body(a, b)
                except ValueError as error:
                    explain(self, [a, b], error)
                    raise
                return self._record(args, (p, q), wanted, result)
        if self.variadic:
            return self._apply_variadic(args, kwargs)
        if kwargs or len(args) != len(self.names):
            args = self._bind(args, kwargs)
        arrays: list = []
        parents: list = []
        wanted = 0
        for arg, bit in zip(args, self._bits):
            if isinstance(arg, Tensor):
                if bit:
                    node = arg._node
                    if node is not None:
                        wanted |= bit
                    parents.append(node)
                elif arg._node is not None and self.differentiable:
                    refuse_constant(self, self.names[len(arrays)])
                arrays.append(arg._data)
            else:
                if bit:
                    parents.append(None)
                arrays.append(arg)
        if not self._agrees(arrays):
            args = agree(self, args, arrays)
        try:
            result = self.body(*arrays)
        except (TypeError, ValueError) as error:
            explain(self, arrays, error)
            raise
        if not self.differentiable and not self.constant and is_recording():
            refuse_lost(self, args, result)
        return self._record(args, tuple(parents), wanted, result)

    def _apply_variadic(self, args: Sequence, kwargs: dict) -> Any:
        """As `apply` for `def op(*arrays, option=...)`: every positional argument is data."""
        arrays = [unwrap(arg) for arg in args]
        parents = tuple(arg._node if isinstance(arg, Tensor) else None for arg in args)
        args = agree(self, args, arrays)
        options = [kwargs.get(name, self.defaults.get(name)) for name in self.names[1:]]
        result = self.body(*arrays, **kwargs)
        if not self.differentiable and not self.constant and is_recording():
            refuse_lost(self, args, result)
        wanted = int(bool(self.differentiable) and any(p is not None for p in parents))
        return self._record([tuple(args), *options], parents, wanted, result)

    def _agrees(self, arrays: list) -> bool:
        """True in the usual cases, where the data needs no cast and shows no mixed devices."""
        if self._pair is None:
            if len(self.differentiable) > 1:
                return False
            return not self.floats or getattr(arrays[0], "dtype", _INTEGER).kind == "f"
        x, y = arrays[self._pair[0]], arrays[self._pair[1]]
        if x.__class__ in _SCALARS:
            x, y = y, x
        dtype = getattr(x, "dtype", _INTEGER)
        if y.__class__ is x.__class__:
            same = y.__class__ in _SCALARS or dtype is y.dtype
            return same and (dtype.kind == "f" or not self.floats)
        return y.__class__ in _SCALARS and dtype.kind == "f"

    def _record(self, args: Sequence, parents: Sequence, wanted: int, result: Any) -> Any:
        """The result as a Tensor, with a node that remembers the call if a gradient is needed."""
        out, kept, several, version = result, None, False, None
        if out.__class__ is not np.ndarray or self.view:  # else an array of its own: the hot path
            if self.residuals:
                out, kept = result
            several = out.__class__ is tuple
            out = tuple(self._array(o) for o in out) if several else self._array(out)
            if self.view and isinstance(args[0], Tensor):
                version = args[0]._version
        mode = _recording.get() if wanted else _OFF
        if not mode & _ON or not (several or out.dtype.kind == "f"):
            parts = (wrap(o, None, version) for o in out) if several else None
            return wrap(out, None, version) if parts is None else tuple(parts)
        plan = self._plans.get(wanted)
        if plan is None:
            plan = self._plans[wanted] = Plan(self, wanted)
        saved = plan.pick(args) if plan.pick else ()
        for value in saved:
            if value.__class__ not in _KEPT_AS_IT_IS:
                saved = [_safe(value) for value in saved]
                break
        if plan.derived:
            saved = [*saved]
            for place, attribute in plan.derived:
                value = args[place] if place >= 0 else out if place == _OUT else kept
                saved.append(_metadata(value, attribute) if attribute else value)
        trace = None if mode == _ON else "".join(traceback.format_stack(limit=8)[:-3])
        if several:
            shapes, dtypes = tuple(o.shape for o in out), tuple(o.dtype for o in out)
            return outputs_of(Node(self, plan, parents, saved, shapes, dtypes, trace), out, version)
        tensor = _new(Tensor)  # as `wrap`, without the call
        tensor._data = out
        tensor._node = Node(self, plan, parents, saved, out.shape, out.dtype, trace)
        tensor._version = version
        return tensor

    def _array(self, out: Any) -> Any:
        """What the body gave, as an array: NumPy gives scalars where 0-d arrays belong."""
        if isinstance(out, np.generic):
            return np.asarray(out)
        if not backend.is_array(out):
            raise TypeError(
                f"{self.__name__}: expected an array, or a tuple of arrays, from its body, got "
                f"{type(out).__name__}"
            )
        return out

    def contributions(
        self, node: Node, g: Any, create_graph: bool = False, leading: set | None = None
    ) -> list[tuple[str, Place, Any]]:
        """(argument, parent, what its rule returned) for each parent that wants a gradient, before
        the engine mends anything: what the gradient checker looks at."""
        if create_graph:
            _arrays(node.saved, node)  # looks for what has changed
            if self.definition is not None:
                return _differentiate_definition(node, g)
            values = self._tensors(node)
        else:
            values = _arrays(node.saved, node) if node.saved else []
        parents = node.parents
        if self.joint is not None:
            return self._jointly(node, g, values, leading)
        results = []
        for position, name, function, places in node.plan.rules:
            parent = parents[position]
            if leading is None or parent in leading:
                if len(places) == 1:  # the hot path: without a list of arguments
                    answer = function(g, values[places[0]])
                elif not places:
                    answer = function(g)
                else:
                    answer = function(g, *[values[i] for i in places])
                results.append((name, parent, answer))
        return results

    def _jointly(
        self, node: Node, g: Any, values: list, leading: set | None
    ) -> list[tuple[str, Place, Any]]:
        """As `contributions`, by the one rule for all arguments."""
        ((_, _, function, places),) = node.plan.rules
        parents = node.parents
        names: Sequence[str] = self.differentiable
        if self.variadic:
            names = self.names[:1] * len(parents)
        needs = tuple(p is not None and (leading is None or p in leading) for p in parents)
        values = [*values, needs]
        answers = function(g, *[values[i] for i in places])
        if len(answers) != len(parents):
            raise GradientError(
                f"{self.__name__}: its joint rule gave {len(answers)} gradients; expected "
                f"{len(parents)}, one for each of {', '.join(names)}"
            )
        served = zip(names, parents, answers, needs, strict=True)
        return [(name, parent, answer) for name, parent, answer, need in served if need]

    def _tensors(self, node: Node) -> list:
        """What the node saved, for create_graph: Tensors, in their places in the graph."""
        plan, values = node.plan, list(node.saved)
        if plan.keeps:
            raise GradientError(
                f"{self.__name__}: no gradient of its gradient: the rule works on arrays only; "
                "give the composition with op.define(composition)"
            )
        if plan.out >= 0:  # wrapped anew: the node keeps the array, never the Tensor
            out = values[plan.out]
            several = isinstance(out, tuple)
            values[plan.out] = outputs_of(node, out) if several else wrap(out, node, None)
        return values


_INTEGER = np.dtype(np.int64)
_FLOAT = np.dtype(np.float32)


def outputs_of(node: Node, out: tuple, version: list[int] | None = None) -> tuple[Tensor, ...]:
    """The outputs of a node that has several, each with a place of its own above it."""
    return tuple(
        wrap(o, Node(None, i, (node,), (), o.shape, o.dtype), version)
        if o.dtype.kind == "f"
        else wrap(o, None, version)
        for i, o in enumerate(out)
    )


def _safe(value: Any) -> Any:
    """An argument as a node keeps it: the user's own arrays are copied, for no version tells when
    they change, also those inside a tuple or list."""
    if value.__class__ in (tuple, list):
        return value.__class__(_safe(item) for item in value)
    return value.copy() if backend.is_array(value) else value


def refuse_changed(node: Node) -> None:
    """GradientError: what `node` needs was written after it was recorded."""
    raise GradientError(
        f"{node.op.__name__}: an input was changed in place (assign_, an optimiser's step or "
        "loading) between forward and backward; run backward first, or forward again"
    )


def _arrays(values: Sequence, node: Node) -> list:
    """The arrays of saved Tensors; GradientError for one written since `node` was recorded."""
    arrays = []
    for value in values:
        if isinstance(value, Tensor):
            version = value._version
            if version is not None and version[0] > node.order:
                refuse_changed(node)
            arrays.append(value._data)
        elif value.__class__ is tuple:
            arrays.append(tuple(_arrays(value, node)))
        else:
            arrays.append(value)
    return arrays


def _metadata(value: Any, attribute: str) -> Any:
    """The shape or dtype of an argument: an array, a Tensor, a Python number, a tuple of these."""
    found = getattr(value, attribute, None)
    if found is not None:
        return found
    if isinstance(value, tuple):
        return tuple(_metadata(item, attribute) for item in value)
    return () if attribute == "shape" else np.result_type(type(value))


def primitive(
    body: Callable | None = None,
    *,
    view: bool = False,
    floats: bool = False,
    residuals: bool = False,
    differentiable: bool = True,
) -> Any:
    """Decorator: make an op of a function on arrays; give its derivative with `defvjp`.

    view: the output may share the memory of the first argument.
    floats: integer input is cast to the default float dtype.
    residuals: the body returns (out, kept); `kept` goes to the rules under that name.
    differentiable: False for an op without a derivative: what it gives is a constant. An op that
    has no rules and does not say so raises GradientError where it makes floats of a tensor that
    requires a gradient, which would be lost.

    >>> import minidl as md
    >>> @md.primitive
    ... def cube(x):
    ...     return x * x * x
    >>> cube.defvjp(x=lambda g, x: 3 * x * x * g)
    >>> x = md.tensor(2.0, requires_grad=True)
    >>> md.grad(cube(x), [x])[0].item()
    12.0
    """
    if body is None:
        return partial(
            primitive, view=view, floats=floats, residuals=residuals, differentiable=differentiable
        )
    return Primitive(body, view, floats, residuals, constant=not differentiable)


def _differentiate_definition(node: Node, g: Any) -> list[tuple[str, Place, Any]]:
    from minidl.autodiff import differentiate_definition  # backward, which imports this module

    return differentiate_definition(node, g)
