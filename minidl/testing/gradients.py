"""Checking gradients: of users' functions and ops, of layers and of whole models.

>>> import numpy as np, minidl as md
>>> from minidl.testing import check_gradients
>>> print(check_gradients(lambda x, y: md.tanh(x @ y), np.ones((2, 3)), np.ones((3, 4))))
function: gradients of order 2 agree with differences
  arguments: x, y
  comparisons: 4, worst relative distance ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from minidl import backend
from minidl.graph import Tensor, unwrap
from minidl.recording import Primitive
from minidl.samples import FORCES, REGISTRY, Call, Draw
from minidl.testing.diagnosis import (
    Coordinates,
    GradientCheckError,
    GradientReport,
    by_coordinate,
    likely_cause,
)
from minidl.testing.differences import Tolerance, agrees, kink, within
from minidl.testing.problem import Problem, gradients, make_problem
from minidl.testing.rules import check_rules

Arrays = Sequence[np.ndarray]


def check_gradients(
    f: Callable,
    *inputs: Any,
    order: int = 2,
    directions: int = 2,
    parameters: Any = None,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    seed: int = 0,
    dtypes: bool = True,
    device: str | None = None,
) -> GradientReport:
    """Check the gradients of `f(*inputs)` and, with order=2, their gradients, in float64.

    inputs: arrays, Tensors, floats, or lists and tuples of them, of any shapes; floating ones are
    copied to float64 and differentiated, all else is constant. `f` returns a Tensor or several (in
    a tuple, list or dict). If `f` is a layer its parameters are checked too; for a closure give
    them as `parameters` (a list, or a layer). Random state is restored, buffers are not updated.

    Along `directions` random directions the slope of <f, random cotangent> is compared with central
    differences; a kink is accepted where the slope lies between those of its two sides, and
    reported. Inputs and incoming gradients must stay unchanged, gradients must not share memory,
    rules must be linear in the incoming gradient, `create_graph=True` must not change a gradient,
    and (`dtypes`; switch it off if f closes over float64 arrays) float32 must stay float32 and give
    about the same gradients.

    Raises GradientCheckError, whose message names op, argument, index, values and likely cause.

    >>> import numpy as np, minidl as md
    >>> check_gradients(md.relu, np.array([0.0, 1.0])).kinks
    ['x[0]: slopes ...']
    """
    problem = make_problem(f, inputs, {}, parameters, device)
    if not problem.point:
        raise TypeError(
            f"check_gradients: {problem.name} has nothing to differentiate by: expected a floating "
            "input (integers are constants), a layer, or parameters="
        )
    return _run(problem, order, directions, Tolerance(rtol, atol, 0.0, 0.0), seed, dtypes)


def check_call(
    f: Callable,
    call: Call,
    order: int = 2,
    directions: int = 1,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    seed: int = 0,
    dtypes: bool = True,
    device: str | None = None,
) -> GradientReport:
    """`check_gradients` for a drawn call of an op; Python numbers in it are constants, and a dtype
    among its arguments excuses it from keeping float32."""
    dtypes = dtypes and not any(_is_dtype(a) for a in (*call.args, *call.kwargs.values()))
    problem = make_problem(f, call.args, call.kwargs, (), device, floats=False)
    return _run(problem, order, directions, Tolerance(rtol, atol, 0.0, 0.0), seed, dtypes)


def check_op(op: Callable, examples: int = 10, order: int = 2, device: str = "cpu") -> None:
    """All checks on calls of a registered op, a user's own too: drawn ones and every forced corner.

    Raises GradientCheckError as `check_call`, KeyError for an op without `samples`.
    """
    entry = next((e for e in REGISTRY.values() if e.function is op), None)
    if entry is None:
        name = getattr(op, "__name__", op)
        raise KeyError(f"check_op: {name} has no samples; see minidl.testing.samples")
    sources = [Draw(seed) for seed in range(examples)] + [Draw(0, force) for force in FORCES]
    for draw in sources:
        call = entry.draw_case(draw)
        if entry.differentiable:
            check_call(op, call, order=order, device=device)
        else:
            check_constant(op, call, device=device)


def check_constant(f: Callable, call: Call, device: str | None = None) -> None:
    """Check an op without a derivative: its outputs are fresh constants, its inputs unchanged."""
    problem = make_problem(f, call.args, call.kwargs, (), device, floats=False, bare=True)
    before = [np.array(x) for x in problem.point]
    with problem.at(problem.point) as (leaves, outputs):
        for name, x, old in zip(problem.names, leaves, before, strict=True):
            if not np.array_equal(backend.to_host(x._data), old, equal_nan=True):
                message = f"{name} was written into; compute a new array"
                raise GradientCheckError("mutated input", problem.name, message, argument=name)
            if any(_shared(x._data, y._data) for y in outputs):
                message = f"the output shares memory with {name}; copy"
                raise GradientCheckError("aliasing", problem.name, message, argument=name)
        if any(y.requires_grad for y in outputs):
            message = "an output requires a gradient, the samples say differentiable=False"
            raise GradientCheckError("form", problem.name, message)


def _run(
    problem: Problem, order: int, directions: int, tolerance: Tolerance, seed: int, dtypes: bool
) -> GradientReport:
    """All checks; a failure in a function of many ops is traced to one of them."""
    report = GradientReport(problem.name, order, problem.names)
    try:
        Check(problem, report, directions, tolerance, seed).all(order)
        if dtypes and problem.point:
            _check_float32(problem, seed)
    except GradientCheckError as error:
        if isinstance(problem.function, Primitive) or error.op != problem.name:
            raise
        culprit = _blame(problem, order, tolerance, seed, dtypes)
        if culprit is None:
            raise
        message = f"{error}\n  the op to blame is {culprit.op}, checked by itself:\n  {culprit}"
        details = {
            name: value for name, value in vars(culprit).items() if name not in ("stage", "op")
        }
        raise GradientCheckError(error.stage, culprit.op, message, **details) from error
    return report


class Check:
    """The checks of one function, and then of its gradient as a function: order after order."""

    def __init__(
        self, problem: Problem, report: GradientReport, directions: int, tolerance: Tolerance,
        seed: int, level: int = 1,
    ) -> None:  # fmt: skip
        self.problem = problem
        self.report = report
        self.directions = directions
        self.tolerance = tolerance
        self.seed = seed
        self.level = level
        self.generator = np.random.default_rng([seed, level])
        self.stage = "gradient" + " of the gradient" * (level - 1)

    def all(self, order: int) -> None:
        """Raise GradientCheckError unless gradients up to `order` are right."""
        problem = self.problem
        if not problem.point:
            problem.values([])
            return
        cotangents, noise, slopes = self.backward()

        def phi(arrays: Arrays) -> float:
            pairs = zip(problem.values(arrays), cotangents, strict=True)
            return float(sum(np.sum(_weighted(y, c)) for y, c in pairs))

        self.compare(phi, noise, slopes)
        self.report.order = self.level
        if self.level == order or self.report.kinks:
            return
        derived = problem.derivative(cotangents)
        self._check_create_graph(derived, noise, slopes)
        above = Check(
            derived, self.report, self.directions, self.tolerance, self.seed, self.level + 1
        )
        try:
            above.all(order)
        except GradientCheckError as error:
            if error.stage == above.stage:  # at a kink there is no such derivative
                self._note_kinks(phi, noise, slopes)
            if not self.report.kinks:
                raise

    def backward(self) -> tuple[list[np.ndarray], float, list[np.ndarray]]:
        """Cotangents, the size of the terms in <outputs, cotangents>, and the gradients; whatever
        can be seen without differences is checked here."""
        problem = self.problem
        before = [np.array(x) for x in problem.point]
        with problem.at(problem.point) as (leaves, outputs):
            values = [np.array(backend.to_host(y._data)) for y in outputs]
            finite = [np.isfinite(y) for y in values]
            self.shapes = [y.shape for y in values]
            cotangents = [_signed(self.generator, y.shape) * ok for y, ok in zip(values, finite)]
            weights = [backend.to_device(np.array(c), problem.device) for c in cotangents]
            problem.values([x + 1e-3 for x in problem.point])  # must not disturb what is recorded
            if self.level == 1:
                check_rules(outputs, problem.device, self.seed)
            found = gradients(outputs, leaves, [Tensor(w) for w in weights])
            slopes = [np.array(backend.to_host(g._data)) for g in found]
            self._check_unchanged(leaves, outputs, before, values)
            self._check_memory(leaves, outputs, found)
        self._check_finite(slopes)
        noise = sum(np.sum(np.abs(_weighted(y, c))) for y, c in zip(values, cotangents))
        return cotangents, float(noise), slopes

    def compare(self, phi: Callable, noise: float, slopes: Arrays) -> None:
        """Slopes of phi(arrays) along random directions against differences."""
        point = self.problem.point
        count, k = self.directions, 0
        while k < count:
            k += 1
            direction = [_signed(self.generator, x.shape) for x in point]

            def along(t: float, direction: Arrays = direction) -> float:
                return phi([x + t * d for x, d in zip(point, direction, strict=True)])

            terms = [g * d for g, d in zip(slopes, direction, strict=True)]
            slope = float(sum(np.sum(term) for term in terms))
            scale = float(sum(np.sum(np.abs(term)) for term in terms))
            tolerance = replace(self.tolerance, scale=scale, noise=noise)
            right, numeric = agrees(along, slope, tolerance)
            self.report.comparisons += 1
            if right:
                distance = abs(slope - numeric) / max(scale, 1e-300)
                self.report.worst = max(self.report.worst, distance if scale > 1e-6 else 0.0)
                continue
            outside = not within(slope, kink(along, tolerance), tolerance)
            self._explain(phi, slopes, tolerance, slope, numeric, outside)
            count = max(count, 4)  # a kink: one direction is not enough

    def _explain(
        self, phi: Callable, slopes: Arrays, tolerance: Tolerance, slope: float, numeric: float,
        outside: bool,
    ) -> None:  # fmt: skip
        """Entry by entry: raise, or report the kinks."""
        found = by_coordinate(phi, self.problem.point, slopes, self.problem.names, tolerance)
        for part in found:
            if np.any(part.wrong):
                raise self._error(part)
        if outside:
            raise GradientCheckError(
                self.stage, self.problem.name,
                f"the slope along a random direction is {slope:.10g}, differences give "
                f"{numeric:.10g}, though each entry by itself agrees; likely cause: a kink at "
                "equal entries, whose gradients do not add up, or entries that were not visited",
                analytic=slope, numeric=numeric, cause="a kink",
            )  # fmt: skip
        self._note(found)

    def _note_kinks(self, phi: Callable, noise: float, slopes: Arrays) -> None:
        """Report kinks that the gradient fits: differences over both sides give it, too."""
        tolerance = replace(self.tolerance, noise=noise)
        args = phi, self.problem.point, slopes, self.problem.names, tolerance
        self._note(by_coordinate(*args, kinks_first=True))

    def _note(self, found: Sequence[Coordinates]) -> None:
        for part in found:
            for index, (left, right) in part.kinks.items():
                line = (
                    f"{_entry(part.name, index)}: slopes {left:.4g} and {right:.4g}, "
                    f"gradient {part.analytic[index]:.4g}"
                )
                if line not in self.report.kinks:
                    self.report.kinks.append(line)

    def _error(self, part: Coordinates) -> GradientCheckError:
        index = part.worst()
        analytic, numeric = float(part.analytic[index]), float(part.numeric[index])
        cause = likely_cause(part.analytic, part.numeric, self.shapes)
        return GradientCheckError(
            self.stage, self.problem.name,
            f"{int(np.sum(part.wrong))} of {part.wrong.size} entries of the gradient of "
            f"{part.name} are wrong, worst {_entry(part.name, index)}: gradient {analytic:.10g}, "
            f"differences {numeric:.10g} (off by {abs(analytic - numeric):.3g}); likely cause: "
            f"{cause}",
            argument=part.name, index=index, analytic=analytic, numeric=numeric, cause=cause,
        )  # fmt: skip

    def _fail(self, stage: str, message: str, argument: str | None = None) -> None:
        raise GradientCheckError(
            stage, self.problem.name, message, argument=argument, cause=message
        )

    def _check_create_graph(self, derived: Problem, noise: float, slopes: Arrays) -> None:
        """The first gradient must not depend on whether it is itself recorded."""
        scale = max(float(np.max(np.abs(slope), initial=0.0)) for slope in slopes)
        atol = self.tolerance.atol + 1e-9 * scale + 1e-12 * noise
        with derived.at(derived.point) as (_, recorded):
            for name, g, slope in zip(self.problem.names, recorded, slopes, strict=False):
                actual = backend.to_host(g._data)
                if not np.allclose(actual, slope, rtol=1e-8, atol=atol):
                    self._fail(
                        "create_graph",
                        f"the gradient of {name} with create_graph=True differs from the plain one "
                        f"by up to {np.max(np.abs(actual - slope)):.3g}; likely cause: the fused "
                        "rule and the definition disagree",
                        name,
                    )

    def _check_unchanged(
        self, leaves: Sequence[Tensor], outputs: Sequence[Tensor], before: Arrays, values: Arrays
    ) -> None:
        """Nothing was written into, and the same comes out where nothing is recorded."""
        for name, x, old in zip(self.problem.names, leaves, before, strict=True):
            if not np.array_equal(backend.to_host(x._data), old, equal_nan=True):
                self._fail("mutated input", f"{name} was written into; compute a new array", name)
        for y, old in zip(outputs, values, strict=True):
            if not np.array_equal(backend.to_host(y._data), old, equal_nan=True):
                self._fail("reused buffer", "another call changed the output of this one")
        for old, new in zip(values, self.problem.values(self.problem.point), strict=True):
            if not np.allclose(new, old, rtol=1e-9, atol=1e-12, equal_nan=True):
                self._fail(
                    "chance",
                    "two evaluations at one point differ: f draws numbers that minidl.random does "
                    "not give, counts its calls, or differs where nothing is recorded",
                )

    def _check_memory(
        self, leaves: Sequence[Tensor], outputs: Sequence[Tensor], found: Sequence[Tensor]
    ) -> None:
        """Gradients own their memory and have their argument's form; outputs are fresh."""
        names, function = self.problem.names, self.problem.function
        held = [(f"the gradient of {n}", g._data) for n, g in zip(names, found, strict=True)]
        held += [(n, x._data) for n, x in zip(names, leaves, strict=True)]
        for i in range(len(found)):
            for other, array in held[i + 1 :]:
                if _shared(held[i][1], array):
                    self._fail("aliasing", f"{held[i][0]} shares memory with {other}", names[i])
        for name, x, g in zip(names, leaves, found, strict=True):
            if g.shape != x.shape or g.dtype != x.dtype:
                self._fail(
                    "form", f"the gradient of {name} is {g.dtype}{list(g.shape)}, the argument "
                    f"{x.dtype}{list(x.shape)}", name,
                )  # fmt: skip
        if self.level == 1 and isinstance(function, Primitive) and not function.view:
            for name, x in zip(names, leaves, strict=True):
                if any(_shared(x._data, y._data) for y in outputs):
                    self._fail("aliasing", f"the output shares memory with {name}; copy, or "
                               "declare @primitive(view=True)", name)  # fmt: skip

    def _check_finite(self, slopes: Arrays) -> None:
        for name, slope in zip(self.problem.names, slopes, strict=True):
            if not np.all(np.isfinite(slope)):
                index = tuple(int(i[0]) for i in np.nonzero(~np.isfinite(slope)))
                raise GradientCheckError(
                    self.stage, self.problem.name,
                    f"{_entry('the gradient of ' + name, index)} is {slope[index]}; likely cause: "
                    "a division by zero, or inf - inf, in the rule",
                    argument=name, index=index, analytic=float(slope[index]), cause="not finite",
                )  # fmt: skip


def _check_float32(problem: Problem, seed: int) -> None:
    """float32 in, float32 out and back, at every rule, and about the gradients of float64."""
    with problem.at(problem.point, np.float32) as (leaves, outputs):
        for i, y in enumerate(outputs):
            if y.dtype != np.float32:
                raise GradientCheckError(
                    "dtype", problem.name,
                    f"output {i} is {y.dtype} for float32 inputs; likely cause: a NumPy scalar or "
                    "a float64 array in f (if f closes over float64 arrays, pass dtypes=False)",
                    cause=f"{y.dtype} leaks into float32",
                )  # fmt: skip
        check_rules(outputs, problem.device, seed, linear=False)
        generator = np.random.default_rng(seed)
        weights = [_signed(generator, y.shape) * np.isfinite(y.numpy()) for y in outputs]
        single = _gradients_with(weights, leaves, outputs, problem.device)
    with problem.at(problem.point) as (leaves, outputs):
        double = _gradients_with(weights, leaves, outputs, problem.device)
        noise = sum(np.sum(np.abs(_weighted(y.numpy(), w))) for y, w in zip(outputs, weights))
    scale = max(float(np.max(np.abs(g), initial=0.0)) for g in double)
    for name, g, exact in zip(problem.names, single, double, strict=True):
        if g.dtype != np.float32:
            raise GradientCheckError(
                "dtype", problem.name,
                f"the gradient of {name} is {g.dtype} for float32 inputs", argument=name,
            )  # fmt: skip
        if not np.allclose(g, exact, rtol=1e-2, atol=1e-2 * scale + 1e-4 * noise):
            raise GradientCheckError(
                "precision", problem.name,
                f"the gradient of {name} in float32 is {np.max(np.abs(g - exact)):.3g} off the one "
                "in float64; likely cause: overflow or cancellation, or a body of float32's own",
                argument=name, cause="precision",
            )  # fmt: skip


def _gradients_with(
    weights: Arrays, leaves: Sequence[Tensor], outputs: Sequence[Tensor], device: str
) -> list[np.ndarray]:
    cotangents = [Tensor(w, dtype=y.dtype, device=device) for y, w in zip(outputs, weights)]
    return [g.numpy() for g in gradients(outputs, leaves, cotangents)]


def _blame(
    problem: Problem, order: int, tolerance: Tolerance, seed: int, dtypes: bool
) -> GradientCheckError | None:
    """The failure of the first op that f calls and that fails by itself, at the same values."""
    calls: list[tuple[Primitive, Call]] = []
    with _recorded_calls(calls), problem.at(problem.point):
        pass
    for op, call in calls:
        alone = make_problem(op, call.args, call.kwargs, (), problem.device, floats=False)
        report = GradientReport(alone.name, order, alone.names)
        try:
            Check(alone, report, 1, tolerance, seed).all(order)
            if dtypes and alone.point:
                _check_float32(alone, seed)
        except GradientCheckError as error:
            return error
        except Exception:  # the op cannot be called by itself: no witness
            continue
    return None


@contextmanager
def _recorded_calls(calls: list) -> Iterator[None]:
    """Append every call of an op on Tensors to `calls`, its arguments as arrays."""
    original = Primitive._record  # every call passes it, also those of methods and operators

    def recorded(self: Primitive, args: Sequence, parents: Any, wanted: int, result: Any) -> Any:
        values = [_bare(arg) for arg in args]
        options = dict(zip(self.names[1:], values[1:])) if self.variadic else {}
        calls.append((self, Call(tuple(values[0] if self.variadic else values), options)))
        return original(self, args, parents, wanted, result)

    Primitive._record = recorded  # type: ignore[method-assign]
    try:
        yield
    finally:
        Primitive._record = original  # type: ignore[method-assign]


def _bare(value: Any) -> Any:
    """`value` with arrays for the Tensors in it."""
    if type(value) in (list, tuple):
        return type(value)(_bare(item) for item in value)
    return unwrap(value)


def _signed(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers of both signs, none near zero: no entry escapes, no two cancel."""
    sizes = generator.uniform(0.5, 1.5, shape)
    return sizes * generator.choice([-1.0, 1.0], shape)


def _weighted(y: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
    """y * cotangent, where a cotangent of 0 puts out an infinite y."""
    return np.where(cotangent != 0, y, 0.0) * cotangent


def _is_dtype(value: Any) -> bool:
    if isinstance(value, (np.dtype, type)):
        return True
    return isinstance(value, str) and value in ("float16", "float32", "float64")


def _shared(a: Any, b: Any) -> bool:
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.shares_memory(a, b)


def _entry(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, index))}]" if index else name
