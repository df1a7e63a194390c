"""Time of a compiled step: products, memory and links, each by itself, added up."""

from __future__ import annotations

import dataclasses
import re

from modbrick.flops import forward_flops, training_flops
from modbrick.planning.compiled.collectives import (
    KINDS,
    SCATTERING,
    Collective,
    CollectiveTotal,
    read_collectives,
    total_by_kind,
)
from modbrick.planning.compiled.compilation import CompiledStep
from modbrick.planning.interconnect import group_bandwidth
from modbrick.planning.kernel_shapes import kernel_shapes
from modbrick.planning.rates import Rate, nearest_rate
from modbrick.planning.topology import Topology
from modbrick.training.run_config import RunConfig
from pallas_kernels.compile_report.chips import find_chip
from pallas_kernels.compile_report.hlo import Execution, HloProgram, Instruction
from pallas_kernels.compile_report.tpu.operations import OperationBundles, operation_bundles

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# The compiler writes a number of this size where it has no estimate.
_NO_ESTIMATE = 10**15

DEFINITION = (
    "Step time is the sum, with nothing overlapping: kernels at the rates of their compiled "
    "schedules, XLA's own operations at the larger of the bundles of their compiled schedules over "
    "the clock and bytes over HBM bandwidth (products, and what the compiler does not schedule in "
    "full, not below its estimate of cycles), collectives at received bytes over the bandwidth of "
    "their links. "
    "Utilisation is useful operations (three times the forward pass of active parameters and of "
    "attention over visible keys) over peak times step time; nothing recomputed or padded counts."
)


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of one step on one device, and what follows from them.

    Attributes:
      compute: of matrix products, by part of the model.
      hbm: of everything else on the device: values moved from and to memory.
      hbm_bytes: that this moves.
      estimated: of both, what the compiler left no schedule of, or one with loops that do not say
        how often they run and count once.
      collectives: what moves between devices, by kind and axes.
      useful_flops: of the step on this device.
      peak_flops: of the device, per second.
    """

    compute: dict[str, float]
    hbm: float
    hbm_bytes: float
    estimated: float
    collectives: tuple[CollectiveTotal, ...]
    useful_flops: float
    peak_flops: float

    @property
    def compute_seconds(self) -> float:
        """Of all products."""
        return sum(self.compute.values())

    @property
    def collective_seconds(self) -> float:
        """Of all collectives."""
        return sum(total.seconds for total in self.collectives)

    @property
    def step_seconds(self) -> float:
        """Predicted; nothing overlaps."""
        return self.compute_seconds + self.hbm + self.collective_seconds

    @property
    def limits(self) -> dict[str, float]:
        """Seconds of products, of memory and of links, each by itself."""
        return {
            "compute": self.compute_seconds,
            "hbm": self.hbm,
            "interconnect": self.collective_seconds,
        }

    @property
    def bound(self) -> str:
        """Resource that takes most of the step: `compute`, `hbm` or `interconnect`."""
        return max(self.limits, key=lambda name: self.limits[name])

    @property
    def utilisation(self) -> float:
        """Useful operations over peak times step time."""
        return self.useful_flops / (self.peak_flops * self.step_seconds)

    @property
    def highest_utilisation(self) -> float:
        """The same if all three overlapped to the full: no schedule of this program does better."""
        return self.useful_flops / (self.peak_flops * max(self.limits.values()))

    @property
    def collective_share(self) -> float:
        """Collectives' part of the step."""
        return self.collective_seconds / self.step_seconds


def useful_flops(config: RunConfig, devices: int) -> float:
    """Returns the useful operations of a step on each device, of whole rows without padding."""
    tokens = config.data.batch_size * config.data.sequence_length
    keys = (config.data.sequence_length + 1) / 2
    return tokens * training_flops(config.model, keys) / devices


def compiled_time(config: RunConfig, step: CompiledStep, topology: Topology) -> StepTime:
    """Returns the predicted time of a compiled step; see `DEFINITION`."""
    sizes = config.mesh.sizes(topology.devices)
    program = HloProgram(step.text)
    compute = kernel_seconds(config, topology)
    bundles = operation_bundles(program, step.schedules)
    compute["dense"] = hbm = hbm_bytes = estimated = 0.0
    executed = program.executed()
    for run in executed:
        if run.category == "kernel" or _is_collective(run.instruction):
            continue
        if 'custom_call_target="AllocateBuffer"' in run.instruction.attributes:
            continue  # which moves nothing
        multiplies = _multiplies(run.instruction, program)
        scheduled = bundles.get(run.instruction.name)
        seconds = _seconds(run, scheduled, multiplies, topology)
        if scheduled is None or not scheduled.exact:
            estimated += seconds
        if multiplies:
            compute["dense"] += seconds
        else:
            hbm += seconds
            hbm_bytes += run.bytes
    if not any(run.category == "kernel" for run in executed):
        compute = {"dense": compute["dense"]}
    timed = [
        (collective, _link_seconds(collective, step, topology))
        for collective in read_collectives(program, sizes)
    ]
    return StepTime(
        compute=compute,
        hbm=hbm,
        hbm_bytes=hbm_bytes,
        estimated=estimated,
        collectives=total_by_kind(timed),
        useful_flops=useful_flops(config, topology.devices),
        peak_flops=topology.generation.peak_flops,
    )


def kernel_seconds(config: RunConfig, topology: Topology) -> dict[str, float]:
    """Returns the seconds of a step's kernels on each device, by part of the model.

    How often a forward pass runs: once; again for the backward pass as `recomputed` says; and again
    where the batch is computed in microbatches, each of which is computed anew before its backward
    pass. A backward pass has the products that give the gradients of inputs and, as many, those of
    weights; the latter not beneath bricks, where all are frozen. Where patterns freeze some, what
    this returns is an upper bound.
    """
    tokens = config.data.batch_size * config.data.sequence_length / topology.devices
    keys = (config.data.sequence_length + 1) / 2
    flops = forward_flops(config.model, keys)
    peak = topology.generation.peak_flops
    again = 1 if config.training.microbatches > 1 else 0
    seconds = {}
    for part, rate in kernel_rates(config, topology.generation.name).items():
        forward = tokens * flops[part] / peak
        passes = 1 + again + recomputed(config, part)
        backward = 1 if config.bricks and part != "attention" else 2
        seconds[part] = forward * (passes / rate.forward + backward / rate.backward)
    return seconds


def recomputed(config: RunConfig, part: str) -> float:
    """Returns how much of a part's kernels runs again in a layer's backward pass.

    The feed-forward kernels keep their inputs, which every policy keeps or computes without them.
    `sublayers` keeps what the output bank gives, and nothing before it; `kernels` also the queries
    and what attention gives, if it is stick-breaking.
    """
    policy = config.execution.rematerialisation
    kept = config.model.layers[0].attention.kind == "stickbreaking"
    if part == "feed_forward" or policy == "none" or (policy == "kernels" and kept):
        return 0.0
    return 0.5 if part == "projections" and policy in ("sublayers", "kernels") else 1.0


def kernel_rates(config: RunConfig, generation: str) -> dict[str, Rate]:
    """Returns the rate of each part that kernels compute.

    Raises:
      InputError: one is not measured, neither at this shape nor near it.
    """
    return {
        part: nearest_rate(generation, part, shape) for part, shape in kernel_shapes(config).items()
    }


def _seconds(
    run: Execution, scheduled: OperationBundles | None, multiplies: bool, topology: Topology
) -> float:
    """Returns what an operation of XLA's takes, all its executions together."""
    cycles = 0 if scheduled is None else scheduled.bundles
    exact = scheduled is not None and scheduled.exact
    match = _CYCLES.search(run.instruction.attributes)
    # Bundles of products may wait for the matrix units, which the estimate knows.
    if match and (multiplies or not exact) and int(match[1]) < _NO_ESTIMATE:
        cycles = max(cycles, int(match[1]))
    generation = topology.generation
    running = cycles * run.executions / find_chip(generation.name).clock
    return max(running, run.bytes / generation.hbm_bandwidth)


def _link_seconds(collective: Collective, step: CompiledStep, topology: Topology) -> float:
    return collective.bytes / group_bandwidth(collective.group, step.coordinates, topology)


def _is_collective(instruction: Instruction) -> bool:
    scatters = any(name.startswith(SCATTERING) for name in instruction.called)
    return scatters or instruction.opcode.removesuffix("-start") in KINDS


def _multiplies(instruction: Instruction, program: HloProgram) -> bool:
    if instruction.opcode in ("convolution", "dot"):
        return True
    return instruction.opcode == "fusion" and any(
        _multiplies(inner, program)
        for called in instruction.called
        for inner in program.computations[called].values()
    )
