"""Bundles that XLA's own operations run, by their compiled schedules.

The estimates that the compiler writes into a program are no times: doubling 64 Mi numbers takes as
many estimated cycles in bfloat16 as in float32, which moves twice the bytes, and three times more
than that takes. What the compiler made of an operation says more: its loops say how often they
run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pallas_kernels.compile_report.hlo import HloProgram, Instruction
from pallas_kernels.compile_report.tpu.schedule import Schedule

_NAMES = re.compile(r"%[^\s,(){}]+")
_NOTES = re.compile(r",? ?(?:metadata|backend_config|frontend_attributes)=.*", re.DOTALL)


class OperationBundles(NamedTuple):
    """Bundles that one execution of an operation runs on a core.

    Attributes:
        bundles: of its schedule, as often as its loops run.
        exact: False if a loop does not say how often: it counts once.
    """

    bundles: int
    exact: bool


def operation_bundles(
    program: HloProgram, schedules: Mapping[str, Schedule]
) -> dict[str, OperationBundles]:
    """The bundles that operations run, where the compiler says.

    Of equal operations the compiler schedules one. Operations without a schedule of their own, such
    as those that the scalar unit does between others, are left out.

    Args:
        program: the optimised program.
        schedules: of its operations, by name; see `schedule.read_schedules`.

    Returns:
        By name of the instruction.
    """
    forms: dict[str, OperationBundles] = {}
    found: dict[str, OperationBundles] = {}
    alike: list[tuple[str, str]] = []
    for computation in program.computations.values():
        for instruction in computation.values():
            form = _form(instruction, computation, program)
            alike.append((instruction.name, form))
            if instruction.name in schedules:
                kernel = schedules[instruction.name].kernel
                known = OperationBundles(kernel.executed_bundles, kernel.trips_are_known)
                found[instruction.name] = known
                forms[form] = max(known, forms.get(form, known))
    return {name: forms[form] for name, form in alike if form in forms} | found


def _form(
    instruction: Instruction, computation: Mapping[str, Instruction], program: HloProgram
) -> str:
    """Returns the operation of an instruction, with its types and without any names."""
    operands = [computation[name].type for name in instruction.operands if name in computation]
    inside = _inside(instruction, program) if instruction.opcode == "fusion" else ""
    return _text(instruction, operands) + inside


def _inside(instruction: Instruction, program: HloProgram) -> str:
    """The same of all that it calls, values by their places."""
    lines = []
    for name in instruction.called:
        computation = program.computations[name]
        places = {inner: place for place, inner in enumerate(computation)}
        for inner in computation.values():
            operands = [places.get(operand) for operand in inner.operands]
            lines.append(_text(inner, operands) + _inside(inner, program))
    return "\n".join(["", *lines])


def _text(instruction: Instruction, operands: list[Any]) -> str:
    attributes = _NAMES.sub("%", _NOTES.sub("", instruction.attributes))
    return f"{instruction.type} {instruction.opcode}({operands}){attributes}"
