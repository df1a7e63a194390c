"""The next-token loss of a model, whatever is attached at its head."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float, Int, Key

from modbrick.bricks.dropout import keys_of_tokens
from modbrick.decoder.decoder import Decoder
from modbrick.next_token import cut, head_loss, head_token_losses, token_losses


def next_token_loss(
    model: Decoder,
    hidden: Float[Array, "B S D"],
    targets: Int[Array, "B S"],
    weights: Float[Array, "B S"],
    brick_ids: Int[Array, "B S K"] | None = None,
    random_keys: Key[Array, "B"] | None = None,
) -> Float[Array, ""]:
    """Returns the weighted sum of the losses of targets, differentiable in model and hidden states.

    Logits of more than `execution.head_chunk` positions of each row never exist. Where bricks are
    plugged in at the head, those of a part are made once more in the backward pass.

    Args:
      model: with its bricks plugged in.
      hidden: final hidden states.
      targets: ids below the vocabulary.
      weights: of each target's loss; zero where there is no target.
      brick_ids: of the bricks that each token uses; None: all.
      random_keys: one for each row, of what bricks drop; None: nothing.
    """
    if _at_head(model):
        return (weights * _losses(model, hidden, targets, brick_ids, random_keys)).sum()
    return head_loss(
        hidden,
        model.head_weight,
        targets,
        weights,
        model.config.logit_multiplier,
        model.execution.head_chunk,
    )


def next_token_losses(
    model: Decoder,
    hidden: Float[Array, "B S D"],
    targets: Int[Array, "B S"],
    brick_ids: Int[Array, "B S K"] | None = None,
) -> Float[Array, "B S"]:
    """Returns each target's loss in nats, float32; arguments as in `next_token_loss`."""
    if _at_head(model):
        return _losses(model, hidden, targets, brick_ids, None)
    return head_token_losses(
        hidden,
        model.head_weight,
        targets,
        model.config.logit_multiplier,
        model.execution.head_chunk,
    )


def _at_head(model: Decoder) -> bool:
    return model.plugged is not None and "head" in model.plugged.decoder


def _losses(
    model: Decoder,
    hidden: Array,
    targets: Array,
    brick_ids: Array | None,
    random_keys: Key[Array, "B"] | None,
) -> Float[Array, "B S"]:
    @jax.checkpoint
    def run(piece: tuple[Array, Array, Array | None, Array | None]) -> Array:
        x, target, ids, data = piece
        keys = None if data is None else jax.random.wrap_key_data(data)
        return token_losses(model.logits(x, brick_ids=ids, random_keys=keys), target)

    chunk = model.execution.head_chunk
    ids = None if brick_ids is None else cut(brick_ids, chunk)
    data = None
    if random_keys is not None:  # of tokens, so that masks do not depend on the chunks
        keys = keys_of_tokens(random_keys, hidden.shape[1])
        data = cut(jax.random.key_data(keys), chunk)
    losses = jax.lax.map(run, (cut(hidden, chunk), cut(targets, chunk), ids, data))
    return losses.swapaxes(0, 1).reshape(hidden.shape[0], -1)[:, : hidden.shape[1]]
