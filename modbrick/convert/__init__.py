"""Checkpoints of other formats, over one streaming reader.

`import_checkpoint(directory)` returns a checkpoint's parts, `load(directory)` a model.
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from modbrick.addresses import unflatten
from modbrick.convert.moduleformer import (
    ModuleFormerCheckpoint,
    import_checkpoint,
    open_checkpoint,
)
from modbrick.execution import ExecutionConfig
from modbrick.layers.decoder import Decoder

__all__ = ["ModuleFormerCheckpoint", "import_checkpoint", "load", "open_checkpoint"]


def load(directory: str | Path, *, execution: ExecutionConfig | None = None) -> Decoder:
    """Returns the model of a checkpoint of the original ModuleFormer, with its weights.

    Args:
      directory: with `config.json`, and safetensors or `.bin` weights, sharded or not.
      execution: how to run it; None: as `ExecutionConfig` has it.

    Raises:
      InputError: as `open_checkpoint`.
    """
    checkpoint = open_checkpoint(directory)
    execution = ExecutionConfig() if execution is None else execution
    graph, state = nnx.split(
        nnx.eval_shape(lambda: Decoder(checkpoint.config, execution=execution))
    )
    parameters = {path: jnp.asarray(checkpoint.read(path)) for path in checkpoint.parameters}
    nnx.replace_by_pure_dict(state, unflatten(parameters))
    return nnx.merge(graph, state)
