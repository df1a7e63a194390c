"""Models from a directory, of this library's checkpoints and of others' alike."""

from modbrick.models.loading import load_model, load_parameters
from modbrick.models.stored import StoredModel, open_model

__all__ = ["StoredModel", "load_model", "load_parameters", "open_model"]
