"""Where and with what a benchmark ran."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from typing import Any

import jax

_PACKAGES = (
    "jax",
    "jaxlib",
    "libtpu",
    "jax-cuda13-plugin",
    "nvidia-cuda-nvcc",
    "tokamax",
    "torch",
)


def describe_environment() -> dict[str, Any]:
    """Device, versions of what matters to kernels, and the date."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
