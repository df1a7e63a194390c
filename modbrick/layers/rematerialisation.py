"""Rematerialisation policies by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from modbrick.execution import Rematerialisation
from modbrick.parallel import current_mesh

SUBLAYER = "sublayer"


def mark_sublayer(x: jax.Array) -> jax.Array:
    """Names `x` as the output of a sublayer, which the policy `sublayers` keeps."""
    return checkpoint_name(x, SUBLAYER)


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


def rematerialised(function: Callable[..., Any], policy: Rematerialisation) -> Callable[..., Any]:
    """Returns `function`, whose backward pass recomputes what `policy` does not keep."""
    policies = jax.checkpoint_policies
    kept: dict[Rematerialisation, Callable[..., Any]] = {
        "none": all_but_gathered,
        "full": policies.nothing_saveable,
        "dots": policies.dots_saveable,
        "dots_without_batch": policies.dots_with_no_batch_dims_saveable,
        "sublayers": policies.save_only_these_names(SUBLAYER),
    }
    mesh = current_mesh()
    if policy == "none" and (mesh is None or mesh.shape["fsdp"] == 1):
        return function
    # Inside a scan nothing can be merged across iterations, so the barrier against it is not
    # needed.
    return jax.checkpoint(function, policy=kept[policy], prevent_cse=False)
