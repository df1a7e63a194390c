"""The next-token loss, from logits or from final hidden states."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from modbrick.parallel import BATCH_AXES, current_mesh, parameter_spec

# Where the head is applied, the tensor axis divides positions: whole logits on every device.
_POSITION_AXES = ("sequence", "tensor")
_POSITIONS = PartitionSpec(BATCH_AXES, _POSITION_AXES)
_HIDDEN = PartitionSpec(BATCH_AXES, _POSITION_AXES, None)
_HEAD = parameter_spec(("width", "vocabulary"))


def token_losses(logits: Float[Array, "... V"], targets: Int[Array, "..."]) -> Float[Array, "..."]:
    """Returns the negative log-likelihood of each target in nats, float32."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def head_loss(
    hidden: Float[Array, "B S D"],
    weight: Float[Array, "D V"],
    targets: Int[Array, "B S"],
    weights: Float[Array, "B S"],
    multiplier: float,
    chunk: int,
) -> Float[Array, ""]:
    """Weighted sum of next-token losses from final hidden states, by chunks of positions.

    Logits of more than one chunk never exist. The gradient is computed together with the loss, so
    the backward pass multiplies no matrices; it costs one copy of the head's gradient until then.
    On a mesh each device computes the losses of its own rows and positions, whole over the
    vocabulary; the tensor axis divides positions here.

    Args:
      hidden: final hidden states.
      weight: of the head, float32.
      targets: ids below V.
      weights: of each target's loss; zero where there is no target.
      multiplier: of the logits.
      chunk: positions of every sequence at a time; batches stay whole, so that their sharding does.
    """
    chex.assert_equal_shape([targets, weights])
    chex.assert_equal_shape_prefix([hidden, targets], 2)
    mesh = current_mesh()
    if mesh is None:
        return _head_loss(hidden, weight, targets, weights, multiplier, chunk)

    def local(hidden: Array, weight: Array, targets: Array, weights: Array) -> Array:
        loss = _head_loss(hidden, _whole_head(weight), targets, weights, multiplier, chunk)
        return jax.lax.psum(loss, (*BATCH_AXES, *_POSITION_AXES))

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(_HIDDEN, _HEAD, _POSITIONS, _POSITIONS),
        out_specs=PartitionSpec(),
        check_vma=False,  # the rule for its gradient is one of our own
    )(hidden, weight, targets, weights)


def head_token_losses(
    hidden: Float[Array, "B S D"],
    weight: Float[Array, "D V"],
    targets: Int[Array, "B S"],
    multiplier: float,
    chunk: int,
) -> Float[Array, "B S"]:
    """Returns each target's loss in nats, float32; arguments as in `head_loss`."""
    mesh = current_mesh()
    if mesh is None:
        return _head_token_losses(hidden, weight, targets, multiplier, chunk)

    def local(hidden: Array, weight: Array, targets: Array) -> Array:
        return _head_token_losses(hidden, _whole_head(weight), targets, multiplier, chunk)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(_HIDDEN, _HEAD, _POSITIONS),
        out_specs=_POSITIONS,
        check_vma=False,
    )(hidden, weight, targets)


def _whole_head(weight: Float[Array, "d v"]) -> Float[Array, "D V"]:
    weight = jax.lax.all_gather(weight, "fsdp", axis=0, tiled=True)
    return jax.lax.all_gather(weight, "tensor", axis=1, tiled=True)


def _head_token_losses(
    hidden: Array, weight: Array, targets: Array, multiplier: float, chunk: int
) -> Array:
    def run(piece: tuple[Array, Array]) -> Array:
        x, target = piece
        return token_losses(_dot("bsd,dv->bsv", x, weight) * multiplier, target)

    losses = jax.lax.map(run, (cut(hidden, chunk), cut(targets, chunk)))
    return losses.swapaxes(0, 1).reshape(hidden.shape[0], -1)[:, : hidden.shape[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _head_loss(
    hidden: Array, weight: Array, targets: Array, weights: Array, multiplier: float, chunk: int
) -> Array:
    losses = _head_token_losses(hidden, weight, targets, multiplier, chunk)
    return (weights.astype(jnp.float32) * losses).sum()


def _head_loss_forward(
    hidden: Array, weight: Array, targets: Array, weights: Array, multiplier: float, chunk: int
) -> tuple[Array, tuple[Array, Array]]:
    """Returns the loss, and both gradients as residuals."""
    cast = weight.astype(hidden.dtype)

    def run(
        carry: tuple[Array, Array], piece: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], Array]:
        total, weight_gradient = carry
        x, target, scale = piece
        logits = _dot("bsd,dv->bsv", x, cast) * multiplier
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        total = total + (scale * (normaliser - chosen)).sum()
        hot = target[..., None] == jnp.arange(logits.shape[-1])
        gradient = jnp.exp(logits - normaliser[..., None]) - hot
        gradient = (gradient * (multiplier * scale)[..., None]).astype(hidden.dtype)
        x_gradient = _dot("bsv,dv->bsd", gradient, cast).astype(hidden.dtype)
        return (total, weight_gradient + _dot("bsd,bsv->dv", x, gradient)), x_gradient

    start = (jnp.float32(0.0), jnp.zeros(weight.shape, jnp.float32))
    pieces = tuple(cut(x, chunk) for x in (hidden, targets, weights.astype(jnp.float32)))
    (total, weight_gradient), gradients = jax.lax.scan(run, start, pieces)
    gradients = gradients.swapaxes(0, 1).reshape(hidden.shape[0], -1, hidden.shape[2])
    return total, (gradients[:, : hidden.shape[1]], weight_gradient)


def _head_loss_backward(
    multiplier: float, chunk: int, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array, None, None]:
    del multiplier, chunk
    x_gradient, weight_gradient = residuals
    return (
        (x_gradient * cotangent).astype(x_gradient.dtype),
        weight_gradient * cotangent,
        None,
        None,
    )


_head_loss.defvjp(_head_loss_forward, _head_loss_backward)


def cut(x: Float[Array, "B S ..."], chunk: int) -> Float[Array, "N B C ..."]:
    """Cuts the positions into N chunks of at most C, the last one padded with zeros."""
    positions = x.shape[1]
    chunk = min(chunk, positions)
    count = -(-positions // chunk)
    padding = ((0, 0), (0, count * chunk - positions), *((0, 0),) * (x.ndim - 2))
    return jnp.pad(x, padding).reshape(x.shape[0], count, chunk, *x.shape[2:]).swapaxes(0, 1)


def _dot(subscripts: str, x: Array, y: Array) -> Float[Array, "..."]:
    """A product in the dtype of `x`, accumulated and returned in float32."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(
        subscripts, x, y.astype(x.dtype), precision=precision, preferred_element_type=jnp.float32
    )
