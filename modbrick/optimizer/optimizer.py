"""The update of the trainable parameters, as one pure function near the memory's speed.

Elementwise work on a leaf is written so that XLA makes three loops of it on a CPU (first moment,
second moment, parameter), all in place, after one pass over the gradients for their norm. Compile
it with parameters and state donated, and return them in the order of the arguments: jax matches
donated buffers to results of equal shape in that order, and a moment that lands in a parameter's
buffer costs copies of both (measured: an update four times as long).
"""

from __future__ import annotations

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from modbrick.errors import InputError
from modbrick.optimizer.config import OptimizerConfig, ParameterClass
from modbrick.optimizer.schedule import schedule
from modbrick.parameters import ParameterSlice, Partition

Leaves = dict[str, Float[Array, "..."]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OptimizerState:
    """State after `step` calls of `update`; moments are by path, like the trainable parameters.

    Attributes:
      step: updates asked for, skipped ones included: the schedule's step, so that it ends with the
        run.
      adamw: moments of what AdamW updates; its `count` is of updates applied.
      muon: momentum of what Muon updates; None for other optimizers.
      skipped_total: updates skipped so far.
      skipped_in_a_row: the latest of them, without an applied one in between.
    """

    step: Int[Array, ""]
    adamw: optax.ScaleByAdamState
    muon: optax.contrib.MuonState | None
    skipped_total: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OptimizerMetrics:
    """Metrics of one update.

    Attributes:
      gradient_norm: global norm before clipping, over trainable parameters.
      learning_rate: of this update, before the groups' multipliers.
      skipped: whether the update was skipped.
      skipped_total, skipped_in_a_row: counts, this update included.
    """

    gradient_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    skipped: Bool[Array, ""]
    skipped_total: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]


@dataclasses.dataclass(frozen=True)
class _Rule:
    """Rule by which one leaf is updated; arrays broadcast against it."""

    muon: bool
    learning_rate_multiplier: float | np.ndarray
    weight_decay: float | np.ndarray


class Optimizer:
    """Updates the trainable part of a model's parameters; holds no arrays of the model.

    Attributes:
      config: the optimizer.
      learning_rate: as a function of the step.
    """

    def __init__(self, config: OptimizerConfig, partition: Partition, total_steps: int):
        """Resolves schedule, groups and masks.

        Args:
          config: the optimizer.
          partition: what is trained.
          total_steps: of the run.

        Raises:
          InputError: a group's pattern covers nothing, or the schedule does not fit into the run.
        """
        self.config = config
        self.learning_rate = schedule(config, total_steps)
        self._rules = _rules(config, partition)
        self._muon = optax.contrib.scale_by_muon(
            ns_steps=config.muon.iterations,
            beta=config.muon.momentum,
            nesterov=config.muon.nesterov,
            weight_dimension_numbers=lambda updates: jax.tree.map(
                lambda _: optax.contrib.MuonDimensionNumbers(-2, -1), updates
            ),
        )

    def init(self, trainable: Leaves) -> OptimizerState:
        """Returns the state before the first update of these parameters."""
        for_muon = self._of(trainable, muon=True)
        return OptimizerState(
            step=jnp.int32(0),
            adamw=self._adamw().init(self._of(trainable, muon=False)),
            muon=self._muon.init(for_muon) if for_muon else None,
            skipped_total=jnp.int32(0),
            skipped_in_a_row=jnp.int32(0),
        )

    def update(
        self, gradients: Leaves, state: OptimizerState, trainable: Leaves
    ) -> tuple[Leaves, OptimizerState, OptimizerMetrics]:
        """Returns updated parameters.

        An update whose gradients are not finite (or so large that the sum of their squares is not)
        leaves parameters and moments as they are, bit by bit, unless the config says otherwise.

        Args:
          gradients: of the whole batch, by path like `trainable`, float32.
          state: from `init` or the update before.
          trainable: parameters, float32.
        """
        chex.assert_trees_all_equal_shapes(gradients, trainable)
        leaves = dict(gradients)
        norm = jnp.sqrt(_sum_of_squares(leaves))
        apply = jnp.isfinite(norm) if self.config.skip_non_finite else jnp.bool_(True)
        rate = jnp.asarray(self.learning_rate(state.step), jnp.float32)
        if self.config.max_gradient_norm is not None:
            # A product, so that XLA repeats it in each loop: a quotient it would compute once, in a
            # pass of its own.
            scale = jnp.minimum(1.0, self.config.max_gradient_norm / norm)
            leaves = {path: gradient * scale for path, gradient in leaves.items()}
        adamw, directions = self._adamw_directions(leaves, state.adamw, apply)
        muon, orthogonal = self._muon_directions(leaves, state.muon, apply)
        directions |= orthogonal
        updated = {}
        for path, value in trainable.items():
            rule = self._rules[path]
            change = directions[path] + rule.weight_decay * value
            change = (rate * rule.learning_rate_multiplier) * change
            updated[path] = jnp.where(apply, value - change, value)
        skipped = ~apply
        new = OptimizerState(
            step=state.step + 1,
            adamw=adamw,
            muon=muon,
            skipped_total=state.skipped_total + skipped,
            skipped_in_a_row=jnp.where(skipped, state.skipped_in_a_row + 1, 0),
        )
        return (
            updated,
            new,
            OptimizerMetrics(norm, rate, skipped, new.skipped_total, new.skipped_in_a_row),
        )

    def _adamw(self) -> optax.GradientTransformation:
        return optax.scale_by_adam(self.config.b1, self.config.b2, self.config.epsilon)

    def _of(self, leaves: Leaves, *, muon: bool) -> Leaves:
        return {path: leaf for path, leaf in leaves.items() if self._rules[path].muon == muon}

    def _adamw_directions(
        self, gradients: Leaves, state: optax.ScaleByAdamState, apply: Bool[Array, ""]
    ) -> tuple[optax.ScaleByAdamState, Leaves]:
        """Returns the new moments and the direction of each leaf, before decay and learning rate.

        Adam (arXiv 1412.6980, algorithm 1) from Optax's pieces, and not `optax.scale_by_adam`: the
        direction has to be made of the moments that are kept, after the guard. With the guard
        around it, XLA computes the moments a second time inside the parameter's loop, which then
        reads old moments that another loop overwrites, and copies them all (measured: four to five
        times as long).
        """
        b1, b2 = self.config.b1, self.config.b2
        first, second = dict(state.mu), dict(state.nu)
        count = optax.safe_increment(state.count)
        directions = {}
        for path, gradient in self._of(gradients, muon=False).items():
            mu = optax.tree.update_moment(gradient, first[path], b1, 1)
            nu = optax.tree.update_moment_per_elem_norm(gradient, second[path], b2, 2)
            mu = jnp.where(apply, mu, first[path])
            nu = jnp.where(apply, nu, second[path])
            first[path], second[path] = mu, nu
            mean = optax.tree.bias_correction(mu, b1, count)
            variance = optax.tree.bias_correction(nu, b2, count)
            directions[path] = mean / (jnp.sqrt(variance) + self.config.epsilon)
        count = jnp.where(apply, count, state.count)
        return optax.ScaleByAdamState(count, first, second), directions

    def _muon_directions(
        self, gradients: Leaves, state: optax.contrib.MuonState | None, apply: Bool[Array, ""]
    ) -> tuple[optax.contrib.MuonState | None, Leaves]:
        """The same for Muon: the direction is the orthogonalised momentum of each matrix."""
        if state is None:
            return None, {}
        updates, new = self._muon.update(self._of(gradients, muon=True), state)
        new = jax.tree.map(lambda after, before: jnp.where(apply, after, before), new, state)
        directions = {
            path: self._muon_scale(update.shape) * update for path, update in updates.items()
        }
        return new, directions

    def _muon_scale(self, shape: tuple[int, ...]) -> float:
        fan_in, fan_out = shape[-2:]
        if self.config.muon.consistent_rms is None:
            return math.sqrt(max(1.0, fan_out / fan_in))
        return self.config.muon.consistent_rms * math.sqrt(max(fan_in, fan_out))


def _sum_of_squares(leaves: Leaves) -> Float[Array, ""]:
    """Returns the sum over all leaves; NaN or infinite if any value is.

    Rows first, behind a barrier: as one reduction to a scalar XLA would run it on a single thread.
    """
    rows = [jnp.sum(jnp.square(leaf), axis=-1) for leaf in leaves.values()]
    return jnp.sum(jnp.stack([jnp.sum(row) for row in jax.lax.optimization_barrier(rows)]))


def _rules(config: OptimizerConfig, partition: Partition) -> dict[str, _Rule]:
    """Returns how each trainable leaf is updated."""
    covered = [partition.select(group.patterns) for group in config.groups]
    for number, masks in enumerate(covered):
        if not masks:
            names = ", ".join(config.groups[number].patterns)
            raise InputError(
                f"optimizer.groups[{number}] ({names}) covers only what is frozen: leave it out"
            )
    rules = {}
    for path, part in partition.trainable.items():
        classes = _classes(part)
        decayed = not classes & set(config.no_weight_decay)
        shape = part.shape[: part.brick_axes]
        rate = np.ones(shape, np.float32)
        decay = np.full(shape, config.weight_decay if decayed else 0.0, np.float32)
        for group, masks in zip(config.groups, covered, strict=True):
            if path in masks:
                rate[masks[path]] = group.learning_rate_multiplier
                if group.weight_decay is not None:
                    decay[masks[path]] = group.weight_decay
        rules[path] = _Rule(
            muon=config.kind == "muon" and not classes,
            learning_rate_multiplier=_broadcast(rate, len(part.shape)),
            weight_decay=_broadcast(decay, len(part.shape)),
        )
    return rules


def _classes(part: ParameterSlice) -> set[ParameterClass]:
    """Returns what kind of parameter this is, apart from a matrix of a layer (none of these)."""
    info = part.info
    classes: set[ParameterClass] = set()
    if len(info.shape) - len(info.bank_shape) < 2:
        classes.add("vectors")
    if info.role is not None:
        classes.add("routers" if info.role == "router" else info.role)
    return classes


def _broadcast(values: np.ndarray, dimensions: int) -> float | np.ndarray:
    """Returns values of a leaf's bricks in a form that broadcasts; one number if all are equal."""
    if (values == values.flat[0]).all():
        return float(values.flat[0])
    return values.reshape(*values.shape, *(1,) * (dimensions - values.ndim))
