"""The implementations of stick-breaking attention."""

from __future__ import annotations

from pallas_kernels.attention.shared.case import Case
from pallas_kernels.implementations import Implementation, Registry

REGISTRY = Registry[Case](
    {
        "reference": Implementation("pallas_kernels.attention.stickbreaking.reference"),
        "xla": Implementation("pallas_kernels.attention.stickbreaking.xla"),
        "tpu": Implementation("pallas_kernels.attention.stickbreaking.tpu.implementation", "tpu"),
        "gpu": Implementation("pallas_kernels.attention.stickbreaking.gpu.implementation", "gpu"),
    }
)
IMPLEMENTATIONS = REGISTRY.names
available_implementations = REGISTRY.available_implementations
choose_implementation = REGISTRY.choose_implementation
