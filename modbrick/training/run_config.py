"""Config of a run: every config of training in one record, and the part that is its identity."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from modbrick.bricks import BrickConfig, Emergent
from modbrick.bricks.config import check_name
from modbrick.bricks.plugging import set_ids
from modbrick.checkpoints import CheckpointConfig
from modbrick.config import ModelConfig
from modbrick.data import DataConfig, Dataset, data_identity
from modbrick.errors import InputError, listed
from modbrick.execution import ExecutionConfig
from modbrick.objective import ObjectiveConfig
from modbrick.optimizer import OptimizerConfig
from modbrick.parallel import MeshConfig
from modbrick.schema import differences, from_mapping, nearest, to_mapping


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Length and seed of a run.

    Attributes:
      steps: updates in all.
      seed: of the initial parameters, of sampled routing and of dropout.
      microbatches: parts in which a batch is computed, to save memory; the update is the whole
        batch's.
      initial_checkpoint: a model to start from instead of new parameters (a run's working
        directory, or an imported model); its optimizer state is not used.
      frozen_dtype: in which parameters are held that are not trained; None: float32, as trained
        ones. In the model's `dtype` they take half the memory, and products are what they were
        (they are made in that dtype anyway); routers, norms and the head are rounded.
    """

    steps: int
    seed: int = 0
    microbatches: int = 1
    initial_checkpoint: str | None = None
    frozen_dtype: Literal["float32", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "microbatches"):
            if getattr(self, name) < 1:
                raise InputError(f"training {name} must be at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation on held-out documents during training.

    Attributes:
      every: steps between evaluations; 0: only after the last step.
      max_tokens: about how many tokens of the held-out split to use each time; None: all.
      batch_size: rows at a time; None: the training batch.
    """

    every: int = 0
    max_tokens: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("max_tokens", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"evaluation {name} must be at least {least}, got {value}")

    def due(self, step: int) -> bool:
        """Returns whether an evaluation is due after `step` steps."""
        return self.every > 0 and step % self.every == 0


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Config of what a run shows: steps between records, and where they go.

    Attributes:
      every: steps between records in `metrics.jsonl` and TensorBoard; the figures are means over
        them.
      tensorboard: also write TensorBoard events.
      progress: `auto` draws a bar on a terminal and plain lines elsewhere; `none` is silent.
    """

    every: int = 10
    tensorboard: bool = True
    progress: Literal["auto", "none"] = "auto"

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"logging every must be at least 1, got {self.every}")

    def due(self, step: int) -> bool:
        """Returns whether a record is due after `step` steps."""
        return step % self.every == 0


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Config of a training run.

    With `bricks`, customized bricks by name, a run trains these on the frozen model of its initial
    checkpoint, and saves them alone. Which of them: `optimizer.trainable`, with patterns such as
    `brick.german`; all, if it says nothing else. Every token uses all of them in their order; or,
    with `brick_sets`, documents of a domain of the data those that are named for it (`de+law`), and
    documents of other domains none.

    With `initial_bricks`, files of bricks by the name of the brick in the run, these begin with the
    values of the files: to be trained further, or frozen beneath others (then they are held in
    `training.frozen_dtype`, as the model is).

    Examples:
        >>> import modbrick
        >>> from modbrick.data import DataConfig
        >>> from modbrick.optimizer import OptimizerConfig
        >>> from modbrick.training.run_config import TrainingConfig
        >>> run = modbrick.RunConfig(
        ...     model=modbrick.families.dense(
        ...         vocabulary=256, width=8, layers=2, heads=2, feed_forward_width=16
        ...     ),
        ...     data=DataConfig(path="data", sequence_length=32, batch_size=4),
        ...     training=TrainingConfig(steps=100),
        ...     optimizer=OptimizerConfig(learning_rate=1e-3),
        ... )
        >>> run.training.microbatches  # what is not named has a default
        1
    """

    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    optimizer: OptimizerConfig
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)
    execution: ExecutionConfig = dataclasses.field(default_factory=ExecutionConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    bricks: Mapping[str, BrickConfig] = dataclasses.field(default_factory=dict)
    brick_sets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    initial_bricks: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.data.batch_size % self.training.microbatches:
            raise InputError(
                f"data.batch_size {self.data.batch_size} does not divide into "
                f"{self.training.microbatches} training.microbatches"
            )
        self.checkpoint.require_evaluations(self.evaluation.every)
        for name in self.bricks:
            check_name(name)
        for name in self.initial_bricks:
            if name not in self.bricks:
                remark = nearest(name, self.bricks)
                raise InputError(f"initial_bricks.{name}: the run has no such brick; {remark}")
        for name, brick in self.bricks.items():
            kind = brick.settings.kind
            if self.brick_sets and brick.settings.hook == "weights":
                raise InputError(
                    f"bricks.{name}: a brick of kind {kind} changes weights for all documents: "
                    "leave it out of a run with brick_sets"
                )
            if isinstance(brick.settings, Emergent) and name not in self.initial_bricks:
                raise InputError(
                    f"bricks.{name}: an emergent brick is taken out of a model (bricks.py extract),"
                    f" none is new: name its file, initial_bricks.{name}=FILE"
                )
        for domain, given in self.brick_sets.items():
            try:
                set_ids(tuple(self.bricks), [given])
            except InputError as error:
                raise InputError(f"brick_sets.{domain}: {error}") from None

    def identity(self, dataset: Dataset) -> dict[str, Any]:
        """Returns, as JSON-able data, what decides the parameters after each step.

        With `initial_bricks`, their values are in it too, see `modbrick.training.metadata`.
        Evaluation, logging and checkpoint policy are not in it, nor what changes by no more than
        rounding: mesh, execution but for what `ExecutionConfig.identity` names, the number of
        microbatches. They may change freely from one start to the next. (On which mesh an exchange
        of limited capacity runs decides which tokens find no room; a run may still move.)
        """
        return self.settings() | {"data": data_identity(dataset, self.data)}

    def settings(self) -> dict[str, Any]:
        """Returns the identity of a run but for its data, which are its task's."""
        training = to_mapping(self.training)
        del training["microbatches"]
        identity = {
            "model": to_mapping(self.model),
            "objective": to_mapping(self.objective),
            "optimizer": to_mapping(self.optimizer),
            "training": training,
            "execution": self.execution.identity(),
        }
        if self.bricks:
            identity |= {
                "bricks": to_mapping(self.bricks),
                "brick_order": list(self.bricks),
                "brick_sets": dict(self.brick_sets),
            }
        return identity


def shared_settings(config: RunConfig) -> dict[str, Any]:
    """Returns, as JSON-able data, the settings that all processes must share: all but paths.

    Data may lie elsewhere on each machine; what they are is compared by the run's identity.
    """
    settings = to_mapping(config)
    del settings["data"]["path"], settings["initial_bricks"]
    return settings


def check_identity(
    saved: Mapping[str, Any], current: Mapping[str, Any], allowed: Iterable[str], directory: str
) -> list[str]:
    """Compares a checkpoint's run with this one.

    Args:
      saved: identity in the checkpoint.
      current: identity of this run.
      allowed: patterns of what may differ (`optimizer.*`, `training.steps`, `data`).
      directory: of the run, for the message.

    Returns:
      The allowed differences, a line each; and one for what the checkpoint does not say because it
      is older than that entry.

    Raises:
      InputError: anything else differs; lists it.
    """
    allowed = tuple(allowed)
    before, now = _as_today(saved, directory), _as_today(current, directory)
    unknown = {
        name: value
        for name, value in now.get("execution", {}).items()
        if before and name not in before.setdefault("execution", {})
    }
    before.get("execution", {}).update(unknown)
    lines = differences(before, now)
    refused = [
        line
        for line in lines
        if not any(_covers(pattern, line.split(": ", 1)[0]) for pattern in allowed)
    ]
    if refused:
        names = ",".join(dict.fromkeys(line.split(".", 1)[0].split(":")[0] for line in refused))
        raise InputError(
            f"{directory} holds a run of another identity ({listed(refused, '; ')}): use "
            f"another workdir, or continue it changed with --allow_change={names}"
        )
    return lines + [f"execution: unknown -> {json.dumps(unknown)}"] * bool(unknown)


def _as_today(saved: Mapping[str, Any], directory: str) -> dict[str, Any]:
    """Returns the identity that a checkpoint of any age holds, in the form of `identity`."""
    found = {
        name: dict(section) if isinstance(section, Mapping) else section
        for name, section in saved.items()
    }
    for name, record in (
        ("model", ModelConfig),
        ("objective", ObjectiveConfig),
        ("optimizer", OptimizerConfig),
        ("training", TrainingConfig),
    ):
        if name in found:
            try:
                found[name] = to_mapping(from_mapping(record, found[name], name))
            except InputError as error:
                raise InputError(f"{directory} holds a run that cannot be read: {error}") from None
    if "bricks" in found:
        try:
            bricks = {
                name: from_mapping(BrickConfig, brick, f"bricks.{name}")
                for name, brick in found["bricks"].items()
            }
        except InputError as error:
            raise InputError(f"{directory} holds a run that cannot be read: {error}") from None
        found["bricks"] = to_mapping(bricks)
    found.get("training", {}).pop("microbatches", None)
    return found


def _covers(pattern: str, path: str) -> bool:
    # Brackets in a path are indices, in a pattern of fnmatch a set: a literal path comes first.
    whole = path == pattern or path.startswith((pattern + ".", pattern + "["))
    return whole or fnmatch.fnmatchcase(path, pattern)
