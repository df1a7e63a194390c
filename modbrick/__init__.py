"""Language models made of bricks: train, take apart, rebuild and convert sparse models in JAX.

`modbrick.__all__` is what one may rely on from version to version. Every name has an example in its
docstring.

Examples:
    >>> import jax.numpy as jnp
    >>> import modbrick
    >>> model = modbrick.load_model("run")
    >>> model(jnp.asarray([[1, 2, 3]])).logits.shape
    (1, 3, 256)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modbrick import bricks, families, library
    from modbrick.analysis.summary import summarise
    from modbrick.checkpoints import save_model
    from modbrick.config import ModelConfig
    from modbrick.convert import (
        export_checkpoint,
        import_checkpoint,
        open_checkpoint,
        prepare_export,
    )
    from modbrick.data import Dataset
    from modbrick.decoder.decoder import Decoder
    from modbrick.decoder.functional import parameter_table
    from modbrick.errors import InputError
    from modbrick.execution import ExecutionConfig
    from modbrick.inference import SamplingConfig, generate
    from modbrick.layers.cache import Cache
    from modbrick.models import load_model, load_parameters
    from modbrick.parallel import MeshConfig
    from modbrick.parameters import Partition
    from modbrick.training.run_config import RunConfig

__version__ = "0.1.0"

# Loaded when first asked for: `import modbrick.config` must not bring the whole library.
_HOMES = {
    "Cache": "modbrick.layers.cache",
    "Dataset": "modbrick.data",
    "Decoder": "modbrick.decoder.decoder",
    "ExecutionConfig": "modbrick.execution",
    "InputError": "modbrick.errors",
    "MeshConfig": "modbrick.parallel",
    "ModelConfig": "modbrick.config",
    "Partition": "modbrick.parameters",
    "RunConfig": "modbrick.training.run_config",
    "SamplingConfig": "modbrick.inference",
    "bricks": "modbrick",
    "export_checkpoint": "modbrick.convert",
    "families": "modbrick",
    "generate": "modbrick.inference",
    "import_checkpoint": "modbrick.convert",
    "library": "modbrick",
    "load_model": "modbrick.models",
    "load_parameters": "modbrick.models",
    "open_checkpoint": "modbrick.convert",
    "parameter_table": "modbrick.decoder.functional",
    "prepare_export": "modbrick.convert",
    "save_model": "modbrick.checkpoints",
    "summarise": "modbrick.analysis.summary",
}

__all__ = [
    "Cache",
    "Dataset",
    "Decoder",
    "ExecutionConfig",
    "InputError",
    "MeshConfig",
    "ModelConfig",
    "Partition",
    "RunConfig",
    "SamplingConfig",
    "__version__",
    "bricks",
    "export_checkpoint",
    "families",
    "generate",
    "import_checkpoint",
    "library",
    "load_model",
    "load_parameters",
    "open_checkpoint",
    "parameter_table",
    "prepare_export",
    "save_model",
    "summarise",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("bricks", "families", "library"):  # modules
        return importlib.import_module(f"{_HOMES[name]}.{name}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
