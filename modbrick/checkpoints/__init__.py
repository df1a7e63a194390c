"""Checkpoints: one format, whatever the mesh, the number of processes or the segmenting."""

from modbrick.checkpoints.config import CheckpointConfig
from modbrick.checkpoints.leaves import Leaf
from modbrick.checkpoints.loading import (
    describe,
    load_checkpoint,
    locate,
    save_model,
    save_tokenizer,
    tokenizer_file,
)
from modbrick.checkpoints.metadata import Description, Metadata
from modbrick.checkpoints.parts import SplitParameters
from modbrick.checkpoints.reading import Restored
from modbrick.checkpoints.store import CheckpointStore

__all__ = [
    "CheckpointConfig",
    "CheckpointStore",
    "Description",
    "Leaf",
    "Metadata",
    "Restored",
    "SplitParameters",
    "describe",
    "load_checkpoint",
    "locate",
    "save_model",
    "save_tokenizer",
    "tokenizer_file",
]
