"""Settings without effect: a run that would not do what its config says is refused at its start."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys
from collections.abc import Iterator, Mapping, Sequence

from modbrick.checkpoints import CheckpointConfig
from modbrick.config import LayerConfig
from modbrick.errors import InputError
from modbrick.objective import CoefficientConfig
from modbrick.optimizer import MuonConfig, OptimizerConfig
from modbrick.optimizer.config import ConstantSchedule, CosineSchedule, PowerSchedule
from modbrick.optimizer.schedule import decay_steps
from modbrick.training.run_config import RunConfig

LEAST_SHARE = 1 / 131_072
"""Of a domain in a mixture; `modbrick.data.mixture` rounds smaller ones up."""
SEEDS = (-(2**31), 2**32)
"""From which to below which seeds differ; jax takes the last 32 bits of any."""


def require_effect(config: RunConfig, lengths: Sequence[int]) -> list[str]:
    """Checks that each setting of a run does something.

    Args:
      config: of the run.
      lengths: positions in the rows that the task of the run reads.

    Returns:
      Lines about settings that have less effect than one may think, and do no harm.

    Raises:
      InputError: a setting that cannot take effect; names it and the remedy.
    """
    for refused in (_training, _schedule, _optimizer, _objective, _execution, _checkpoints, _data):
        for line in refused(config):
            raise InputError(line)
    if max(lengths, default=0) > config.model.context:
        raise InputError(
            f"data.sequence_length {max(lengths)} is above model.context {config.model.context}, "
            "which the model is meant for and evaluated on: lower it, or raise model.context"
        )
    return list(_warnings(config))


def _training(config: RunConfig) -> Iterator[str]:
    seed = config.training.seed
    if not SEEDS[0] <= seed < SEEDS[1]:
        yield f"training.seed {seed} would be cut to 32 bits: from {SEEDS[0]} to {SEEDS[1] - 1}"
    if config.training.initial_checkpoint == "":
        yield "training.initial_checkpoint is empty: name a model, or leave it None"
    if config.logging.wandb == "":
        yield "logging.wandb is empty: name a project, or leave it None"
    elif config.logging.wandb is not None and not _is_installed("wandb"):
        yield (
            'logging.wandb needs a library that is not there: pip install "modbrick[wandb]", or '
            "leave logging.wandb None"
        )
    if config.brick_sets:
        used = {name for names in config.brick_sets.values() for name in names.split("+")}
        for name in config.bricks:
            if name not in used:
                yield f"bricks.{name}: no set of brick_sets has it, so nothing would train it"


def _is_installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _schedule(config: RunConfig) -> Iterator[str]:
    plan, steps = config.optimizer.schedule, config.training.steps
    name = "optimizer.schedule"
    if isinstance(plan, ConstantSchedule) or plan.end_factor == 1:
        return
    decay = decay_steps(plan, steps)
    if plan.decay_steps == 0 and not isinstance(plan, PowerSchedule):
        yield f"{name}.decay_steps 0 lower nothing: use kind constant, or at least 2 steps"
    elif isinstance(plan, CosineSchedule):
        return  # it begins with the end of the warm-up, and what is behind it is lower
    elif decay < 2 and steps > 1 and plan.decay_steps != 0:
        room = steps - plan.warm_up_steps
        yield (
            f"{name}: {decay} decay_steps of kind {plan.kind} change no step of the run "
            f"({steps} training.steps, {room} after the warm-up): at least 2, or kind constant"
        )


def _optimizer(config: RunConfig) -> Iterator[str]:
    optimizer = config.optimizer
    if optimizer.kind != "muon" and optimizer.muon != MuonConfig():
        yield f"optimizer.muon is of no use to kind {optimizer.kind}: set optimizer.kind to muon"
    stops = OptimizerConfig.max_skipped_in_a_row
    if not optimizer.skip_non_finite and optimizer.max_skipped_in_a_row != stops:
        yield (
            "optimizer.max_skipped_in_a_row counts nothing without optimizer.skip_non_finite: "
            "leave one of them out"
        )
    for number, group in enumerate(optimizer.groups):
        # A later group with a multiplier of 1 may give back what an earlier one took.
        moved = any(g.learning_rate_multiplier != 1 for g in optimizer.groups[: number + 1])
        if not moved and group.weight_decay is None:
            yield (
                f"optimizer.groups[{number}] changes nothing: give it a learning_rate_multiplier "
                "or a weight_decay"
            )


def _objective(config: RunConfig) -> Iterator[str]:
    steps = config.training.steps
    routed = any(layer.attention.experts or layer.feed_forward.experts for layer in _layers(config))
    for field in dataclasses.fields(config.objective):
        name, weight = f"objective.{field.name}", getattr(config.objective, field.name)
        moves = isinstance(weight, CoefficientConfig)
        ends = {weight.start, weight.end} if moves else {weight}
        if ends == {0.0}:
            continue
        if not routed:
            yield f"{name} is a loss of routers, and the model has none: leave it 0"
        if moves and len(ends) > 1 and max(weight.first_step, weight.last_step) > steps:
            yield (
                f"{name} would end at step {weight.last_step}, the run at {steps}: let last_step "
                "be at most training.steps"
            )


def _execution(config: RunConfig) -> Iterator[str]:
    execution = config.execution
    kinds = {layer.attention.kind for layer in _layers(config)}
    if execution.attention_tolerance and "stickbreaking" not in kinds:
        yield (
            "execution.attention_tolerance is of stick-breaking attention, and the model has "
            "none: leave it 0"
        )
    if execution.exchange_capacity is not None and execution.expert_parallelism != "exchange":
        yield (
            "execution.exchange_capacity limits nothing where tokens are gathered: set "
            "execution.expert_parallelism to exchange, or leave it None"
        )


def _checkpoints(config: RunConfig) -> Iterator[str]:
    policy, steps = config.checkpoint, config.training.steps
    default = CheckpointConfig()
    for name in ("best_metric", "best_mode"):
        if not policy.keep_best and getattr(policy, name) != getattr(default, name):
            yield f"checkpoint.{name} chooses nothing: set checkpoint.keep_best to at least 1"
    if 0 < policy.keep_every <= steps and steps % policy.keep_every:
        common = math.lcm(policy.every, policy.keep_every)
        if not 0 < common <= steps:
            yield (
                f"checkpoint.keep_every {policy.keep_every} keeps none of the checkpoints, which "
                f"are written every {policy.every} steps of {steps}: make it a multiple of "
                "checkpoint.every"
            )


def _data(config: RunConfig) -> Iterator[str]:
    mixture: Mapping[str, float] = config.data.mixture or {}
    for name, weight in mixture.items():
        if weight / sum(mixture.values()) < LEAST_SHARE:
            yield f"data.mixture: the share of {name} is less than 1 in {1 / LEAST_SHARE:,.0f}"


def _warnings(config: RunConfig) -> Iterator[str]:
    steps, data, plan = config.training.steps, config.data, config.optimizer.schedule
    for name, section in (("evaluation", config.evaluation), ("logging", config.logging)):
        if section.every > steps:
            yield f"{name}.every {section.every} is beyond the {steps} steps: once, at the end"
    if plan.warm_up_steps == steps:
        yield f"the warm-up of {steps} steps is the whole run: no step has the full learning rate"
    if data.seed and not data.shuffle:
        yield f"data.seed {data.seed} decides nothing without data.shuffle"
    if isinstance(plan, PowerSchedule):
        found = {
            "batch_size": data.batch_size,
            "tokens_per_step": data.batch_size * data.sequence_length,
        }
        for name, value in found.items():
            if (given := getattr(plan.power, name)) != value:
                yield f"optimizer.schedule.power.{name} is {given}, of the data {value}"


def _layers(config: RunConfig) -> tuple[LayerConfig, ...]:
    return config.model.layers
