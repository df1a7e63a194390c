"""Start of a run: from new parameters, from a model's, or from its own last checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from modbrick.bricks import initial_bricks
from modbrick.bricks.functional import is_brick
from modbrick.bricks.table import large_ranks
from modbrick.checkpoints import BaseModel, CheckpointStore, Metadata, Restored, save_tokenizer
from modbrick.checkpoints.workdir.directory import write_text
from modbrick.decoder.functional import initial_parameters
from modbrick.errors import InputError
from modbrick.library.initial import read_initial
from modbrick.models import StoredModel, open_model
from modbrick.parallel.processes import check_agreement, everywhere, is_first, say
from modbrick.paths import as_path
from modbrick.schema import to_json
from modbrick.training.program import TrainProgram
from modbrick.training.run_config import RunConfig, check_identity, shared_settings
from modbrick.training.state import TrainState, initial_state


@dataclasses.dataclass(frozen=True)
class Start:
    """State and position that training starts from.

    Attributes:
      state: laid out as the program says; the first step consumes it.
      row: number of the first row to train on.
      metrics: held-out metrics in the run's last checkpoint, empty if it was not evaluated; None:
        the run begins.
    """

    state: TrainState
    row: int = 0
    metrics: Mapping[str, float] | None = None

    @property
    def step(self) -> int:
        """Steps done before."""
        return int(self.state.step)


def check_settings(config: RunConfig, metadata: Metadata, more: Mapping[str, Any]) -> None:
    """Makes sure that all processes train the same. Every process makes this call.

    Args:
      config: of the run; paths of data and of bricks may differ, what they hold may not.
      metadata: of the run, from its task.
      more: settings beside the config, by name, JSON-able.

    Raises:
      InputError: processes differ; names them, and in what.
    """
    of_run = {name: metadata.run.get(name) for name in ("data", "initial_bricks")}
    settings = {"config": shared_settings(config), **of_run}
    check_agreement({**settings, **more})


def start_run(
    program: TrainProgram,
    store: CheckpointStore,
    metadata: Metadata,
    *,
    allow_change: Iterable[str] = (),
    allow_base: str = "same",
) -> Start:
    """Continues the run in the store, or begins it. Every process makes this call.

    Args:
      program: what is trained.
      store: of the run's checkpoints.
      metadata: of the run, from its task; `run` is its identity.
      allow_change: what may differ from the run to be continued, see `check_identity`.
      allow_base: on which weights bricks that it begins with may have been trained: `same`, those
        of its model, or `any` of the same shapes.

    Raises:
      InputError: the checkpoints are of another run, do not fit, or are all damaged; or the initial
        checkpoint or a brick that the run begins with does not fit.
    """
    for line in large_ranks(program.config.model, program.config.bricks):
        say(line)
    if (latest := store.latest()) is not None:
        before, directory = latest.metadata.run, str(store.directory)
        if latest.metadata.base is not None and metadata.base is not None:
            _require_base(latest.metadata.base, metadata.base, directory)
        for line in everywhere(
            lambda: check_identity(before, metadata.run, allow_change, directory)
        ):
            say(f"continuing with a change: {line}")
        if latest.step > program.config.training.steps:
            raise InputError(
                f"{directory} was trained for {latest.step} steps already, training.steps is "
                f"{program.config.training.steps}: set at least {latest.step}, or use another "
                "workdir"
            )
    restored = store.restore_latest(program.stored(program.state), program.state.optimizer)
    if restored is None:
        return Start(_first_state(program, allow_base))
    say(f"continuing from step {restored.step}")
    return Start(
        _restored_state(program, restored),
        restored.metadata.data["row"],
        restored.description.metrics,
    )


def describe_run(directory: epath.PathLike, program: TrainProgram) -> None:
    """Writes the run's config and its tokenizer into its directory; the first process does."""
    if not is_first():
        return
    write_text(as_path(directory) / "config.json", to_json(program.config))
    if (tokenizer := program.task.tokenizer()) is not None:
        save_tokenizer(directory, tokenizer.to_json())


def _first_state(program: TrainProgram, allow_base: str) -> TrainState:
    """Returns the state before the first step: what is new, and what was trained before."""
    model, training = program.config.model, program.config.training
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.parameters)
    origin = training.initial_checkpoint
    if origin is None:
        parameters = initial_parameters(model, jax.random.key(training.seed), shardings)
    else:
        stored = everywhere(lambda: open_model(origin))
        parameters = _read_model(program, stored)
        say(f"starting from {stored.origin}")
        for line in stored.changes(model):
            say(f"with another config than it was saved with: {line}")
    files = program.config.initial_bricks
    new = {name: brick for name, brick in program.config.bricks.items() if name not in files}
    bricks = initial_bricks(model, new, jax.random.key(training.seed))
    if files:
        bricks |= everywhere(lambda: _read_bricks(program.config, allow_base))
    parameters |= {path: jax.device_put(x, shardings[path]) for path, x in bricks.items()}
    return initial_state(parameters, program.partition, program.optimizer, _shardings(program))


def _read_bricks(config: RunConfig, allow_base: str) -> dict[str, jax.Array]:
    """Reads the values of bricks that begin with those of files."""
    origin = config.training.initial_checkpoint
    assert origin is not None, "bricks are trained on a model"
    files, model = config.initial_bricks, open_model(origin)
    found = read_initial(files, config.bricks, model, allow_base=allow_base)
    for name, file in files.items():
        say(f"brick {name} starts from {file}")
    return found


def _restored_state(program: TrainProgram, restored: Restored) -> TrainState:
    """Returns the state that a checkpoint holds, over the model if it holds bricks alone."""
    step = jax.device_put(np.int32(restored.step), program.state.step.sharding)
    parts = restored.parameters
    frozen = parts.frozen
    if (origin := program.config.training.initial_checkpoint) and program.config.bricks:
        frozen = frozen | _read_model(program, everywhere(lambda: open_model(origin)))
    return TrainState(step, parts.trainable, frozen, restored.optimizer_state)


def _read_model(program: TrainProgram, stored: StoredModel) -> dict[str, jax.Array]:
    """Reads the model's parameters as the program holds them; not those of its bricks."""
    held = program.config.training.frozen_dtype or "float32"
    wanted = {p: x for p, x in program.parameters.items() if not is_brick(p)}
    dtypes = {p: "float32" if p in program.partition.trainable else held for p in wanted}
    shardings = {path: leaf.sharding for path, leaf in wanted.items()}

    def read() -> dict[str, jax.Array]:
        if stored.bricks:
            raise InputError(f"{stored.origin} holds bricks for a model: start from the model")
        return stored.read(config=program.config.model, dtype=dtypes, shardings=shardings)

    return everywhere(read)


def _require_base(saved: BaseModel, found: BaseModel, directory: str) -> None:
    if found.fingerprint != saved.fingerprint:
        raise InputError(
            f"{found.origin} is not the model that the bricks in {directory} are trained on: "
            f"its fingerprint is {found.fingerprint}, theirs {saved.fingerprint}"
        )


def _shardings(program: TrainProgram) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, program.state)
