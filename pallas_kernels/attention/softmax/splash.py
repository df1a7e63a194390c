"""Softmax attention on TPUs, by the splash attention kernel that comes with jax.

What the kernel does not offer is brought into a form that it does:

- lengths are padded to whole blocks, and padded keys get a segment id that no query has, as do the
  keys that a key mask hides;
- a query that sees no key would divide by 0. A further logit of its softmax, far below all others
  (the kernel's `sinks`), takes its whole weight, and it has no value: the output is 0, and so are
  the gradients.

The kernel multiplies in bfloat16; the softmax and all sums are float32. It has no parameter for the
scale, which is therefore rounded into the queries.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    FullMask,
    LocalMask,
    Mask,
    MultiHeadMask,
    SegmentIds,
    make_splash_mha,
)

from pallas_kernels.attention.shared.case import Case
from pallas_kernels.attention.shared.masks import Visibility

# Blocks are multiples of the lanes of a register, and larger ones are faster.
_LANES, _LARGEST_BLOCK = 128, 512
# Above the logit that the kernel gives to keys that are not seen, far below all others.
_NO_LOGIT = -1e30


def unsupported(case: Case | None, platform: str | None) -> str | None:
    """Says why the kernel cannot run a case; see `pallas_kernels.implementations`."""
    if platform not in (None, "tpu"):
        return f"its kernel is for TPUs, and the platform is {platform!r}"
    if case is None:
        return None
    if case.log_sum:
        return "its kernel gives no log-sum-exp that gradients pass through"
    if case.query.dtype != jnp.bfloat16:
        return f"its kernel rounds products to bfloat16, and inputs are {case.query.dtype}"
    if case.offset is None:
        return "its masks are computed beforehand, and query_offset is an array"
    return None


def softmax_attention(
    query: Array, key: Array, value: Array, visibility: Visibility, *, scale: float
) -> Array:
    """Returns output `[B, Sq, H, dv]` (see the public op)."""
    queries, heads = query.shape[1:3]
    block = min(_LARGEST_BLOCK, _padded(max(queries, key.shape[1]), _LANES))
    ids = _segment_ids(query, key, visibility, block)
    mask = _mask((_padded(queries, block), _padded(key.shape[1], block)), visibility)
    kernel = make_splash_mha(
        MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
    )
    sinks = jnp.full(heads, _NO_LOGIT, jnp.float32)

    def attend(query: Array, key: Array, value: Array, ids: SegmentIds | None) -> Array:
        output: Array = kernel(query, key, value, ids, sinks)
        return output

    scaled = (query * scale).astype(query.dtype)
    by_head = [jnp.swapaxes(_fill(x, block), 1, 2) for x in (scaled, key, value)]
    output = jax.vmap(attend)(by_head[0], by_head[1], by_head[2], ids)
    return jnp.swapaxes(output, 1, 2)[:, :queries].astype(value.dtype)


def _mask(shape: tuple[int, int], visibility: Visibility) -> Mask:
    """Returns the part of the rules that is known when tracing."""
    causal, offset = visibility.nearest is not None, int(visibility.offset)
    if visibility.window is not None:
        window = visibility.window - 1, 0 if causal else None
        return LocalMask(shape, window, offset)
    return CausalMask(shape, offset) if causal else FullMask(shape)


def _segment_ids(query: Array, key: Array, visibility: Visibility, block: int) -> SegmentIds | None:
    """Ids `[B, S]` of padded queries and keys; those of keys out of sight are no query's."""
    query_ids, key_ids = visibility.query_segment_ids, visibility.key_segment_ids
    if query_ids is None and visibility.key_mask is None and key.shape[1] % block == 0:
        return None
    if query_ids is None or key_ids is None:
        query_ids = jnp.zeros(query.shape[:2], jnp.int32)
        key_ids = jnp.zeros(key.shape[:2], jnp.int32)
    query_ids, key_ids = query_ids.astype(jnp.int32), key_ids.astype(jnp.int32)
    nobody = jnp.min(query_ids) - 1
    if visibility.key_mask is not None:
        key_ids = jnp.where(visibility.key_mask, key_ids, nobody)
    missing = -key.shape[1] % block
    key_ids = jnp.pad(key_ids, ((0, 0), (0, missing)), constant_values=nobody)
    return SegmentIds(_fill(query_ids, block), key_ids)


def _fill(array: Array, block: int) -> Array:
    """Pads axis 1 to whole blocks."""
    padding = [(0, 0)] * array.ndim
    padding[1] = (0, -array.shape[1] % block)
    return jnp.pad(array, padding)


def _padded(length: int, block: int) -> int:
    return -(-length // block) * block
