"""Feed-forward layers: dense, or a bank of experts."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from modbrick.config import ExpertsConfig, FeedForwardConfig
from modbrick.layers.activations import ACTIVATIONS
from modbrick.layers.context import Context
from modbrick.layers.offer import Offer
from modbrick.layers.parameters import Initialiser, constant, normal, parameter
from modbrick.layers.projections import ExpertProjections, Projection
from modbrick.layers.routed import routed
from modbrick.layers.router import Router, Routing
from modbrick.layers.slots import weighted_sum
from modbrick.parallel.dispatch import Dispatch


class FeedForward(nnx.Module):
    """y = down(activation(up x)), or down(activation(gate x) * up x) if gated."""

    def __init__(self, config: FeedForwardConfig, width: int, scale: float, *, rngs: nnx.Rngs):
        self.config = config
        projection = functools.partial(
            Projection, initialiser=normal(scale), bias=config.bias, rngs=rngs
        )
        self.up = projection((width, config.hidden), ("width", "hidden"))
        if config.gated:
            self.gate = projection((width, config.hidden), ("width", "hidden"))
        self.down = projection((config.hidden, width), ("hidden", "width"))

    def __call__(self, x: Float[Array, "B S D"], context: Context) -> Float[Array, "B S D"]:
        """Runs the layer on every token."""
        activation = ACTIVATIONS[self.config.activation]
        hidden = context.at("feed_forward.up", x, self.up(x), self.up.offer)
        if self.config.gated:
            gate = context.at("feed_forward.gate", x, self.gate(x), self.gate.offer)
            hidden = activation(gate) * hidden
        else:
            hidden = activation(hidden)
        hidden = context.at("feed_forward.hidden", hidden, hidden)
        return context.at("feed_forward.down", hidden, self.down(hidden), self.down.offer)


INSIDE = tuple(f"feed_forward.{name}" for name in ("up", "gate", "hidden", "down"))
"""Sites between the products of a layer."""


class ExpertFeedForward(nnx.Module):
    """A bank of feed-forward experts: y = sum over the chosen experts of gate times expert(x)."""

    def __init__(
        self,
        config: FeedForwardConfig,
        experts: ExpertsConfig,
        width: int,
        scale: float,
        expert_initialiser: Initialiser,
        *,
        rngs: nnx.Rngs,
    ):
        self.config, self.experts = config, experts
        self.router = Router(experts, width, scale, rngs=rngs)
        bank = functools.partial(
            ExpertProjections, experts.count, initialiser=expert_initialiser, rngs=rngs
        )
        self.up = bank((width, config.hidden), ("width", "hidden"))
        if config.gated:
            self.gate = bank((width, config.hidden), ("width", "hidden"))
        self.down = bank((config.hidden, width), ("hidden", "width"))
        if experts.output_bias:
            self.output_bias = parameter(rngs, constant(0.0), (width,), ("width",))

    def __call__(self, x: Float[Array, "B S D"], context: Context) -> Float[Array, "B S D"]:
        """Routes every token and combines what its experts return."""
        routing, dispatch = routed(self.router, x, "feed_forward", context)
        by_parts = functools.partial(self._by_parts, x, routing, dispatch, context)
        whole = functools.partial(self._whole, x, dispatch)
        changed = any(site in context.bricks for site in INSIDE)
        # Experts run as one operation, unless a brick sits inside or somebody looks.
        if any(map(context.captures, INSIDE)):
            by_parts = functools.partial(jnp.copy, by_parts())  # captured once, outside of a branch
        if not changed:
            y = whole()
        elif context.choice is None:
            y = by_parts()
        else:
            # Where no token has a brick the bits are those of the model without. In training this
            # branch keeps nothing for a backward pass that hardly ever comes.
            y = jax.lax.cond(context.choice.used.any(), by_parts, jax.checkpoint(whole))
        if self.experts.output_bias:
            y = y + self.output_bias[...].astype(jnp.float32)
        return y.astype(x.dtype)

    def _whole(self, x: Float[Array, "B S D"], dispatch: Dispatch) -> Float[Array, "B S D"]:
        """Runs the experts as one operation."""
        return dispatch.feed_forward(
            x,
            self.up.weight[...].astype(x.dtype),
            self.down.weight[...].astype(x.dtype),
            self.gate.weight[...].astype(x.dtype) if self.config.gated else None,
            ACTIVATIONS[self.config.activation],
        )

    def _by_parts(
        self, x: Float[Array, "B S D"], routing: Routing, dispatch: Dispatch, context: Context
    ) -> Float[Array, "B S D"]:
        """Runs the experts product by product, with the sites in between.

        Each of a token's slots has outputs of its own at `up`, `gate` and `hidden`, whose bricks
        see the layer's input; at `down` they see the sum of the slots, weighted by their gates.
        """
        activation = ACTIVATIONS[self.config.activation]

        def projected(name: str, bank: ExpertProjections) -> Float[Array, "B S K F"]:
            y = dispatch.map(x, bank.weight[...].astype(x.dtype))
            offer = bank.offer(routing.indices, routing.gates)
            return context.at(f"feed_forward.{name}", x, y, offer).astype(jnp.float32)

        hidden = projected("up", self.up)
        if self.config.gated:
            hidden = activation(projected("gate", self.gate)) * hidden
        else:
            hidden = activation(hidden)
        of_slots = Offer(experts=routing.indices, gates=routing.gates)
        hidden = context.at("feed_forward.hidden", x, hidden.astype(x.dtype), of_slots)
        y = dispatch.reduce(hidden, self.down.weight[...].astype(x.dtype))
        weighted = weighted_sum(hidden, routing.gates).astype(x.dtype)
        offer = self.down.offer(routing.indices, routing.gates, hidden)
        return context.at("feed_forward.down", weighted, y, offer)
