"""Causal self-attention: dense, or a mixture of attention heads (arXiv 2306.04640, section 2.2)."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from modbrick.config import AttentionConfig
from modbrick.config import Projection as ProjectionName
from modbrick.errors import InputError
from modbrick.layers.attention_weights import attention_weights
from modbrick.layers.context import Context
from modbrick.layers.memory import Attended
from modbrick.layers.norms import Norm
from modbrick.layers.offer import NOTHING
from modbrick.layers.parameters import Initialiser, constant, normal, parameter
from modbrick.layers.positions import rotate
from modbrick.layers.projections import ExpertProjections, Projection
from modbrick.layers.routed import routed
from modbrick.layers.router import Router, Routing
from modbrick.layers.slots import weighted_sum
from modbrick.parallel.attention import Keys, Offset, attend_over_mesh
from modbrick.parallel.dispatch import Dispatch
from pallas_kernels.softmax_attention import softmax_attention, softmax_attention_and_log_sum
from pallas_kernels.stickbreaking_attention import stickbreaking_attention

MEMORY = "attention.memory"
"""Site of keys and values in front of every document."""


class Attention(nnx.Module):
    """Self-attention over the stream; see `AttentionConfig` for its forms.

    With experts, one router serves the query and the output bank: each of a token's K slots asks
    with its own queries over shared keys and values, and y = sum over slots of gate times slot
    output times that expert's output weight.
    """

    def __init__(
        self,
        config: AttentionConfig,
        width: int,
        scale: float,
        expert_initialiser: Initialiser,
        *,
        rngs: nnx.Rngs,
    ):
        self.config = config

        def projection(
            name: ProjectionName, shape: tuple[int, int], axes: tuple[str, str]
        ) -> Projection:
            biased = name in config.biases
            return Projection(shape, axes, initialiser=normal(scale), bias=biased, rngs=rngs)

        inwards, outwards = (width, config.query_width), (config.query_width, width)
        if config.experts is None:
            self.query: Projection | ExpertProjections = projection(
                "query", inwards, ("width", "heads")
            )
            self.output: Projection | ExpertProjections = projection(
                "output", outwards, ("heads", "width")
            )
        else:
            bank = functools.partial(
                ExpertProjections, config.experts.count, initialiser=expert_initialiser, rngs=rngs
            )
            self.router = Router(config.experts, width, scale, rngs=rngs)
            self.query = bank(inwards, ("width", "heads"))
            self.output = bank(outwards, ("heads", "width"))
            if config.experts.output_bias:
                self.output_bias = parameter(rngs, constant(0.0), (width,), ("width",))
        if config.key_value == "projected":
            self.key = projection("key", (width, config.key_width), ("width", "key_heads"))
            self.value = projection("value", (width, config.key_width), ("width", "key_heads"))
        if config.query_key_norm is not None:
            per_head = config.query_key_norm_axis == "head"
            query_width = config.head_width if per_head else config.query_width
            key_width = config.head_width if per_head else config.key_width
            self.query_norm = Norm(config.query_key_norm, query_width, rngs=rngs, axis="head_width")
            self.key_norm = Norm(config.query_key_norm, key_width, rngs=rngs, axis="head_width")

    def __call__(self, x: Float[Array, "B S D"], context: Context) -> Float[Array, "B S D"]:
        """Attends from every token of the normalised stream `x`."""
        routing, dispatch = None, None
        if self.config.experts is not None:
            routing, dispatch = routed(self.router, x, "attention", context)
        queries = self._queries(x, routing, dispatch, context)
        keys, values = context.remember(*self._keys_and_values(x, context))
        if "attention_weights" in context.capture:
            weights = attention_weights(self.config, queries, keys, context.visibility)
            context.record("attention_weights", weights)
        mixed, left = self._attend(queries, keys, values, context)
        if context.looks_at(MEMORY):
            mixed = self._in_front(queries, keys, values, mixed, left, context)
        return self._output(mixed, routing, dispatch, context)

    def _queries(
        self,
        x: Float[Array, "B S D"],
        routing: Routing | None,
        dispatch: Dispatch | None,
        context: Context,
    ) -> Float[Array, "B S N W"]:
        """Returns query heads, N = K H with experts; heads that share keys are adjacent."""
        config = self.config
        if isinstance(self.query, Projection):
            queries, offer = self.query(x), self.query.offer
        else:
            assert routing is not None, "a bank of queries has a router"
            assert dispatch is not None, "and a dispatch"
            queries = dispatch.map(x, self.query.weight[...].astype(x.dtype))
            offer = self.query.offer(routing.indices, routing.gates)
        queries = context.at("attention.query", x, queries, offer)
        queries = self._clipped(self._normed(queries, "query", context))
        queries = queries.reshape(*x.shape[:2], -1, config.heads, config.head_width)
        if config.rope is not None:
            assert context.positions is not None
            queries = rotate(config.rope, queries, context.positions)
        slots = queries.shape[2]
        grouped = queries.reshape(
            *x.shape[:2], slots, config.grouped_heads, -1, config.head_width
        ).swapaxes(2, 3)
        return grouped.reshape(*x.shape[:2], slots * config.heads, config.head_width)

    def _keys_and_values(
        self, x: Float[Array, "B S D"], context: Context
    ) -> tuple[Float[Array, "B S G W"], Float[Array, "B S G W"]]:
        config = self.config
        if config.key_value == "identity":
            keys = values = x
            of_keys = of_values = NOTHING
        else:
            keys, values = self.key(x), self.value(x)
            of_keys, of_values = self.key.offer, self.value.offer
        keys = context.at("attention.key", x, keys, of_keys)
        values = context.at("attention.value", x, values, of_values)
        keys, values = self._clipped(self._normed(keys, "key", context)), self._clipped(values)
        shape = (*x.shape[:2], config.grouped_heads, config.head_width)
        keys, values = keys.reshape(shape), values.reshape(shape)
        if config.rope is not None:
            assert context.positions is not None
            keys = rotate(config.rope, keys, context.positions)
        return keys, values

    def _normed(
        self, x: Float[Array, "... A"], name: str, context: Context
    ) -> Float[Array, "... A"]:
        if self.config.query_key_norm is None:
            return x
        norm, site = getattr(self, f"{name}_norm"), f"attention.{name}_norm"
        if self.config.query_key_norm_axis == "all":
            return norm(x, context, site)
        heads = x.reshape(*x.shape[:-1], -1, self.config.head_width)
        return norm(heads, context, site).reshape(x.shape)

    def _clipped(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        clip = self.config.clip
        return x if clip is None else jnp.clip(x, -clip, clip)

    def _attend(
        self,
        queries: Float[Array, "B S N W"],
        keys: Float[Array, "B C G W"],
        values: Float[Array, "B C G W"],
        context: Context,
    ) -> tuple[Float[Array, "B S N W"], Float[Array, "B S N"] | None]:
        """Returns the output, and what it leaves to keys in front if there are any."""
        config, execution, visibility = self.config, context.execution, context.visibility
        stickbreaking, with_left = config.kind == "stickbreaking", MEMORY in context.bricks
        attention = (
            functools.partial(
                stickbreaking_attention,
                attend_current=config.attend_current,
                tolerance=execution.attention_tolerance,
            )
            if stickbreaking
            else softmax_attention_and_log_sum
            if with_left
            else softmax_attention
        )

        def attend(
            query: Array, segment_ids: Int[Array, "B S"] | None, keys: Keys, offset: Offset
        ) -> Any:
            try:
                return attention(
                    query,
                    keys.key,
                    keys.value,
                    scale=config.scale,
                    query_segment_ids=segment_ids,
                    key_segment_ids=keys.segment_ids,
                    key_mask=keys.mask,
                    query_offset=offset,
                    window=config.window,
                    implementation=execution.attention,
                )
            except ValueError as error:  # an implementation that cannot run this
                raise InputError(f"execution.attention: {error}") from error

        return attend_over_mesh(
            attend,
            queries,
            visibility.query_segment_ids,
            Keys(keys, values, visibility.key_segment_ids, visibility.key_mask),
            visibility.offset,
            ring=stickbreaking,
            with_left=with_left,
        )

    def _in_front(
        self,
        queries: Float[Array, "B S N W"],
        keys: Float[Array, "B C G W"],
        values: Float[Array, "B C G W"],
        output: Float[Array, "B S N W"],
        left: Float[Array, "B S N"] | None,
        context: Context,
    ) -> Float[Array, "B S N W"]:
        """Attends to what stands in front of every document."""
        config = self.config
        assert context.positions is not None, "layers run on tokens with positions"
        attended = Attended(
            queries,
            context.positions,
            output,
            left,
            groups=config.grouped_heads,
            scale=config.head_width**-0.5 if config.scale is None else config.scale,
            window=config.window,
            kind=config.kind,
        )
        whole = (*keys.shape[:2], config.key_width)
        context.declare(MEMORY, keys.reshape(whole), values.reshape(whole), "memory")
        return context.in_front(MEMORY, attended)

    def _output(
        self,
        mixed: Float[Array, "B S N W"],
        routing: Routing | None,
        dispatch: Dispatch | None,
        context: Context,
    ) -> Float[Array, "B S D"]:
        config, experts = self.config, self.config.experts
        batch, sequence = mixed.shape[:2]
        if isinstance(self.output, Projection):
            mixed = mixed.reshape(batch, sequence, config.query_width)
            return context.at("attention.output", mixed, self.output(mixed), self.output.offer)
        assert routing is not None, "a bank of outputs has a router"
        assert dispatch is not None, "and a dispatch"
        assert experts is not None, "and a config"
        # [B, S, G, K, H/G, W] back to slots of whole experts.
        slots = mixed.reshape(
            batch, sequence, config.grouped_heads, experts.top_k, -1, config.head_width
        ).swapaxes(2, 3)
        slots = slots.reshape(batch, sequence, experts.top_k, config.query_width)
        y = dispatch.reduce(slots, self.output.weight[...].astype(slots.dtype))
        if experts.output_bias:
            y = (y + self.output_bias[...]).astype(slots.dtype)
        if not context.looks_at("attention.output"):
            return y
        weighted = weighted_sum(slots, routing.gates).astype(slots.dtype)
        offer = self.output.offer(routing.indices, routing.gates, slots)
        return context.at("attention.output", weighted, y, offer)
