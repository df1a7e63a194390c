"""Text to tokens to rows: prepared data sets, and the batches that training and evaluation read."""

from modbrick.data.batches import TrainingBatches, data_identity, training_batches
from modbrick.data.config import DataConfig
from modbrick.data.dataset import Dataset, check_vocabulary
from modbrick.data.evaluation import EvaluationBatches, evaluation_batches
from modbrick.data.tokenizer import (
    ByteTokenizer,
    JsonTokenizer,
    Tokenizer,
    TokenizerIdentity,
    load_tokenizer,
    train_tokenizer,
)
from modbrick.data.row_plan import RowPlan
from modbrick.data.writer import DatasetWriter

__all__ = [
    "ByteTokenizer",
    "DataConfig",
    "Dataset",
    "DatasetWriter",
    "EvaluationBatches",
    "JsonTokenizer",
    "RowPlan",
    "Tokenizer",
    "TokenizerIdentity",
    "TrainingBatches",
    "check_vocabulary",
    "data_identity",
    "evaluation_batches",
    "load_tokenizer",
    "train_tokenizer",
    "training_batches",
]
