"""Which implementations there are, which can run a case on a platform, and which one runs.

An implementation is a module with two functions: `stickbreaking_attention(query, key, value,
visibility, *, scale, ...)`, and `unsupported(case, platform)`, which says why it cannot run. It is
imported when it is first asked for.
"""

from __future__ import annotations

import dataclasses
import importlib
from types import ModuleType

import jax

IMPLEMENTATIONS = ("reference", "xla", "tpu", "gpu")

# The best first. `reference` needs memory for all pairs and is never picked.
_PREFERENCES = {"tpu": ("tpu", "xla"), "cuda": ("gpu", "xla")}
# The platform that a named implementation is written for.
_NATIVE = {"tpu": "tpu", "gpu": "cuda"}


@dataclasses.dataclass(frozen=True)
class Case:
    """What of a call decides whether an implementation can run it.

    Attributes:
      query: `[B, Sq, H, d]`, as anything that has a shape and a dtype.
      key: `[B, Sk, G, d]`.
      value: `[B, Sk, G, dv]`.
      window: see the public op.
      segments: whether segment ids are given.
      padding: whether a key mask is given.
      tolerance: see the public op.
    """

    query: jax.ShapeDtypeStruct | jax.Array
    key: jax.ShapeDtypeStruct | jax.Array
    value: jax.ShapeDtypeStruct | jax.Array
    window: int | None = None
    segments: bool = False
    padding: bool = False
    tolerance: float = 0.0


def current_platform() -> str:
    """Returns the platform that a computation traced now is for: `cpu`, `tpu`, `cuda`, ...

    That of the mesh in use (`jax.set_mesh`), if it has one; else of the default device; else of the
    default backend.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is not None:
        return _canonical(device.platform)
    default = jax.config.jax_default_device
    if default is not None:
        return _canonical(default if isinstance(default, str) else default.platform)
    return _canonical(jax.default_backend())


def may_be_partitioned() -> bool:
    """Whether what is traced now may have to be divided over devices by XLA.

    It may where the mesh in use has axes of several devices that no `jax.shard_map` has taken, and
    where there are several devices, no mesh, and no default device.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        if mesh.abstract_device is not None or jax.config.jax_default_device is not None:
            return False
        return jax.device_count() > 1
    manual = set(mesh.manual_axes)
    return any(size > 1 for name, size in mesh.shape.items() if name not in manual)


def unsupported(implementation: str, case: Case, platform: str) -> str | None:
    """Returns why an implementation cannot run a case on a platform, or None if it can."""
    if implementation in ("reference", "xla"):
        return None
    return load_implementation(implementation).unsupported(case, _canonical(platform))


def selected_implementation(
    implementation: str | None = None, case: Case | None = None, platform: str | None = None
) -> str:
    """Returns the name of the implementation that runs for this choice.

    Args:
      implementation: a name of `IMPLEMENTATIONS`, or None for the best one that can run: a kernel
        where XLA need not divide it over devices (`may_be_partitioned`).
      case: what it shall run; None looks at names and the platform only.
      platform: what it shall run on; None is `current_platform()`. An implementation that is named
        is not bound to it: it may be traced here to be compiled for, or simulated as, another one.

    Raises:
      ValueError: the name is unknown, or that implementation cannot run; the message says why.
    """
    if implementation is None:
        platform = current_platform() if platform is None else _canonical(platform)
        # XLA cannot partition a kernel over devices: kernels run there inside `jax.shard_map`.
        names = ("xla",) if may_be_partitioned() else _PREFERENCES.get(platform, ("xla",))
        for name in names:
            if case is None or unsupported(name, case, platform) is None:
                return name
        raise AssertionError("the XLA path runs everywhere")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}")
    reason = None
    if case is not None:
        reason = unsupported(implementation, case, _NATIVE.get(implementation, "cpu"))
    if reason is not None:
        raise ValueError(
            f"implementation {implementation!r} cannot run: {reason}; "
            "use 'xla', or None to pick the best that can"
        )
    return implementation


def load_implementation(implementation: str) -> ModuleType:
    """Returns the module of an implementation of that name."""
    path = (
        implementation
        if implementation in ("reference", "xla")
        else f"{implementation}.implementation"
    )
    return importlib.import_module(f"pallas_kernels.attention.stickbreaking.{path}")


def _canonical(platform: str) -> str:
    return "cuda" if platform == "gpu" else platform
