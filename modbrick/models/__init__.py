"""Models from a directory, of this library's checkpoints and of others' alike."""

from modbrick.models.extraction import extract_brick
from modbrick.models.folding import fold_model, unfold_model
from modbrick.models.loading import load_model, load_parameters
from modbrick.models.stored import StoredModel, open_model

__all__ = [
    "StoredModel",
    "extract_brick",
    "fold_model",
    "load_model",
    "load_parameters",
    "open_model",
    "unfold_model",
]
