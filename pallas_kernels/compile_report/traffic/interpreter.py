"""Runs the integers of a jaxpr and leaves the rest unknown.

Block maps, trip counts and predicates of a kernel depend on integers: grid indices and prefetched
tables. They can be computed without the arrays that the kernel multiplies. `Interpreter` evaluates
what depends on known values only; all else is `UNKNOWN`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

# Larger arrays stand for data, not for what controls a kernel.
_LARGEST = 1 << 22


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN = _Unknown()


def _divide(a: Any, b: Any) -> Any:
    if np.issubdtype(np.result_type(a, b), np.floating):
        return np.true_divide(a, b)
    # As in XLA, integers round towards zero.
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))


def _cast(value: Any, eqn: JaxprEqn) -> Any:
    return np.asarray(value).astype(eqn.params["new_dtype"])


def _broadcast(value: Any, eqn: JaxprEqn) -> Any:
    shape, axes = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    if not shape:
        return value
    value = np.asarray(value)
    expanded = [1] * len(shape)
    for axis, size in zip(axes, value.shape, strict=True):
        expanded[axis] = size
    return np.broadcast_to(value.reshape(expanded), shape)


def _invert(value: Any) -> Any:
    return np.logical_not(value) if np.asarray(value).dtype == bool else np.invert(value)


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": operator.add,
    "and": np.bitwise_and,
    "clamp": lambda low, x, high: np.clip(x, low, high),
    "copy": lambda x: x,
    "div": _divide,
    "eq": np.equal,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": operator.mul,
    "multiple_of": lambda x: x,
    "ne": np.not_equal,
    "neg": operator.neg,
    "not": _invert,
    "or": np.bitwise_or,
    "rem": np.fmod,
    "select_n": lambda which, *cases: (
        np.where(which, *reversed(cases)) if len(cases) == 2 else np.choose(which, cases)
    ),
    "shift_left": np.left_shift,
    "shift_right_arithmetic": np.right_shift,
    "sign": np.sign,
    "stop_gradient": lambda x: x,
    "sub": operator.sub,
    "xor": np.bitwise_xor,
}
_WITH_PARAMETERS: dict[str, Callable[[Any, JaxprEqn], Any]] = {
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _cast,
    "integer_pow": lambda x, eqn: x ** eqn.params["y"],
}


# These have jaxprs of their own kind, which they do not merely call.
_NO_CALLS = ("pallas_call", "run_scoped", "core_map", "cond", "while", "scan", "reduce", "sort")


def inner_jaxpr(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr of an equation that merely calls one (jit, custom derivatives and batching)."""
    if eqn.primitive.name.startswith(_NO_CALLS):
        return None
    for inner in eqn.params.values():
        if isinstance(inner, (ClosedJaxpr, Jaxpr)):
            closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
            takes, gives = len(closed.jaxpr.invars), len(closed.jaxpr.outvars)
            if (takes, gives) == (len(eqn.invars), len(eqn.outvars)):
                return closed
    return None


class Interpreter:
    """Evaluates the known part of jaxprs.

    Attributes:
        exact: whether every predicate and trip count that mattered was known.
    """

    def __init__(self) -> None:
        self.exact = True

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """The results of a jaxpr, `UNKNOWN` where they depend on an unknown value."""
        values: dict[Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else values[atom]

        for eqn in self.equations(jaxpr):
            results = self.equation(eqn, [read(atom) for atom in eqn.invars])
            values.update(zip(eqn.outvars, results, strict=True))
        # Equations left out have results that nobody needs.
        return [
            atom.val if isinstance(atom, Literal) else values.get(atom, UNKNOWN)
            for atom in jaxpr.outvars
        ]

    def equations(self, jaxpr: Jaxpr) -> Sequence[JaxprEqn]:
        """The equations that `run` evaluates."""
        return jaxpr.eqns

    def equation(self, eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        """The results of one equation."""
        name = eqn.primitive.name
        if name == "cond":
            return self.cond(eqn, inputs)
        if name == "scan":
            return self.scan(eqn, inputs)
        if name == "while":
            return self.while_loop(eqn, inputs)
        if (inner := inner_jaxpr(eqn)) is not None:
            return self.run(inner.jaxpr, inner.consts, inputs)
        if any(value is UNKNOWN for value in inputs):
            return [UNKNOWN] * len(eqn.outvars)
        if name in _ELEMENTWISE:
            return [_ELEMENTWISE[name](*inputs)]
        if name in _WITH_PARAMETERS:
            return [_WITH_PARAMETERS[name](inputs[0], eqn)]
        return self.other(eqn, inputs)

    def other(self, eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        """The results of an equation of any other kind, of known inputs: jax's own evaluation."""
        if any(getattr(v.aval, "size", 0) > _LARGEST for v in (*eqn.outvars, *eqn.invars)):
            return [UNKNOWN] * len(eqn.outvars)
        results = eqn.primitive.bind(*(jax.numpy.asarray(x) for x in inputs), **eqn.params)
        results = results if eqn.primitive.multiple_results else [results]
        return [
            np.asarray(x) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended) else x
            for x in results
        ]

    def branch(self, eqn: JaxprEqn, index: int, inputs: list[Any]) -> list[Any]:
        """Runs one branch of a conditional."""
        inner = eqn.params["branches"][index]
        return self.run(inner.jaxpr, inner.consts, inputs)

    def cond(self, eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        """Runs the branch that is taken; the last one, the "then", if that is unknown."""
        which, *rest = inputs
        branches = eqn.params["branches"]
        if which is UNKNOWN:
            self.branch_unknown(eqn)
            self.branch(eqn, len(branches) - 1, rest)
            return [UNKNOWN] * len(eqn.outvars)
        return self.branch(eqn, int(np.clip(which, 0, len(branches) - 1)), rest)

    def branch_unknown(self, eqn: JaxprEqn) -> None:
        """Called where a predicate or trip count is unknown."""
        del eqn
        self.exact = False

    def body(self, eqn: JaxprEqn, inner: ClosedJaxpr, inputs: list[Any]) -> list[Any]:
        """Runs the body of a loop once."""
        del eqn
        return self.run(inner.jaxpr, inner.consts, inputs)

    def scan(self, eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        """Runs every step."""
        params = eqn.params
        consts, carry, xs = (list(part) for part in params["ft_in"].update(inputs).unpack())
        order = range(params["length"])
        for i in reversed(order) if params["reverse"] else order:
            rows = [x if x is UNKNOWN else x[i] for x in xs]
            results = self.body(eqn, params["jaxpr"], [*consts, *carry, *rows])
            carry = list(params["ft_out"].update(results).unpack()[0])
        return [*carry, *[UNKNOWN] * (len(eqn.outvars) - len(carry))]

    def while_loop(self, eqn: JaxprEqn, inputs: list[Any]) -> Sequence[Any]:
        """Runs until the condition is false; once, if that is unknown."""
        params = eqn.params
        first, second = params["cond_nconsts"], params["body_nconsts"]
        cond_consts, body_consts = inputs[:first], inputs[first : first + second]
        carry = inputs[first + second :]
        while True:
            [go_on] = self.run(
                params["cond_jaxpr"].jaxpr, params["cond_jaxpr"].consts, [*cond_consts, *carry]
            )
            if go_on is UNKNOWN:
                self.branch_unknown(eqn)
                self.body(eqn, params["body_jaxpr"], [*body_consts, *carry])
                return [UNKNOWN] * len(eqn.outvars)
            if not go_on:
                return carry
            carry = self.body(eqn, params["body_jaxpr"], [*body_consts, *carry])
