"""Residuals of the forward pass, named for policies of rematerialisation."""

from __future__ import annotations

import jax
from jax.ad_checkpoint import checkpoint_name

RESIDUAL = "stickbreaking_attention_residual"
"""`jax.checkpoint_policies.save_only_these_names(RESIDUAL)` keeps what spares a second forward
pass: queries, outputs and remainders. Keys and values are left to the caller."""


def named(x: jax.Array) -> jax.Array:
    """Names `x` as such a residual."""
    named_x: jax.Array = checkpoint_name(x, RESIDUAL)
    return named_x
