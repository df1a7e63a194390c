"""Bundles that XLA's own operations run, by their compiled schedules.

The estimates that the compiler writes into a program are no times: doubling 64 Mi numbers takes as
many estimated cycles in bfloat16 as in float32, which moves twice the bytes, and three times more
than that takes. What the compiler made of an operation says more: its loops tell how often they
run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pallas_kernels.compile_report.hlo import HloProgram, Instruction
from pallas_kernels.compile_report.schedule import Schedule

_NAMES = re.compile(r"%[^\s,(){}]+")
_NOTES = re.compile(r",? ?(?:metadata|backend_config|frontend_attributes)=.*", re.DOTALL)


def operation_bundles(program: HloProgram, schedules: Mapping[str, Schedule]) -> dict[str, int]:
    """The bundles that each operation runs on a core, where the compiler tells.

    Of equal operations the compiler schedules one. Left out are operations without a schedule of
    their own, such as those that the scalar unit does between others, and those with a loop whose
    trips the schedule does not tell.

    Args:
        program: the optimised program.
        schedules: of its operations, by name; see `schedule.read_schedules`.

    Returns:
        Bundles by name of the instruction, for one execution.
    """
    known = {name: schedule.kernel.executed_bundles for name, schedule in schedules.items()}
    forms: dict[str, int] = {}
    found: dict[str, int] = {}
    alike: list[tuple[str, str]] = []
    for computation in program.computations.values():
        for instruction in computation.values():
            form = _form(instruction, computation, program)
            alike.append((instruction.name, form))
            bundles = known.get(instruction.name)
            if bundles is not None:
                forms[form] = found[instruction.name] = bundles
    return {name: forms[form] for name, form in alike if form in forms} | found


def _form(
    instruction: Instruction, computation: Mapping[str, Instruction], program: HloProgram
) -> str:
    """What the instruction computes, from types to types, without any names."""
    attributes = _NAMES.sub("%", _NOTES.sub("", instruction.attributes))
    operands = [computation[name].type for name in instruction.operands if name in computation]
    inside = ""
    if instruction.opcode == "fusion":
        inside = "".join(
            _inner_form(inner, program.computations[called])
            for called in instruction.called
            for inner in program.computations[called].values()
        )
    return f"{instruction.type} {instruction.opcode}({operands}){attributes}{inside}"


def _inner_form(instruction: Instruction, computation: Mapping[str, Instruction]) -> str:
    places = {name: place for place, name in enumerate(computation)}
    operands = [places.get(name) for name in instruction.operands]
    attributes = _NAMES.sub("%", _NOTES.sub("", instruction.attributes))
    return f"\n{instruction.type} {instruction.opcode}({operands}){attributes}"
