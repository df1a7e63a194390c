"""Memory of a step on one device, by part."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from modbrick.config import LayerConfig
from modbrick.execution import ExecutionConfig
from modbrick.layers.rematerialisation import HOST
from modbrick.planning.compiled.compilation import CompiledMemory
from modbrick.training.program import TrainProgram
from modbrick.training.run_config import RunConfig


@dataclasses.dataclass(frozen=True)
class MemoryParts:
    """Bytes on one device.

    Attributes:
      parameters: trainable and frozen ones.
      optimizer: moments and the like.
      batch: tokens and what comes with them.
      gradients: of the trainable parameters, float32.
      activations: what layers keep for the backward pass.
      temporaries: everything else at the worst moment: gathered weights, copies of them in the
        dtype of the computation, values inside the layer in hand, the program's code.
    """

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    activations: int
    temporaries: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in dataclasses.fields(self))


def compiled_parts(program: TrainProgram, memory: CompiledMemory) -> MemoryParts:
    """Returns the compiler's total, divided by what is known of the state and the layers.

    Parameters, optimizer and batch are exact but for the padding of layouts, gradients and
    activations counted; temporaries are the rest, so that the sum is the compiler's.
    """
    state = state_parts(program)
    known = sum(state.values())
    activations = min(
        saved_activations(program.config, dict(program.mesh.shape)),
        max(memory.total - known, 0),
    )
    return MemoryParts(
        **state, activations=activations, temporaries=memory.total - known - activations
    )


def state_parts(program: TrainProgram) -> dict[str, int]:
    """Returns the bytes on each device of parameters, optimizer, batch and gradients."""
    state = program.state
    trainable = device_bytes(state.trainable)
    return {
        "parameters": trainable + device_bytes(state.frozen),
        "optimizer": device_bytes(state.optimizer),
        "batch": device_bytes(program.batch()),
        "gradients": trainable,
    }


def device_bytes(tree: Any) -> int:
    """Returns what one device holds of arrays that are given by shape, dtype and sharding.

    What lies in the host's memory does not count.
    """
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != HOST
    )


def saved_activations(config: RunConfig, mesh: dict[str, int]) -> int:
    """Returns the bytes of one microbatch that layers keep on one device between the passes."""
    if config.execution.activation_memory == "host":
        return 0
    itemsize = 2 if config.model.dtype == "bfloat16" else 4
    tokens = microbatch_tokens(config, mesh)
    values = sum(
        _saved_values(layer, config.model.width, config.model.dtype, config.execution, mesh)
        for layer in config.model.layers
    )
    return int(tokens * values * itemsize)


def microbatch_tokens(config: RunConfig, mesh: dict[str, int]) -> float:
    """Returns the tokens of a microbatch on one device."""
    divided = np.prod([mesh[axis] for axis in ("data", "fsdp", "expert", "sequence")])
    rows = config.data.batch_size / config.training.microbatches
    return float(rows * config.data.sequence_length / divided)


def _saved_values(
    layer: LayerConfig, width: int, dtype: str, execution: ExecutionConfig, mesh: dict[str, int]
) -> float:
    """Returns the values that a layer keeps for each token."""
    policy, tensor = execution.rematerialisation, mesh["tensor"]
    if policy == "full":
        return float(width)
    attention, feed_forward = layer.attention, layer.feed_forward
    wide = 4 / (2 if dtype == "bfloat16" else 4)
    routed = [bank for bank in (attention.experts, feed_forward.experts) if bank is not None]
    # Of a slot its expert, and two numbers in each routing plan: that of all devices of the expert
    # axis, or of all that could arrive from them; and of what is sent.
    plans = mesh["expert"] + (execution.expert_parallelism == "exchange")
    choices = wide * (1 + 2 * plans) * sum(experts.top_k for experts in routed)
    if policy == "sublayers":
        return 2.0 * width + choices
    slots = attention.experts.top_k if attention.experts else 1
    chosen = feed_forward.experts.top_k if feed_forward.experts else 1
    shared = 0 if attention.key_value == "identity" else 2 * attention.key_width
    queries = slots * attention.query_width
    if policy == "kernels":
        # Queries, and what attention gives, not rounded; of each router products and gates.
        kept = (1 + wide) * queries / tensor if attention.kind == "stickbreaking" else 0
        given = sum(experts.count + experts.top_k for experts in routed) + sum(
            experts.router.hidden for experts in routed if experts.router.kind != "linear"
        )
        return 2.0 * width + kept + choices + wide * given
    hidden = chosen * feed_forward.hidden * (2 if feed_forward.gated else 1)
    products = (queries + shared + hidden) / tensor + 2 * width
    if policy in ("dots", "dots_without_batch"):
        # Kernels are no products to the policy: those of experts and attention are computed again.
        dense = (0 if attention.experts else queries + width) + shared
        dense += 0 if feed_forward.experts else hidden + width
        return width + dense / tensor
    # Everything: both normed inputs in float32 and as they are, queries, keys, what attention
    # gives, the hidden layer before and after its activation.
    return 4.0 * width + products + queries / tensor + hidden / tensor
