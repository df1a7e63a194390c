"""What a run continues from: a checkpoint read into the arrays that it asks for."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from etils import epath

from modbrick.checkpoints import files
from modbrick.checkpoints.leaves import abstract, mismatches, named_leaves
from modbrick.checkpoints.metadata import DamagedError, Description, Metadata
from modbrick.errors import InputError
from modbrick.parallel.processes import everywhere


@dataclasses.dataclass(frozen=True)
class Restored:
    """A restored checkpoint: trees as the abstract ones asked for, and what was said of them."""

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
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    trees = {"parameters": abstract_parameters}
    if abstract_optimizer is not None:
        trees["optimizer"] = abstract_optimizer
    targets = {
        part: {name: abstract(leaf, default) for name, leaf in named_leaves(tree).items()}
        for part, tree in trees.items()
    }
    remarks = []
    for part, target in targets.items():
        saved = getattr(description, part) or {}
        remarks += mismatches(saved, target, "" if part == "parameters" else "optimizer.")
    if remarks:
        raise InputError(f"{path} does not fit: {'; '.join(remarks)}")
    arrays = everywhere(lambda: files.read_arrays(path, description, targets), DamagedError)
    restored = {
        part: jax.tree.unflatten(jax.tree.structure(tree), list(arrays[part].values()))
        for part, tree in trees.items()
    }
    return Restored(
        description.step,
        restored["parameters"],
        restored.get("optimizer"),
        description.metadata,
        description,
    )
