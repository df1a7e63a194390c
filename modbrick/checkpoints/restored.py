"""What a run continues from: a checkpoint read into the arrays that it asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from modbrick.checkpoints import files
from modbrick.checkpoints.leaves import mismatches
from modbrick.checkpoints.metadata import DamagedError, Description, Metadata
from modbrick.checkpoints.parts import SplitParameters
from modbrick.checkpoints.reading import Wanted, read_parameters, verify_checkpoint
from modbrick.errors import InputError
from modbrick.parallel.processes import everywhere


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored checkpoint: trees as the abstract ones asked for, and what was said of them.

    Attributes:
      step: optimizer steps done.
      parameters: a tree, or `SplitParameters` if they were asked for.
      optimizer_state: a tree; None: not asked for.
      metadata: of whoever saved it.
      description: everything that it says about itself.
    """

    step: int
    parameters: Any
    optimizer_state: Any
    metadata: Metadata
    description: Description


def restore(path: epath.Path, abstract_parameters: Any, abstract_optimizer: Any) -> Restored:
    """Reads a checkpoint of a run; every process makes this call.

    Args:
      path: of the checkpoint.
      abstract_parameters: see `CheckpointStore.restore_latest`.
      abstract_optimizer: see `CheckpointStore.restore_latest`.

    Raises:
      DamagedError: something cannot be read, or is not what was written.
      InputError: it does not fit, or has another format.
    """
    description = everywhere(lambda: files.read_description(path), DamagedError)
    wanted = Wanted.of(abstract_parameters)
    optimizer = None if abstract_optimizer is None else Wanted.of(abstract_optimizer).trainable
    remarks = wanted.mismatches(description.parameters)
    if optimizer is not None:
        remarks += mismatches(description.optimizer or {}, optimizer, "optimizer.")
    if remarks:
        raise InputError(f"{path} does not fit: {'; '.join(remarks)}")
    verify_checkpoint(path, description, optimizer=optimizer is not None)

    def read() -> tuple[Any, Any]:
        trainable, frozen = read_parameters(path, description, wanted)
        parameters: Any
        if isinstance(abstract_parameters, SplitParameters):
            parameters = dataclasses.replace(
                abstract_parameters,
                trainable=_like(abstract_parameters.trainable, trainable),
                frozen=_like(abstract_parameters.frozen, frozen),
            )
        else:
            parameters = _like(abstract_parameters, trainable)
        if optimizer is None:
            return parameters, None
        table = description.optimizer or {}
        state = files.read_arrays(path, "optimizer", table, optimizer)
        return parameters, _like(abstract_optimizer, state)

    parameters, state = everywhere(read, DamagedError)
    return Restored(description.step, parameters, state, description.metadata, description)


def _like(tree: Any, arrays: Mapping[str, Any]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(tree), list(arrays.values()))
