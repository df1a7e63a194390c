"""Configs of an optimizer: records read from and written to JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modbrick.errors import InputError
from modbrick.schema import convert, hints, is_mapping, kinds

ParameterClass = Literal["vectors", "embedding", "head", "routers"]


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} must be positive, got {value}")


def _not_negative(name: str, value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise InputError(f"{name} must not be negative, got {value}")


def _share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InputError(f"{name} must be in [0, 1), got {value}")


@dataclass(frozen=True)
class PowerConfig:
    """The learning rate as a power of the tokens trained on: batch_size · amplitude · n^exponent.

    The law of arXiv 2408.13359, which found the default amplitude and exponent to hold over sizes
    of model, batch and corpus (with maximal-update parametrisation).

    Attributes:
      batch_size: sequences in a batch.
      tokens_per_step: tokens in a batch.
      amplitude: learning rate for one sequence a batch after one token.
      exponent: negative.
    """

    batch_size: int
    tokens_per_step: int
    amplitude: float = 4.0
    exponent: float = -0.51

    def __post_init__(self) -> None:
        for name in ("batch_size", "tokens_per_step", "amplitude"):
            _positive(f"power {name}", getattr(self, name))
        if not (self.exponent < 0 and math.isfinite(self.exponent)):
            raise InputError(f"power exponent must be negative, got {self.exponent}")


@dataclass(frozen=True, kw_only=True)
class ConstantSchedule:
    """The full learning rate, after `warm_up_steps` steps that rise linearly to it from 0."""

    warm_up_steps: int = 0
    kind: Literal["constant"] = "constant"

    def __post_init__(self) -> None:
        _check_steps(self.warm_up_steps)


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """Half a cosine down.

    Attributes:
      warm_up_steps: steps from 0 to the full value.
      decay_steps: length of the decay, which begins with the end of the warm-up; None: the rest of
        the run.
      end_factor: value after the decay, as a share of the full one.
    """

    warm_up_steps: int = 0
    decay_steps: int | None = None
    end_factor: float = 0.1
    kind: Literal["cosine"] = "cosine"

    def __post_init__(self) -> None:
        _check_steps(self.warm_up_steps, self.decay_steps, self.end_factor)


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecaySchedule:
    """Constant, then linearly down.

    Attributes:
      warm_up_steps: steps from 0 to the full value.
      decay_steps: length of the decay, which ends with the run; None: a tenth of all steps, but
        at least two.
      end_factor: value after the decay, as a share of the full one.
    """

    warm_up_steps: int = 0
    decay_steps: int | None = None
    end_factor: float = 0.1
    kind: Literal["warmup_stable_decay"] = "warmup_stable_decay"

    def __post_init__(self) -> None:
        _check_steps(self.warm_up_steps, self.decay_steps, self.end_factor)


@dataclass(frozen=True, kw_only=True)
class PowerSchedule:
    """A power of the tokens trained on, capped by the learning rate, then linearly down.

    Attributes:
      power: which one.
      warm_up_steps: steps from 0 to the first full value.
      decay_steps: length of the decay, which ends with the run; None: a tenth of all steps, but
        at least two.
      end_factor: value after the decay, as a share of the value at its start.
    """

    power: PowerConfig
    warm_up_steps: int = 0
    decay_steps: int | None = None
    end_factor: float = 0.1
    kind: Literal["power"] = "power"

    def __post_init__(self) -> None:
        _check_steps(self.warm_up_steps, self.decay_steps, self.end_factor)


Schedule = ConstantSchedule | CosineSchedule | WarmupStableDecaySchedule | PowerSchedule
"""The learning rate over the steps of a run."""


def ScheduleConfig(kind: str = "cosine", **fields: Any) -> Schedule:
    """Returns the schedule of a kind, for configs written when one record served all kinds."""
    return convert(Schedule, _schedule({"kind": kind, **fields}), "schedule")


def _schedule(data: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a schedule of before: one record with the fields of all kinds, cosine by default."""
    found = {"kind": "cosine", **data}
    own = hints(_KINDS.get(str(found["kind"]), PowerSchedule))
    for name, unset in (("decay_steps", None), ("end_factor", 0.1), ("power", None)):
        ignored = name == "end_factor" and "power" in data  # it was there, and had no effect
        if name in found and name not in own and (found[name] == unset or ignored):
            del found[name]
    return found


_KINDS = kinds(Schedule)


def _check_steps(warm_up: int, decay: int | None = None, end_factor: float = 0.0) -> None:
    for name, steps in (("warm_up_steps", warm_up), ("decay_steps", decay or 0)):
        if steps < 0:
            raise InputError(f"schedule {name} is negative: {steps}")
    if not 0 <= end_factor <= 1:
        raise InputError(f"schedule end_factor must be in [0, 1], got {end_factor}")


@dataclass(frozen=True)
class GroupConfig:
    """Bricks with a learning rate or a weight decay of their own.

    Attributes:
      patterns: addresses, such as `embedding`, `layer.*.*.router`, `layer.*.*.expert`,
        `layer.3.feed_forward.expert.5`.
      learning_rate_multiplier: of the learning rate; 0 holds the bricks still but keeps their
        optimizer state (freezing does not).
      weight_decay: instead of the optimizer's, exclusions included; None: as without the group.
    """

    patterns: tuple[str, ...]
    learning_rate_multiplier: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        if not self.patterns:
            raise InputError("an optimizer group needs at least one address pattern")
        _not_negative("group learning_rate_multiplier", self.learning_rate_multiplier)
        if self.weight_decay is not None:
            _not_negative("group weight_decay", self.weight_decay)


@dataclass(frozen=True)
class MuonConfig:
    """Momentum orthogonalised by Newton-Schulz iterations, for the matrices inside the layers.

    Attributes:
      momentum: decay rate of the momentum.
      nesterov: look ahead by one step of momentum.
      iterations: of Newton-Schulz, for each matrix.
      consistent_rms: root mean square of an orthogonalised update before the learning rate, so that
        one learning rate suits Muon and AdamW (arXiv 2502.16982, section 2.2). None: scale by
        sqrt(max(1, out/in)) instead.
    """

    momentum: float = 0.95
    nesterov: bool = True
    iterations: int = 5
    consistent_rms: float | None = 0.2

    def __post_init__(self) -> None:
        _share("muon momentum", self.momentum)
        _positive("muon iterations", self.iterations)
        if self.consistent_rms is not None:
            _positive("muon consistent_rms", self.consistent_rms)


@dataclass(frozen=True)
class OptimizerConfig:
    """Config of the updates of parameters.

    Attributes:
      kind: `adamw`; or `muon` for matrices inside the layers (each expert's its own matrix) with
        AdamW for the embedding, the head, routers, norms and biases.
      learning_rate: the schedule's highest value.
      schedule: its course.
      b1, b2, epsilon: of AdamW.
      weight_decay: decoupled, times the learning rate (arXiv 1711.05101).
      no_weight_decay: classes of parameters without it. `vectors` are norms, biases and scalars.
      max_gradient_norm: gradients are scaled down to this global norm; None: never.
      groups: exceptions by address; of several groups that cover a brick, the last one counts.
      muon: of `muon`.
      trainable, frozen: address patterns, see `Partition`.
      skip_non_finite: leave out updates whose gradients hold NaN or infinity.
      max_skipped_in_a_row: training stops after so many.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 3e-4
    schedule: Schedule = CosineSchedule()
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    no_weight_decay: tuple[ParameterClass, ...] = ("vectors", "embedding")
    max_gradient_norm: float | None = 1.0
    groups: tuple[GroupConfig, ...] = ()
    muon: MuonConfig = MuonConfig()
    trainable: tuple[str, ...] = ("*",)
    frozen: tuple[str, ...] = ()
    skip_non_finite: bool = True
    max_skipped_in_a_row: int = 10

    def __post_init__(self) -> None:
        _positive("learning_rate", self.learning_rate)
        _share("b1", self.b1)
        _share("b2", self.b2)
        _positive("epsilon", self.epsilon)
        _not_negative("weight_decay", self.weight_decay)
        if self.max_gradient_norm is not None:
            _positive("max_gradient_norm", self.max_gradient_norm)
        _positive("max_skipped_in_a_row", self.max_skipped_in_a_row)

    @staticmethod
    def upgrade(data: Mapping[str, Any]) -> dict[str, Any]:
        """Reads a record of before, when one record served all kinds of schedules."""
        if not is_mapping(data.get("schedule")):
            return dict(data)
        return {**data, "schedule": _schedule(data["schedule"])}
