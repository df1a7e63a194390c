"""The loss of a model with bricks at its head: by parts as from whole logits."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import IA3, BrickConfig, LoRA
from modbrick.bricks.functional import plugged_decoder
from modbrick.config.families import dense
from modbrick.decoder.functional import initial_parameters
from modbrick.execution import ExecutionConfig
from modbrick.next_token import token_losses
from modbrick.training.evaluation import evaluation_step
from modbrick.training.losses import next_token_loss, next_token_losses
from tests.modbrick.bricks.tiny import random_bricks

MODEL = dataclasses.replace(
    dense(vocabulary=19, width=8, layers=1, heads=2, feed_forward_width=8, dtype="float32"),
    logit_multiplier=0.5,
)
BRICKS = {
    "low": BrickConfig(("head",), LoRA(rank=2)),
    "gain": BrickConfig(("head", "layer.0.attention.value"), IA3()),
}
RANDOM = np.random.default_rng(0)
TOKENS, TARGETS = RANDOM.integers(0, 19, (2, 2, 7))
WEIGHTS = RANDOM.uniform(size=(2, 7)).astype(np.float32)
IDS = RANDOM.integers(-1, 2, (2, 7, 1))


@pytest.mark.parametrize("ids", [None, IDS], ids=["all", "by token"])
def test_loss_and_gradients_by_parts_are_those_of_whole_logits(ids: Any) -> None:
    decoder = plugged_decoder(MODEL, BRICKS, ExecutionConfig(head_chunk=3))
    parameters = initial_parameters(MODEL, jax.random.key(0)) | random_bricks(BRICKS, MODEL)

    def by_parts(parameters: Any) -> tuple[jax.Array, jax.Array]:
        model = decoder.bind(parameters)
        hidden = model.features(TOKENS, brick_ids=ids).hidden
        losses = next_token_losses(model, hidden, TARGETS, ids)
        return next_token_loss(model, hidden, TARGETS, jnp.asarray(WEIGHTS), ids), losses

    def whole(parameters: Any) -> tuple[jax.Array, jax.Array]:
        logits = decoder.bind(parameters)(TOKENS, brick_ids=ids).logits
        losses = token_losses(logits, jnp.asarray(TARGETS))
        return (losses * WEIGHTS).sum(), losses

    ours = jax.jit(jax.value_and_grad(by_parts, has_aux=True))(parameters)
    theirs = jax.jit(jax.value_and_grad(whole, has_aux=True))(parameters)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)
    assert all(np.asarray(g).any() for p, g in ours[1].items() if p.startswith("bricks."))


def test_evaluation_sees_what_is_at_the_head() -> None:
    parameters = initial_parameters(MODEL, jax.random.key(0)) | random_bricks(BRICKS, MODEL)
    batch = {
        "tokens": TOKENS,
        "targets": TARGETS,
        "segment_ids": np.ones_like(TOKENS),
        "positions": np.arange(7)[None].repeat(2, 0),
        "loss_mask": np.ones_like(TOKENS),
    }
    losses, _ = evaluation_step(MODEL, ExecutionConfig(), bricks=BRICKS)(parameters, batch)
    logits = plugged_decoder(MODEL, BRICKS).bind(parameters)(jnp.asarray(TOKENS)).logits
    np.testing.assert_allclose(losses, token_losses(logits, jnp.asarray(TARGETS)), rtol=1e-5)
