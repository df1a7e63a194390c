"""Router health from totals."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.layers.router import RouterStatistics
from modbrick.training.observe.router_health import RouterHealth


def statistics(
    choices: list[list[float]], gates: float = 0.5, dropped: float = 0.0
) -> RouterStatistics:
    counts = np.asarray(choices, np.float32)
    tokens = counts.sum(-1) / 2
    return RouterStatistics(
        tokens=jnp.asarray(tokens),
        probability=jnp.asarray(counts),
        choices=jnp.asarray(counts),
        gates=jnp.asarray(counts * gates),
        entropy=jnp.asarray(tokens),
        squared_log_normaliser=jnp.asarray(tokens),
        dropped=jnp.full_like(tokens, dropped),
    )


def test_uniform_and_collapsed_layers() -> None:
    health = RouterHealth.from_statistics(statistics([[4, 4, 4, 4], [16, 0, 0, 0]], dropped=3))
    np.testing.assert_allclose(health.load_entropy, [1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(health.largest_share, [0.25, 1.0])
    np.testing.assert_allclose(health.dead_experts, [0, 3])
    np.testing.assert_allclose(health.gate_mass, [1.0, 1.0])  # two choices of gate one half each
    assert health.scalars() == pytest.approx(
        {
            "load_entropy": 0.5,
            "largest_share": 1.0,
            "dead_experts": 3.0,
            "gate_mass": 1.0,
            "dropped": 6.0,
            "collapsed": 0.0,  # of eight tokens nobody can tell
        }
    )


def test_a_single_expert_and_no_tokens_are_finite() -> None:
    for choices in ([[8.0]], [[0.0, 0.0]]):
        health = RouterHealth.from_statistics(statistics(choices))
        assert all(np.isfinite(v) for v in health.scalars().values())
