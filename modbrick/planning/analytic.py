"""A fast model of memory and time, to rank plans before any is compiled.

It knows shapes, useful operations and the sizes of what travels, and nothing of what a compiler
makes of them: coarse, and only good for ranking. The constants were set by compiled steps of
MoLM-700M-8B on v5p:4x4x4.
"""

from __future__ import annotations

import dataclasses
import math

import jax

from modbrick.flops import forward_flops
from modbrick.parallel import AXES
from modbrick.planning.compiled.memory import (
    MemoryParts,
    device_bytes,
    microbatch_tokens,
    saved_activations,
    state_parts,
)
from modbrick.planning.interconnect import group_bandwidth
from modbrick.planning.time import kernel_rates, kernel_seconds, useful_flops
from modbrick.planning.topology import Topology
from modbrick.training.program import TrainProgram
from modbrick.training.run_config import RunConfig

# Values of width D that a layer's working set holds for each token in bytes of the computation's
# dtype: normed inputs, queries, what experts return, in both passes, some in float32.
_WORKING_WIDTHS = 60
# Times that a layer's values of width D travel from and to memory outside of the kernels.
_PASSES_OVER_WIDTH = 130
# Share of the peak that XLA's own products reach.
_DENSE_RATE = 0.7
# Rows of a tile in bfloat16: fewer of them the compiler does not scatter.
_ROWS = 16
# Axes of a torus along which the compiler gathers.
_GATHERED_AXES = 2
# Bytes that updating one parameter moves: parameter, gradient, two moments, read and written.
_BYTES_PER_UPDATE = 36


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimate of the analytic model for one config on one topology.

    Attributes:
      memory: on one device.
      compute, hbm, collectives: seconds of a step.
      utilisation: as in a plan.
    """

    memory: MemoryParts
    compute: float
    hbm: float
    collectives: float
    utilisation: float

    @property
    def step_seconds(self) -> float:
        """Of a step, nothing overlapping."""
        return self.compute + self.hbm + self.collectives

    def fits(self, topology: Topology) -> bool:
        """Returns whether a device should hold it."""
        return self.memory.total <= topology.generation.hbm_bytes


def estimate(program: TrainProgram, topology: Topology) -> Estimate:
    """Returns the model's memory and time of a program on a topology."""
    config = program.config
    memory = _memory(program)
    compute = sum(kernel_seconds(config, topology).values()) + _dense_seconds(config, topology)
    hbm = _hbm_seconds(program, memory, topology)
    collectives = _collective_seconds(program, topology)
    step = compute + hbm + collectives
    peak = topology.generation.peak_flops
    return Estimate(
        memory, compute, hbm, collectives, useful_flops(config, topology.devices) / (peak * step)
    )


def _memory(program: TrainProgram) -> MemoryParts:
    config, sizes = program.config, dict(program.mesh.shape)
    state = state_parts(program)
    tokens = microbatch_tokens(config, sizes)
    itemsize = 2 if config.model.dtype == "bfloat16" else 4
    slots = max(
        (
            experts.top_k
            for layer in config.model.layers
            for experts in (layer.attention.experts, layer.feed_forward.experts)
            if experts is not None
        ),
        default=1,
    )
    working = tokens * config.model.width * itemsize * _WORKING_WIDTHS * slots / 2
    if config.execution.rematerialisation == "none":
        working /= 4  # most of it is kept, and counted there
    # Parameters in the dtype of the computation, as they are kept, and one layer of them whole.
    copies = state["parameters"] * itemsize / 4
    whole = copies * sizes["fsdp"] / len(config.model.layers)
    head = 4.0 * config.model.width * config.model.vocabulary / sizes["tensor"]
    logits = 4.0 * tokens / config.data.sequence_length * config.execution.head_chunk
    logits *= config.model.vocabulary
    return MemoryParts(
        **state,
        activations=saved_activations(config, sizes),
        temporaries=int(copies + 3 * whole + max(working, 2 * head + 2 * logits)),
    )


def _dense_seconds(config: RunConfig, topology: Topology) -> float:
    tokens = config.data.batch_size * config.data.sequence_length / topology.devices
    flops = forward_flops(config.model, (config.data.sequence_length + 1) / 2)
    by_kernels = kernel_rates(config, topology.generation.name)
    again = 1 if config.training.microbatches > 1 else 0
    recomputed = config.execution.rematerialisation != "none"
    total = 0.0
    for part, value in flops.items():
        if part not in by_kernels:
            # Products with a router are as good as float32: three passes of bfloat16 from inputs in
            # bfloat16, else six. The policy `kernels` keeps what they give.
            router = part == "routers"
            passes = (3 if config.model.dtype == "bfloat16" else 6) if router else 1
            kept = part == "head" or (router and config.execution.rematerialisation == "kernels")
            times = 3 + again + (recomputed and not kept)
            total += passes * value * times
    return tokens * total / (topology.generation.peak_flops * _DENSE_RATE)


def _hbm_seconds(program: TrainProgram, memory: MemoryParts, topology: Topology) -> float:
    config, sizes = program.config, dict(program.mesh.shape)
    tokens = microbatch_tokens(config, sizes) * config.training.microbatches
    itemsize = 2 if config.model.dtype == "bfloat16" else 4
    passes = _PASSES_OVER_WIDTH + (
        _PASSES_OVER_WIDTH / 3 if config.training.microbatches > 1 else 0
    )
    if config.execution.rematerialisation == "none":
        passes *= 0.75
    layers = tokens * config.model.width * itemsize * passes * len(config.model.layers)
    updates = memory.parameters / 4 * _BYTES_PER_UPDATE
    return (layers + updates) / topology.generation.hbm_bandwidth


def _collective_seconds(program: TrainProgram, topology: Topology) -> float:
    """Returns the seconds of weights gathered, gradients reduced, tokens and sums exchanged."""
    config, sizes = program.config, dict(program.mesh.shape)
    model, execution = config.model, config.execution
    itemsize = 2 if model.dtype == "bfloat16" else 4
    again = 1 if config.training.microbatches > 1 else 0
    recomputed = execution.rematerialisation != "none"
    kept = device_bytes(program.state.trainable) / 4
    others = {axis: (size - 1) / size for axis, size in sizes.items()}
    tokens = microbatch_tokens(config, sizes) * config.training.microbatches

    received = dict.fromkeys(AXES, 0.0)
    # Weights are gathered again for the backward pass, whatever else is kept.
    weights = _fsdp_values(program, topology, gathers=2 + again)
    received["fsdp"] = weights * others["fsdp"] * itemsize * config.training.microbatches
    received["data"] = 2 * kept * 4 * others["data"]
    forwards, forward_and_backward = 1 + again + recomputed, 2 + again + recomputed
    for layer in model.layers:
        attention, feed_forward = layer.attention, layer.feed_forward
        exchanged = execution.expert_parallelism == "exchange"
        # Widths that a token's data take there and back, over all devices of the axis.
        wide = 0.0
        if attention.experts is not None:
            slots = attention.experts.top_k
            wide += 4 * slots if exchanged else 2 * (1 + slots) * sizes["expert"]
        if feed_forward.experts is not None:
            chosen = feed_forward.experts.top_k
            wide += 2 * chosen if exchanged else 2 * sizes["expert"]
        wide *= tokens * model.width * itemsize * forward_and_backward
        received["expert"] += wide * others["expert"]
        received["tensor"] += 2 * 2 * tokens * model.width * itemsize * others["tensor"] * forwards
        keys = 2 * attention.key_width
        received["sequence"] += (
            tokens * keys * itemsize * (sizes["sequence"] - 1) * forward_and_backward
        )
    seconds = 0.0
    for axis, size in received.items():
        if size:
            group, coordinates = _row_major(axis, sizes, topology)
            seconds += size / group_bandwidth(group, coordinates, topology)
    return seconds


def _fsdp_values(program: TrainProgram, topology: Topology, gathers: int) -> float:
    """Returns the values that gathers and one sum of gradients move along fsdp, a microbatch.

    In units of what is whole over fsdp, as MoLM-700M-8B was compiled: a sum of which each device
    keeps fewer rows than a tile has, or a part of each row (the embedding), is an all-reduce, twice
    as much; and so are sums and gathers in groups along all three axes of a torus.
    """
    group, coordinates = _row_major("fsdp", dict(program.mesh.shape), topology)
    spanned = zip(*(coordinates[place] for place in group), strict=True)
    deep = sum(len(set(places)) > 1 for places in spanned) > _GATHERED_AXES
    total = 0.0
    for leaf in jax.tree.leaves(program.state.trainable):
        shard = leaf.sharding.shard_shape(leaf.shape)
        for place, axes in enumerate(leaf.sharding.spec):
            if "fsdp" in (axes if isinstance(axes, tuple) else (axes,)):
                whole = math.prod(shard) * program.mesh.shape["fsdp"]
                whole_sum = place == len(shard) - 1 or shard[place] < _ROWS
                total += whole * (2 * gathers + 2 if deep else gathers + 1 + whole_sum)
    return total


def _row_major(
    axis: str, sizes: dict[str, int], topology: Topology
) -> tuple[list[int], list[tuple[int, ...]]]:
    """Returns a group along an axis, and where devices lie if the mesh follows the torus's axes."""
    step = math.prod(size for name, size in sizes.items() if AXES.index(name) > AXES.index(axis))
    group = [step * i for i in range(sizes[axis])]
    per_chip = topology.generation.devices_per_chip
    coordinates = []
    for place in range(topology.devices):
        chip = place // per_chip
        within = []
        for length in reversed(topology.shape):
            within.append(chip % length)
            chip //= length
        coordinates.append((chip, *reversed(within)))
    return group, coordinates


def estimated_memory(program: TrainProgram) -> MemoryParts:
    """Returns the model's memory alone."""
    return _memory(program)
