"""Text to tokens to rows: prepared data sets, and the batches that training and evaluation read."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modbrick.data.batches import TrainingBatches, data_identity, training_batches
    from modbrick.data.config import DataConfig
    from modbrick.data.dataset import Dataset, check_vocabulary
    from modbrick.data.evaluation import EvaluationBatches, evaluation_batches
    from modbrick.data.row_plan import RowPlan
    from modbrick.data.tokenizers.byte import ByteTokenizer
    from modbrick.data.tokenizers.files import load_tokenizer, save_tokenizer
    from modbrick.data.tokenizers.tokenizer import Tokenizer, TokenizerIdentity
    from modbrick.data.writer import DatasetWriter

# Loaded on first use: batches bring Grain and with it JAX, which the processes that prepare data do
# without.
_HOMES = {
    "ByteTokenizer": "tokenizers.byte",
    "DataConfig": "config",
    "Dataset": "dataset",
    "DatasetWriter": "writer",
    "EvaluationBatches": "evaluation",
    "RowPlan": "row_plan",
    "Tokenizer": "tokenizers.tokenizer",
    "TokenizerIdentity": "tokenizers.tokenizer",
    "TrainingBatches": "batches",
    "check_vocabulary": "dataset",
    "data_identity": "batches",
    "evaluation_batches": "evaluation",
    "load_tokenizer": "tokenizers.files",
    "save_tokenizer": "tokenizers.files",
    "training_batches": "batches",
}

__all__ = [
    "ByteTokenizer",
    "DataConfig",
    "Dataset",
    "DatasetWriter",
    "EvaluationBatches",
    "RowPlan",
    "Tokenizer",
    "TokenizerIdentity",
    "TrainingBatches",
    "check_vocabulary",
    "data_identity",
    "evaluation_batches",
    "load_tokenizer",
    "save_tokenizer",
    "training_batches",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
