"""Rematerialisation policies by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

from modbrick.execution import Rematerialisation

SUBLAYER = "sublayer"


def mark_sublayer(x: jax.Array) -> jax.Array:
    """Names `x` as the output of a sublayer, which the policy `sublayers` keeps."""
    return checkpoint_name(x, SUBLAYER)


def rematerialised(function: Callable[..., Any], policy: Rematerialisation) -> Callable[..., Any]:
    """Returns `function`, whose backward pass recomputes what `policy` does not keep."""
    policies = jax.checkpoint_policies
    kept = {
        "full": policies.nothing_saveable,
        "dots": policies.dots_saveable,
        "dots_without_batch": policies.dots_with_no_batch_dims_saveable,
        "sublayers": policies.save_only_these_names(SUBLAYER),
    }
    if policy == "none":
        return function
    # Inside a scan nothing can be merged across iterations, so the barrier against it is not
    # needed.
    return jax.checkpoint(function, policy=kept[policy], prevent_cse=False)
