"""The learning rate as a function of the step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from modbrick.errors import InputError
from modbrick.optimizer.config import (
    ConstantSchedule,
    CosineSchedule,
    OptimizerConfig,
    PowerConfig,
    PowerSchedule,
    Schedule,
)


def schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns the learning rate before step `s` of a run, `s` counted from 0.

    It is 0 at step 0 if there is a warm-up, full at `warm_up_steps`, at its end value at
    `total_steps` (one step after the last), and stays there.

    Raises:
      InputError: warm-up and decay do not fit into the run.
    """
    plan, peak = config.schedule, config.learning_rate
    warm_up = plan.warm_up_steps
    decay = decay_steps(plan, total_steps)
    if warm_up + decay > total_steps:
        raise InputError(
            f"a warm-up of {warm_up} steps and a decay of {decay} do not fit into a run of "
            f"{total_steps}: shorten schedule.warm_up_steps or schedule.decay_steps"
        )
    power = plan.power if isinstance(plan, PowerSchedule) else None
    first = _power(power, peak, warm_up) if power else peak
    pieces: list[optax.Schedule] = []
    boundaries: list[int] = []
    if warm_up:
        pieces.append(optax.linear_schedule(0.0, first, warm_up))
        boundaries.append(warm_up)
    if isinstance(plan, CosineSchedule):
        pieces.append(
            optax.cosine_decay_schedule(peak, decay, plan.end_factor)
            if decay
            else optax.constant_schedule(peak)
        )
        return optax.join_schedules(pieces, boundaries)
    pieces.append(_power_from(power, peak, warm_up) if power else lambda step: peak)
    if not isinstance(plan, ConstantSchedule) and decay:
        start = total_steps - decay
        value = _power(power, peak, start) if power else peak
        pieces.append(optax.linear_schedule(value, value * plan.end_factor, decay))
        boundaries.append(start)
    return optax.join_schedules(pieces, boundaries)


def decay_steps(plan: Schedule, total_steps: int) -> int:
    """Returns the length of a schedule's decay in a run of so many steps."""
    if isinstance(plan, ConstantSchedule):
        return 0
    if plan.decay_steps is not None:
        return plan.decay_steps
    rest = max(total_steps - plan.warm_up_steps, 0)
    return rest if isinstance(plan, CosineSchedule) else min(max(total_steps // 10, 2), rest)


def _power(power: PowerConfig, peak: float, step: int) -> float:
    """min(peak, batch_size · amplitude · n^exponent), n tokens trained on (arXiv 2408.13359)."""
    tokens = max(step, 1) * power.tokens_per_step
    return min(peak, power.batch_size * power.amplitude * tokens**power.exponent)


def _power_from(power: PowerConfig, peak: float, begin: int) -> optax.Schedule:
    """`_power` over steps counted from `begin`."""

    def value(step: jax.typing.ArrayLike) -> jax.Array:
        tokens = jnp.maximum(jnp.float32(step) + begin, 1.0) * power.tokens_per_step
        return jnp.minimum(peak, power.batch_size * power.amplitude * tokens**power.exponent)

    return value
