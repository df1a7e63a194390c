"""Language models made of bricks: train, take apart, rebuild and convert sparse models in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modbrick.models import load_model

__version__ = "0.1.0"
__all__ = ["__version__", "load_model"]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: `import modbrick.config` must not load the whole library.
    if name == "load_model":
        from modbrick.models import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
