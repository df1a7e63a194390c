"""The implementations of softmax attention.

Those of other libraries are taken by name only: they round otherwise than "xla", and what a program
of today computes and is planned to cost does not change with the jax that is installed.
"""

from __future__ import annotations

from pallas_kernels.attention.shared.case import Case
from pallas_kernels.implementations import Implementation, Registry

REGISTRY = Registry[Case](
    {
        "reference": Implementation("pallas_kernels.attention.softmax.reference"),
        "xla": Implementation("pallas_kernels.attention.softmax.xla"),
        "splash": Implementation("pallas_kernels.attention.softmax.splash", "tpu", automatic=False),
        "cudnn": Implementation("pallas_kernels.attention.softmax.cudnn", "gpu", automatic=False),
    }
)
IMPLEMENTATIONS = REGISTRY.names
available_implementations = REGISTRY.available_implementations
choose_implementation = REGISTRY.choose_implementation
