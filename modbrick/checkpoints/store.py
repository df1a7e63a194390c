"""The checkpoints of a run: saving, keeping by policy, and finding the newest that is whole."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from modbrick.checkpoints import files
from modbrick.checkpoints.base import BASE, BaseWriter
from modbrick.checkpoints.config import CheckpointConfig
from modbrick.checkpoints.leaves import named_arrays, table_of
from modbrick.checkpoints.metadata import (
    BaseReference,
    DamagedError,
    Description,
    Metadata,
    new_description,
)
from modbrick.checkpoints.parts import SplitParameters
from modbrick.checkpoints.reading import Restored, restore
from modbrick.checkpoints.retention import Retention
from modbrick.checkpoints.workdir.directory import (
    CHECKPOINTS,
    DAMAGED,
    clean,
    complete_steps,
    move_aside,
    remove_unfinished,
    require_own,
    require_shared,
)
from modbrick.checkpoints.workdir.link import plain_path
from modbrick.checkpoints.workdir.lock import RunLock
from modbrick.errors import InputError
from modbrick.parallel.processes import everywhere, gather, is_first
from modbrick.paths import as_path

_logger = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints in `WORKDIR/checkpoints`.

    In a run of several processes, all of them make the same calls. Make the store before anything
    else is written to the directory, and close it in `finally` (or use it in `with`).
    """

    def __init__(
        self,
        directory: epath.PathLike,
        config: CheckpointConfig = CheckpointConfig(),
        *,
        warn: Callable[[str], None] = _logger.warning,
    ):
        """Opens or makes a run's directory, and removes what a killed process left unfinished.

        Args:
          directory: WORKDIR, local or remote; made if it does not exist.
          config: when to save and what to keep.
          warn: is handed a line about each damaged checkpoint and each interrupted save found.

        Raises:
          InputError: the directory holds something else, cannot be written, or is another start's.
        """
        self.directory, self.config, self._warn = as_path(directory), config, warn
        self._root = self.directory / CHECKPOINTS
        self._pending: Future[None] | None = None
        self._bases = BaseWriter(self.directory)
        self._retention = Retention(self._root, config, self._bases)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        plain_path(self._root)  # refuses names that cannot be passed on
        require_own(self.directory)
        self._lock = everywhere(lambda: RunLock(self.directory, warn))
        if is_first():
            self._root.mkdir(parents=True, exist_ok=True)
            clean(self.directory / BASE)
            for step in clean(self._root):
                warn(f"checkpoint {step} in {self._root} was never finished: removed")
        _barrier("opened")
        everywhere(lambda: require_shared(self._root))

    def steps(self) -> list[int]:
        """Lists the steps of the complete checkpoints, ascending, as the first process sees them.

        While a checkpoint is being deleted or renamed, others may see more or fewer.
        """
        return gather(complete_steps(self._root))[0]

    def save(
        self,
        step: int,
        parameters: Any,
        optimizer_state: Any | None,
        metadata: Metadata,
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Saves a checkpoint; in the background, if the config says so.

        The values are those at the time of the call, whatever happens to the arrays afterwards.
        Waits for the save before this one, if it is still being written.

        Args:
          step: optimizer steps done.
          parameters: a tree of all of them; or `SplitParameters`, of which the trainable ones are
            saved, and the frozen ones once for the run.
          optimizer_state: any tree of arrays; None: save without.
          metadata: what to say about it.
          metrics: measured at this step, by name, for `keep_best`; nothing if it was not measured.

        Returns:
          Whether it was saved: False if this step already is.

        Raises:
          InputError: this or the save before it could not be written, earlier ones are untouched;
            another start has taken the directory; `best_metric` is not among the metrics.
        """
        self.wait()
        if metrics:
            self.config.require_metric(metrics)
        everywhere(self._lock.require)
        if step in self.steps():
            return False
        split = None
        if isinstance(parameters, SplitParameters):
            failed = functools.partial(self._failed, step)
            split = self._bases.write(parameters, metadata, failed)
            parameters = parameters.trainable
        started = everywhere(
            lambda: self._start(step, parameters, optimizer_state, metadata, metrics or {}, split)
        )
        self._pending = self._executor.submit(self._finish, *started)
        if not self.config.asynchronous:
            self.wait()
        return True

    def wait(self) -> None:
        """Waits for the save in the background; raises what went wrong there in any process.

        No process goes on before the first one has read everything back and deleted what is old:
        it would wait in vain for the first at its end.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            everywhere(pending.result)

    def close(self) -> None:
        """Waits for the save in the background, raises what went wrong there, ends the thread."""
        try:
            self.wait()
        finally:
            self._leave()

    def _leave(self) -> None:
        self._executor.shutdown()
        self._lock.release()

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            # The other processes may be anywhere: this one waits for its own part.
            self._leave()
            return
        self.close()

    def latest(self) -> Description | None:
        """Returns what the newest checkpoint with intact metadata says about itself, if any."""
        for step in reversed(self.steps()):
            path = self._root / str(step)
            try:
                return everywhere(functools.partial(files.read_description, path), DamagedError)
            except DamagedError:
                continue  # restore_latest reports it and moves it aside
        return None

    def restore_latest(self, abstract_parameters: Any, abstract_optimizer: Any) -> Restored | None:
        """Restores the newest checkpoint that is whole.

        Damaged ones newer than it are reported through `warn` and moved aside (`STEP.damaged`).

        Args:
          abstract_parameters: a tree of `jax.ShapeDtypeStruct`s (or arrays), or
            `SplitParameters` of them; those without a sharding go to the first device. Frozen
            leaves may ask for another dtype, and are cast. How they were divided when they were
            saved does not matter.
          abstract_optimizer: the same for the optimizer's state; None: leave it out.

        Returns:
          The checkpoint, or None if there is none.

        Raises:
          InputError: the checkpoint does not fit (lists every leaf that is missing, unexpected, or
            of another shape or dtype), has another format, or all there are are damaged.
        """
        self.wait()
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            path = self._root / str(step)
            try:
                restored = restore(path, abstract_parameters, abstract_optimizer)
            except DamagedError as error:
                damaged[step] = str(error)
                continue
            for newer, reason in damaged.items():
                self._warn(
                    f"checkpoint {newer} in {self._root} is damaged ({reason}); using {step} "
                    f"instead, the damaged one is now {newer}{DAMAGED}"
                )
                if is_first():
                    move_aside(self._root / str(newer))
            _barrier("aside")
            if isinstance(restored.parameters, SplitParameters) and restored.description.split:
                self._bases.remember(restored.description.split, restored.parameters)
            return restored
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise InputError(
                f"every checkpoint in {self._root} is damaged ({reasons}): remove the directory to "
                "start anew, or restore it from a copy"
            )
        return None

    def _start(
        self,
        step: int,
        parameters: Any,
        optimizer_state: Any | None,
        metadata: Metadata,
        metrics: Mapping[str, float],
        split: BaseReference | None,
    ) -> tuple[Description, Callable[[], None]]:
        arrays = {"parameters": named_arrays(parameters, "parameters")}
        if optimizer_state is not None:
            arrays["optimizer"] = named_arrays(optimizer_state, "optimizer")
        description = new_description(
            step,
            metadata,
            metrics,
            {} if split else table_of(arrays["parameters"]),
            table_of(arrays["optimizer"]) if "optimizer" in arrays else None,
            split,
        )
        try:
            return description, files.start_writing(self._root / str(step), description, arrays)
        except OSError as error:
            raise self._failed(step, error) from error

    def _finish(self, description: Description, result: Callable[[], None]) -> None:
        """Waits until a checkpoint is written, then deletes what the policy does not keep."""
        step = description.step
        try:
            result()
        except files.WRITING as error:
            if is_first():
                remove_unfinished(self._root / str(step))
            raise self._failed(step, error) from error
        if is_first():
            try:
                self._retention.saved(description)
            except OSError as error:  # the checkpoint itself is complete
                self._warn(f"older checkpoints were not deleted ({files.first_line(error)})")

    def _failed(self, step: int, error: Exception) -> InputError:
        return InputError(
            f"checkpoint {step} could not be written to {self._root} ({files.first_line(error)}); "
            "the checkpoints before it are untouched"
        )


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"modbrick.checkpoints.{name}")
