"""The registry of implementations, and how one is chosen."""

from __future__ import annotations

import importlib
from types import ModuleType

_MODULES = {
    "reference": "pallas_kernels.grouped_matmul.reference",
    "xla": "pallas_kernels.grouped_matmul.xla",
}
_UNAVAILABLE = {
    "tpu": "the Pallas TPU kernel is not part of this version; use implementation='xla'",
    "gpu": "the Pallas Mosaic GPU kernel is not part of this version; use implementation='xla'",
}


def available_implementations() -> dict[str, str | None]:
    """Every known implementation, with None where it can run, or else the reason why not."""
    return {**dict.fromkeys(_MODULES), **_UNAVAILABLE}


def choose_implementation(implementation: str | None = None) -> str:
    """The name of the implementation that will run.

    Args:
        implementation: a name, or None for the best that is available.

    Raises:
        ValueError: the name is unknown, or the implementation cannot run here; the message says
            why.
    """
    if implementation is None:
        return "xla"
    if implementation in _UNAVAILABLE:
        raise ValueError(
            f"implementation={implementation!r} cannot run: {_UNAVAILABLE[implementation]}"
        )
    if implementation not in _MODULES:
        known = ", ".join(map(repr, available_implementations()))
        raise ValueError(f"implementation={implementation!r} is unknown; known are {known}")
    return implementation


def load_implementation(implementation: str | None) -> ModuleType:
    """The module with the `grouped_matmul` and `grouped_feed_forward` that will run."""
    return importlib.import_module(_MODULES[choose_implementation(implementation)])
