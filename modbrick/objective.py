"""Objective of training: the loss of its task plus scheduled router losses.

Routers report sums over tokens (`RouterStatistics`); losses are functions of those sums over the
*global* batch: all microbatches, all devices. Losses of routers are computed per layer and summed
over layers, but for one that pools the layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from modbrick.errors import InputError
from modbrick.layers.router import RouterStatistics


@dataclasses.dataclass(frozen=True)
class CoefficientConfig:
    """A weight that moves linearly from `start` to `end` between two steps and stays there."""

    start: float
    end: float
    first_step: int = 0
    last_step: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.first_step <= self.last_step:
            raise InputError(
                f"a coefficient's steps must satisfy 0 <= first_step <= last_step, "
                f"got {self.first_step} and {self.last_step}"
            )
        _check_weights("a coefficient", self.start, self.end)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the router losses; a number is constant over training.

    Attributes:
      load_balancing: of the mutual-information loss (pretraining).
      concentration: of the entropy of the load (fine-tuning onto few experts).
      switch: of the loss of Switch Transformers.
      router_z: of the squared log-normaliser of the router's logits.
      pooled_switch: of the loss of balance of the transformers library, over all layers at once.
    """

    load_balancing: float | CoefficientConfig = 0.0
    concentration: float | CoefficientConfig = 0.0
    switch: float | CoefficientConfig = 0.0
    router_z: float | CoefficientConfig = 0.0
    pooled_switch: float | CoefficientConfig = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            weight = getattr(self, field.name)
            if not isinstance(weight, CoefficientConfig):
                _check_weights(f"objective {field.name}", weight)

    def schedules(self) -> dict[str, optax.Schedule]:
        """Returns the weight of each loss that is on, as a function of the step."""
        return {
            field.name: _schedule(weight)
            for field in dataclasses.fields(self)
            if (weight := getattr(self, field.name)) != 0.0
        }


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean as two sums, both of which add up over microbatches and devices.

    Attributes:
      total: sum of the weighted values.
      weight: sum of their weights.
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]

    @property
    def value(self) -> Float[Array, ""]:
        """The mean; 0 if nothing was counted."""
        return self.total / _at_least_one(self.weight)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Totals:
    """Sums over a batch; they add up over microbatches and devices.

    Attributes:
      loss: of the task, weighted and summed, such as the negative log-likelihood of the targets in
        nats; float32.
      weight: sum of the weights, such as the number of targets.
      router_statistics: of each router.
      metrics: what else to report, by name, each a mean of its own.
    """

    loss: Float[Array, ""]
    weight: Float[Array, ""]
    router_statistics: dict[str, RouterStatistics]
    metrics: dict[str, Mean] = dataclasses.field(default_factory=dict)


def load_balancing_loss(statistics: RouterStatistics) -> Float[Array, "..."]:
    """sum_m p(m) log p(m) - mean_x sum_m g(m|x) log g(m|x) = -H(m) + H(m|x), in nats.

    Negated mutual information of tokens and experts (ModuleFormer, arXiv 2306.04640, section 2.3):
    from -log E (uniform load, one-hot gates) to 0.
    """
    return negated_load_entropy(statistics) + statistics.entropy / _tokens(statistics)


def concentration_loss(statistics: RouterStatistics) -> Float[Array, "..."]:
    """-sum_m p(m) log p(m), in nats: small when few experts serve all tokens (arXiv 2306.04640)."""
    return -negated_load_entropy(statistics)


def switch_loss(statistics: RouterStatistics) -> Float[Array, "..."]:
    """E sum_m f(m) P(m), choices times mean probability (arXiv 2101.03961, section 2.2)."""
    choices = statistics.choices / _at_least_one(statistics.choices.sum(-1, keepdims=True))
    mass = statistics.probability / _tokens(statistics)[..., None]
    return choices.shape[-1] * (choices * mass).sum(-1)


def router_z_loss(statistics: RouterStatistics) -> Float[Array, "..."]:
    """Mean over tokens of the squared log-sum-exp of the logits (arXiv 2202.08906, section 3)."""
    return statistics.squared_log_normaliser / _tokens(statistics)


ROUTER_LOSSES: Mapping[str, Callable[[RouterStatistics], Float[Array, "..."]]] = {
    "load_balancing": load_balancing_loss,
    "concentration": concentration_loss,
    "switch": switch_loss,
    "router_z": router_z_loss,
}


def pooled_switch_loss(router_statistics: Mapping[str, RouterStatistics]) -> Float[Array, ""]:
    """E sum_m f(m) P(m) over the tokens of all layers together.

    f(m) is the choices of expert m per token (their sum is K) and P(m) its mean probability, both
    over all tokens of all layers: a layer may be unbalanced if another makes up for it. From K
    (balance) to E. This is `load_balancing_loss_func` of the transformers library, with which
    Mixtral, OLMoE, Granite-MoE and Qwen3-MoE are fine-tuned.

    Raises:
      InputError: routers over different numbers of experts.
    """
    if not router_statistics:
        return jnp.float32(0.0)
    statistics = list(router_statistics.values())
    experts = {s.choices.shape[-1] for s in statistics}
    if len(experts) > 1:
        raise InputError(f"pooled_switch needs equal banks, got {sorted(experts)} experts")
    choices = jnp.concatenate([s.choices.reshape(-1, *experts) for s in statistics]).sum(0)
    mass = jnp.concatenate([s.probability.reshape(-1, *experts) for s in statistics]).sum(0)
    tokens = _at_least_one(jnp.concatenate([s.tokens.reshape(-1) for s in statistics]).sum())
    return len(choices) * ((choices / tokens) * (mass / tokens)).sum()


def negated_load_entropy(statistics: RouterStatistics) -> Float[Array, "..."]:
    """sum_m p(m) log p(m) with p the mean probability over tokens; 0 log 0 = 0."""
    p = statistics.probability / _tokens(statistics)[..., None]
    return (p * jnp.log(p + LEAST_PROBABILITY)).sum(-1)


# Bounds the gradient of p log p where an expert has no mass; the value of the original code.
LEAST_PROBABILITY = 1e-8


def objective(
    totals: Totals, weights: Mapping[str, Float[Array, ""]], loss_name: str = "next_token"
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the value to minimise and its parts.

    Args:
      totals: over the global batch.
      weights: of the router losses by name (the fields of `ObjectiveConfig`), at this step.
      loss_name: of the task's mean loss among the parts.

    Returns:
      The task's mean loss plus each router loss, summed over layers, times its weight; and the
      parts by name: the task's mean loss (nats per target for `next_token`), each router loss
      before weighting, and the means of `totals.metrics`.
    """
    value = totals.loss / _at_least_one(totals.weight)
    parts = {loss_name: value}
    for name, weight in weights.items():
        if name == "pooled_switch":
            parts[name] = pooled_switch_loss(totals.router_statistics)
        else:
            per_layer = [ROUTER_LOSSES[name](s).sum() for s in totals.router_statistics.values()]
            parts[name] = sum(per_layer, jnp.float32(0.0))
        value = value + weight * parts[name]
    return value, parts | {name: mean.value for name, mean in totals.metrics.items()}


def _check_weights(name: str, *weights: float) -> None:
    for weight in weights:
        if not (weight >= 0 and math.isfinite(weight)):
            raise InputError(f"{name} must be finite and not negative, got {weight}")


def _tokens(statistics: RouterStatistics) -> Float[Array, "..."]:
    return _at_least_one(statistics.tokens)


def _at_least_one(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Counts below one only occur as zero: an empty batch has zero loss."""
    return jnp.maximum(x, 1.0)


def _schedule(weight: float | CoefficientConfig) -> optax.Schedule:
    if isinstance(weight, CoefficientConfig):
        duration = weight.last_step - weight.first_step
        if duration == 0:
            return lambda step: jnp.where(step < weight.first_step, weight.start, weight.end)
        return optax.linear_schedule(weight.start, weight.end, duration, weight.first_step)
    return optax.constant_schedule(weight)
