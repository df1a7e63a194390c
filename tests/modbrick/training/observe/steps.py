"""Metrics of steps, made up for tests of those who gather and write them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from modbrick.layers.router import RouterStatistics
from modbrick.optimizer import OptimizerMetrics
from modbrick.training.step import StepMetrics


def statistics(seed: int) -> RouterStatistics:
    """Statistics of a router of two layers and four experts."""
    choices = np.random.default_rng(seed).integers(0, 9, (2, 4)).astype(np.float32)
    tokens = jnp.asarray(choices.sum(-1) / 2)
    counts = jnp.asarray(choices)
    return RouterStatistics(tokens, counts, counts, counts / 2, tokens, tokens, tokens)


def step_metrics(
    loss: float = 1.0, in_a_row: int = 0, routers: dict[str, RouterStatistics] | None = None
) -> StepMetrics:
    """Metrics of a step with these values."""
    return StepMetrics(
        loss=jnp.float32(loss),
        parts={"next_token": jnp.float32(2 * loss), "switch": jnp.float32(-loss)},
        weight=jnp.float32(1),
        router_statistics=routers or {},
        optimizer=OptimizerMetrics(
            gradient_norm=jnp.float32(loss / 4),
            learning_rate=jnp.float32(loss / 8),
            skipped=jnp.bool_(in_a_row > 0),
            skipped_total=jnp.int32(in_a_row),
            skipped_in_a_row=jnp.int32(in_a_row),
        ),
    )
