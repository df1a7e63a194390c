"""Target of a trace: the platform, the kind of device, and whether XLA divides the arrays.

A trace does not know for certain where it will run. What is asked, in this order:
1. the mesh in force (`jax.set_mesh`, `shard_map`), whose abstract device says platform and kind, be
   it a mesh of real devices or of a topology that is only compiled for;
2. the default device (`jax.default_device`), real or of a topology;
3. the default backend.
So a program compiled ahead of time for a TPU on a CPU machine is traced for the TPU under
`jax.set_mesh(mesh_of_the_topology)`. Without, it is traced as for the CPU: right, not fastest.
"""

from __future__ import annotations

import jax

_HOPPER = ("H100", "H200", "H800", "H20", "GH200")


def canonical_platform(platform: str) -> str:
    """Names a platform "cpu", "gpu" (jax: "cuda" and "rocm" too) or "tpu"."""
    return "gpu" if platform in ("cuda", "rocm") else platform


def _abstract_device() -> jax.sharding.AbstractDevice | None:
    return jax.sharding.get_abstract_mesh().abstract_device


def platform_in_force() -> str:
    """The platform that a trace is for: "cpu", "gpu" or "tpu"."""
    abstract, default = _abstract_device(), jax.config.jax_default_device
    if abstract is not None and abstract.platform is not None:
        return canonical_platform(abstract.platform)
    if default is not None:
        return canonical_platform(default if isinstance(default, str) else default.platform)
    return canonical_platform(jax.default_backend())


def device_kind_in_force() -> str:
    """The kind of device that a trace is for, such as "TPU v5p"."""
    abstract, default = _abstract_device(), jax.config.jax_default_device
    if abstract is not None and abstract.device_kind:
        return str(abstract.device_kind)
    if default is not None and not isinstance(default, str):
        return str(default.device_kind)
    return str(jax.devices(default)[0].device_kind)


def no_hopper_gpu() -> str | None:
    """Says which GPU a trace is for if it is none of the Hopper generation; None if it may be."""
    kind = device_kind_in_force() if platform_in_force() == "gpu" else None
    if kind is None or any(name in kind for name in _HOPPER):
        return None
    return f"wgmma instructions need a Hopper GPU (compute capability 9.0), and this is {kind!r}"


def partitioned_axes() -> str | None:
    """Says why XLA may have to divide arrays of what is traced now; None if it need not.

    Neither Mosaic nor Mosaic GPU kernels can be partitioned automatically: arrays that live on
    several devices need a `jax.shard_map` around the call.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        count = jax.device_count()
        alone = mesh.abstract_device is not None or jax.config.jax_default_device is not None
        if count == 1 or alone:
            return None
        return (
            f"there are {count} devices and no mesh is in force, so arrays may be sharded; call it "
            "inside jax.shard_map, or name the implementation for arrays on one device"
        )
    manual = set(mesh.manual_axes)
    automatic = [
        f"{name}={size}" for name, size in mesh.shape.items() if name not in manual and size > 1
    ]
    if not automatic:
        return None
    return (
        f"arrays may be sharded over the mesh axes {', '.join(automatic)}, and a kernel is not "
        "partitioned automatically; call it inside jax.shard_map"
    )
