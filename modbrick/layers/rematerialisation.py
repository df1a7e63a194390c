"""Rematerialisation policies by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from modbrick.execution import Memory, Rematerialisation
from modbrick.parallel import current_mesh
from pallas_kernels.grouped_matmul import ROUTING_PLAN
from pallas_kernels.stickbreaking_attention import RESIDUAL

LAYER_INPUT, BETWEEN = "layer_input", "between_sublayers"
ROUTER, CHOICE, NORM = "router", "choice", "norm"
HOST = "pinned_host"


def mark_layer_input(x: jax.Array) -> jax.Array:
    """Names `x` as the input of a layer, which can be kept in the host's memory."""
    return checkpoint_name(x, LAYER_INPUT)


def mark_between(x: jax.Array) -> jax.Array:
    """Names `x` as the stream between attention and feed-forward, which `sublayers` keeps."""
    return checkpoint_name(x, BETWEEN)


def mark_router(x: jax.Array) -> jax.Array:
    """Names `x` as a result of a router, product or gates, which the policy `kernels` keeps."""
    return checkpoint_name(x, ROUTER)


def mark_choice(x: jax.Array) -> jax.Array:
    """Names `x` as the experts that a router chose, which `kernels` and `sublayers` keep."""
    return checkpoint_name(x, CHOICE)


def mark_norm(x: jax.Array) -> jax.Array:
    """Names `x` as a mean that a norm takes of each token, which the policy `kernels` keeps."""
    return checkpoint_name(x, NORM)


def all_but_gathered(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Keeps everything but what is whole over fsdp: parameters are gathered again when needed.

    Kept, every layer's parameters would be whole on every device between the passes. Parameters are
    gathered by `parallel.gathered` (a sharding constraint) and, inside `jax.shard_map`, by an
    all-gather over fsdp. Constraints on activations move nothing and cost nothing twice.
    """
    if primitive.name == "all_gather":
        axes = parameters["axis_name"]
        return "fsdp" not in (axes if isinstance(axes, tuple) else (axes,))
    return primitive.name != "sharding_constraint"


def rematerialised(
    function: Callable[..., Any], policy: Rematerialisation, memory: Memory = "device"
) -> Callable[..., Any]:
    """Returns `function`, whose backward pass recomputes what `policy` does not keep.

    Args:
      function: of a layer.
      policy: see `ExecutionConfig`.
      memory: where it is kept; `host` for `full` and `sublayers`.
    """
    policies = jax.checkpoint_policies
    kept: dict[Rematerialisation, Callable[..., Any]] = {
        "none": all_but_gathered,
        "full": policies.nothing_saveable,
        "dots": policies.dots_saveable,
        "dots_without_batch": policies.dots_with_no_batch_dims_saveable,
        "sublayers": policies.save_only_these_names(BETWEEN, CHOICE, ROUTING_PLAN),
        "kernels": policies.save_only_these_names(
            BETWEEN, CHOICE, ROUTING_PLAN, NORM, ROUTER, RESIDUAL
        ),
    }
    mesh = current_mesh()
    if policy == "none" and (mesh is None or mesh.shape["fsdp"] == 1):
        return function
    chosen = kept[policy]
    if memory == "host":
        chosen = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[LAYER_INPUT, *[BETWEEN] * (policy == "sublayers")],
            offload_src="device",
            offload_dst=HOST,
        )
    # Inside a scan nothing can be merged across iterations, so the barrier against it is not
    # needed.
    return jax.checkpoint(function, policy=chosen, prevent_cse=False)
