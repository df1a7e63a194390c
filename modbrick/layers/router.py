"""Routers: which experts a token goes to, with which gates, and what losses must know of it."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from modbrick.config import ExpertsConfig
from modbrick.layers.context import Context
from modbrick.layers.offer import NOTHING
from modbrick.layers.parameters import constant, normal, parameter
from modbrick.layers.projections import Projection, matmul
from modbrick.layers.rematerialisation import mark_choice, mark_router


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterStatistics:
    """Sums over tokens, all float32, that add up over microbatches and devices.

    Every loss and every health figure of a router is a function of these totals.

    Attributes:
      tokens: number of tokens counted.
      probability: softmax probability of each expert, summed.
      choices: how often each expert was chosen.
      gates: gate of each expert where it was chosen, summed.
      entropy: entropy of each token's probabilities in nats, summed.
      squared_log_normaliser: square of each token's log-sum-exp of the logits, summed.
      dropped: choices of all tokens that found no room in an exchange between devices.
    """

    tokens: Float[Array, "..."]
    probability: Float[Array, "... E"]
    choices: Float[Array, "... E"]
    gates: Float[Array, "... E"]
    entropy: Float[Array, "..."]
    squared_log_normaliser: Float[Array, "..."]
    dropped: Float[Array, "..."]

    def with_dropped(self, dropped: Int[Array, ""] | None) -> RouterStatistics:
        """Returns the same with the number of choices dropped; None: none can be."""
        if dropped is None:
            return self
        return dataclasses.replace(self, dropped=dropped.astype(jnp.float32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Routing:
    """Chosen experts of each token (`indices`), and their `gates`."""

    indices: Int[Array, "B S K"]
    gates: Float[Array, "B S K"]


class Router(nnx.Module):
    """Chooses `top_k` experts for each token; kinds and gates as `RouterConfig` says.

    Computed in float32 whatever the model's dtype: a wrong choice of expert cannot be averaged out.
    """

    def __init__(self, config: ExpertsConfig, width: int, scale: float, *, rngs: nnx.Rngs):
        self.config = config
        router, experts = config.router, config.count
        projection = functools.partial(
            Projection, initialiser=normal(scale), role="router", rngs=rngs
        )
        logits = ("router_hidden", "router_expert")
        match router.kind:
            case "linear":
                self.output = projection((width, experts), ("width", "router_expert"))
            case "mlp":
                self.hidden = projection(
                    (width, router.hidden), ("width", "router_hidden"), bias=True
                )
                self.output = projection((router.hidden, experts), logits)
            case "gmm":
                self.hidden = projection((width, router.hidden), ("width", "router_hidden"))
                self.centroids = parameter(
                    rngs, normal(1.0), (experts, router.hidden), logits[::-1], role="router"
                )
                self.temperature = parameter(rngs, constant(0.0), (1,), ("scalar",), role="router")

    def logits(self, x: Float[Array, "... D"]) -> Float[Array, "... E"]:
        """Returns the unnormalised log-probability of each expert, float32."""
        match self.config.router.kind:
            case "linear":
                return self.output.in_float32(x)
            case "mlp":
                hidden = mark_router(self.hidden.in_float32(x))
                return self.output.in_float32(jax.nn.gelu(hidden, approximate=False))
            case _:
                hidden = mark_router(self.hidden.in_float32(x))
                centroids = self.centroids[...].astype(jnp.float32)
                cosine = matmul(_unit(hidden), _unit(centroids).T)
                return cosine * jnp.exp(self.temperature[...].astype(jnp.float32))

    def __call__(
        self, x: Float[Array, "B S D"], sublayer: str, context: Context
    ) -> tuple[Routing, RouterStatistics]:
        """Routes every token of `x`.

        Bricks see and change the logits at the site `SUBLAYER.router`. Without random keys
        (evaluation) sampled top-k is plain top-k.

        Args:
          x: the layer's input.
          sublayer: whose experts these are.
          context: of the layer.
        """
        # Only a linear router is one map from the site's inputs to its outputs.
        offer = self.output.offer if self.config.router.kind == "linear" else NOTHING
        logits = context.at(f"{sublayer}.router", x, mark_router(self.logits(x)), offer)
        probabilities = jax.nn.softmax(logits, axis=-1)
        indices = mark_choice(self._choose(probabilities, context.random_keys_of(sublayer)))
        gates = mark_router(jnp.take_along_axis(probabilities, indices, axis=-1))
        if self.config.router.gates == "renormalised":
            # Sampled experts can have probabilities that vanish.
            gates = gates / jnp.maximum(gates.sum(-1, keepdims=True), 1e-30)
        statistics = _statistics(logits, probabilities, indices, gates, context.counted)
        return Routing(indices, gates), statistics

    def _choose(
        self, probabilities: Float[Array, "B S E"], random_keys: Key[Array, "B"] | None
    ) -> Int[Array, "B S K"]:
        top_k, sampled = self.config.top_k, self.config.router.sample_top_k
        if random_keys is None or sampled == 0:
            return jax.lax.top_k(probabilities, top_k)[1].astype(jnp.int32)
        # Gumbel top-k draws without replacement in proportion to p + 1e-6 (arXiv 1903.06059).
        top = jax.lax.top_k(probabilities, top_k - sampled)[1]
        rest = jnp.log(jax.lax.stop_gradient(probabilities) + 1e-6)
        rest = rest + jax.vmap(lambda key: jax.random.gumbel(key, rest.shape[1:]))(random_keys)
        taken = jax.nn.one_hot(top, self.config.count, dtype=bool).any(-2)
        drawn = jax.lax.top_k(jnp.where(taken, -jnp.inf, rest), sampled)[1]
        return jnp.concatenate([top, drawn], axis=-1).astype(jnp.int32)


def _unit(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Returns `x` over its Euclidean norm, which is taken as at least 1e-12 (zero stays zero)."""
    squared = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


def _statistics(
    logits: Float[Array, "B S E"],
    probabilities: Float[Array, "B S E"],
    indices: Int[Array, "B S K"],
    gates: Float[Array, "B S K"],
    counted: Bool[Array, "B S"] | None,
) -> RouterStatistics:
    *tokens, experts = logits.shape
    weight = jnp.ones(tokens, jnp.float32) if counted is None else counted.astype(jnp.float32)
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    # H = log Z - sum p z, free of log 0.
    entropy = log_normaliser - (probabilities * logits).sum(-1)
    chosen = indices[..., None] == jnp.arange(experts)
    return RouterStatistics(
        tokens=weight.sum(),
        probability=(weight[..., None] * probabilities).sum((0, 1)),
        choices=(weight[..., None] * chosen.sum(-2)).sum((0, 1)),
        gates=(weight[..., None] * (gates[..., None] * chosen).sum(-2)).sum((0, 1)),
        entropy=(weight * entropy).sum(),
        squared_log_normaliser=(weight * jnp.square(log_normaliser)).sum(),
        dropped=jnp.float32(0.0),
    )
