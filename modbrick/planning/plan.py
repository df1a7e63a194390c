"""A plan: what a run needs on a topology, and how fast it should go there."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from jax.sharding import AbstractMesh

from modbrick.parallel import AXES
from modbrick.planning.analytic import estimated_memory
from modbrick.planning.compiled.compilation import (
    DoesNotFitError,
    Progress,
    compile_step,
    required_bytes,
)
from modbrick.planning.compiled.memory import MemoryParts, compiled_parts
from modbrick.planning.rates import Rate
from modbrick.planning.time import DEFINITION, StepTime, compiled_time, kernel_rates
from modbrick.planning.topology import Topology
from modbrick.schema import to_mapping
from modbrick.training.program import TrainProgram, train_program
from modbrick.training.run_config import RunConfig
from modbrick.training.tasks.pretraining import Pretraining


@dataclasses.dataclass(frozen=True)
class Plan:
    """Plan of one config on one topology.

    Attributes:
      config: of the run, with every choice named.
      topology: of the devices.
      fits: whether the step compiles within the devices' memory.
      memory: on one device; if it does not fit, estimated, with the compiler's total.
      time: of a step; None if it does not fit.
      compile_seconds: what compiling took on this machine, by the clock.
      processor_seconds: the same on its processors.
    """

    config: RunConfig
    topology: Topology
    fits: bool
    memory: MemoryParts
    time: StepTime | None
    compile_seconds: float
    processor_seconds: float

    @property
    def step_seconds(self) -> float:
        """Predicted time of a step; infinite if it does not fit."""
        return math.inf if self.time is None else self.time.step_seconds

    @property
    def rates(self) -> tuple[Rate, ...]:
        """Of the kernels that the step runs, each with the shape that it was measured at."""
        if self.time is None:
            return ()
        known = kernel_rates(self.config, self.topology.generation.name)
        return tuple(rate for part, rate in known.items() if part in self.time.compute)

    def to_mapping(self) -> dict[str, Any]:
        """Returns the plan as JSON-able data; seconds, bytes on one device, FLOPs of one device."""
        config, sizes = self.config, self.config.mesh.sizes(self.topology.devices)
        plan: dict[str, Any] = {
            "topology": self.topology.name,
            "slices": self.topology.slices,
            "devices": self.topology.devices,
            "mesh": sizes,
            "execution": to_mapping(config.execution),
            "microbatches": config.training.microbatches,
            "batch_size": config.data.batch_size,
            "sequence_length": config.data.sequence_length,
            "fits": self.fits,
            "hbm": {
                **dataclasses.asdict(self.memory),
                "total": self.memory.total,
                "limit": self.topology.generation.hbm_bytes,
            },
            "compile_seconds": round(self.compile_seconds, 1),
            "processor_seconds": round(self.processor_seconds, 1),
        }
        if self.time is not None:
            plan["flops"] = {"useful": self.time.useful_flops}
            plan["time"] = {
                "compute": self.time.compute,
                "hbm": self.time.hbm,
                "hbm_bytes": self.time.hbm_bytes,
                "estimated": self.time.estimated,
                "collectives": self.time.collective_seconds,
                "step": self.time.step_seconds,
                "bound": self.time.bound,
                "utilisation": self.time.utilisation,
                "highest_utilisation": self.time.highest_utilisation,
                "collective_share": self.time.collective_share,
                "tokens_per_second": config.data.batch_size
                * config.data.sequence_length
                / self.time.step_seconds,
                "definition": DEFINITION,
            }
            plan["rates"] = [dataclasses.asdict(rate) for rate in self.rates]
            plan["collectives"] = [dataclasses.asdict(total) for total in self.time.collectives]
        return plan


def abstract_program(config: RunConfig, topology: Topology) -> TrainProgram:
    """Returns the run's program on a topology, for shapes and shardings only.

    Raises:
      InputError: the mesh does not fit the devices, the model or the batch, by name.
    """
    sizes = config.mesh.sizes(topology.devices)
    return train_program(config, Pretraining(config), AbstractMesh(tuple(sizes.values()), AXES))


def named(config: RunConfig) -> RunConfig:
    """Returns the config with the TPU kernels named where it leaves a choice open.

    Softmax attention has no kernel of its own here: it is XLA's.
    """
    execution = config.execution
    stickbreaking = all(layer.attention.kind == "stickbreaking" for layer in config.model.layers)
    return dataclasses.replace(
        config,
        execution=dataclasses.replace(
            execution,
            attention=execution.attention or ("tpu" if stickbreaking else "xla"),
            dispatch=execution.dispatch or "tpu",
        ),
    )


def make_plan(config: RunConfig, topology: Topology, *, progress: Progress | None = None) -> Plan:
    """Compiles the run's step for a topology, and reads from it what it needs and takes.

    Raises:
      InputError: the mesh does not fit, a kernel's rate is not measured, or libtpu is missing.
      RuntimeError: the compiler fails for another reason than memory.
    """
    config = named(config)
    program = abstract_program(config, topology)
    kernel_rates(config, topology.generation.name)  # a missing rate is reported before compiling
    try:
        step = compile_step(config, topology, progress=progress)
    except DoesNotFitError as error:
        memory = estimated_memory(program)
        total = required_bytes(error)
        if total is not None:
            rest = max(total - (memory.total - memory.temporaries), 0)
            memory = dataclasses.replace(memory, temporaries=rest)
        return Plan(config, topology, False, memory, None, error.seconds, error.processor_seconds)
    return Plan(
        config,
        topology,
        True,
        compiled_parts(program, step.memory),
        compiled_time(config, step, topology),
        step.lowering_seconds + step.compile_seconds,
        step.processor_seconds,
    )
