"""Language models made of bricks: train, take apart, rebuild and convert sparse models in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modbrick.models import load_model, load_parameters

__version__ = "0.1.0"
__all__ = ["__version__", "load_model", "load_parameters"]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: `import modbrick.config` must not load the whole library.
    if name in ("load_model", "load_parameters"):
        from modbrick import models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
