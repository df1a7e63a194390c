"""Advice on what to change when a step does not fit."""

from __future__ import annotations

import dataclasses
from typing import Any

from modbrick.errors import InputError
from modbrick.planning.analytic import estimated_memory
from modbrick.planning.plan import Plan, abstract_program
from modbrick.planning.search import POLICIES
from modbrick.training.run_config import RunConfig

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Change:
    """One change of a config, and what a device should hold after it.

    Attributes:
      flags: as scripts take it.
      bytes: on one device.
      fits: whether that is within the limit.
    """

    flags: str
    bytes: int
    fits: bool


def largest_parts(plan: Plan) -> list[tuple[str, int]]:
    """Returns the parts of a plan's memory, the largest first."""
    parts = dataclasses.asdict(plan.memory)
    return sorted(parts.items(), key=lambda item: -item[1])


def changes(plan: Plan) -> list[Change]:
    """Returns single changes that save memory, what fits first, then what saves most.

    Sizes are the analytic model's, scaled by what the compiler said of the plan over what the model
    says of it.
    """
    limit = plan.topology.generation.hbm_bytes
    before = estimated_memory(abstract_program(plan.config, plan.topology)).total
    scale = plan.memory.total / before
    found = []
    for flags, config in _alternatives(plan.config, plan.topology.devices):
        try:
            after = estimated_memory(abstract_program(config, plan.topology)).total
        except InputError:
            continue  # a mesh or number of microbatches that does not divide is no advice
        if after < before:
            size = int(after * scale)
            found.append(Change(flags, size, size <= limit))
    return sorted(found, key=lambda change: (not change.fits, change.bytes))


def verdict(plan: Plan) -> str:
    """Returns, for a plan that does not fit, one line that says what is too large."""
    limit = plan.topology.generation.hbm_bytes
    too_large = ", ".join(f"{name} {size / _GIB:.2f} GiB" for name, size in largest_parts(plan)[:3])
    return (
        f"it does not fit {plan.topology.name}: {plan.memory.total / _GIB:.2f} of "
        f"{limit / _GIB:.2f} GiB on each device; the largest parts are {too_large}"
    )


def advice(plan: Plan) -> str:
    """Returns, for a plan that does not fit, what to try: a line each."""
    lines = ["Changes that save memory:"]
    for change in changes(plan):
        enough = "should fit" if change.fits else "not enough alone"
        lines.append(f"  {change.flags}: about {change.bytes / _GIB:.1f} GiB, {enough}")
    if len(lines) == 1:
        lines.append("  no single change of mesh, rematerialisation or microbatches saves memory:")
        lines.append("  take more devices, or a smaller batch")
    return "\n".join(lines)


def _alternatives(config: RunConfig, devices: int) -> list[tuple[str, RunConfig]]:
    found = []
    current = config.execution.rematerialisation
    later = POLICIES[POLICIES.index(current) + 1 :] if current in POLICIES else POLICIES[-1:]
    for policy in later:
        execution = dataclasses.replace(config.execution, rematerialisation=policy)
        found.append(
            (
                f"--config.execution.rematerialisation={policy}",
                dataclasses.replace(config, execution=execution),
            )
        )
    for factor in (2, 4, 8):
        count = config.training.microbatches * factor
        if config.data.batch_size % count == 0:
            training = dataclasses.replace(config.training, microbatches=count)
            found.append(
                (
                    f"--config.training.microbatches={count}",
                    dataclasses.replace(config, training=training),
                )
            )
    for field in ("optimizer_memory", "activation_memory"):
        if field == "activation_memory" and current not in ("full", "sublayers"):
            continue
        moved: Any = {field: "host"}
        execution = dataclasses.replace(config.execution, **moved)
        found.append(
            (f"--config.execution.{field}=host", dataclasses.replace(config, execution=execution))
        )
    sizes = config.mesh.sizes(devices)
    if sizes["data"] > 1:
        fsdp = sizes["fsdp"] * sizes["data"] // config.mesh.slices
        mesh = dataclasses.replace(config.mesh, data=config.mesh.slices, fsdp=fsdp)
        found.append(
            (
                f"--config.mesh.data={mesh.data} --config.mesh.fsdp={fsdp}",
                dataclasses.replace(config, mesh=mesh),
            )
        )
    return found
