"""What a trace is for: the problem at hand and the device it is going to run on.

A trace does not know for certain where it will run. What is asked, in this order:
1. the mesh in force (`jax.set_mesh`, `shard_map`), whose abstract device says platform and kind, be
   it a mesh of real devices or of a topology that is only compiled for;
2. the default device (`jax.default_device`), real or of a topology;
3. the default backend.
So a program compiled ahead of time for a TPU on a CPU machine is traced for the TPU under
`jax.set_mesh(mesh_of_the_topology)`. Without, it is traced as for the CPU: right, not fastest.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
from jax import Array

Operation = Literal["grouped_matmul", "grouped_feed_forward"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of the op, as far as it is known statically.

    Attributes:
        operation: which of the two functions.
        input_dtype: of the inputs.
        weight_dtype: of the weights (of `up` for feed-forward).
        tokens: T.
        experts_per_token: K.
        experts: E.
        width: D, of the inputs.
        hidden: F, of the outputs of `grouped_matmul` and of the hidden layer of feed-forward.
        input_layout: of `grouped_matmul`; "tokens" for feed-forward.
        output_layout: of `grouped_matmul`; "tokens" for feed-forward.
        biased: whether there is a bias.
        gated: whether there are `gate_weights`.
        precision: of the products, resolved.
    """

    operation: Operation
    input_dtype: jax.numpy.dtype
    weight_dtype: jax.numpy.dtype
    tokens: int
    experts_per_token: int
    experts: int
    width: int
    hidden: int
    input_layout: str = "tokens"
    output_layout: str = "tokens"
    biased: bool = False
    gated: bool = False
    precision: jax.lax.Precision = jax.lax.Precision.DEFAULT


def _device() -> jax.Device | None:
    device = jax.config.jax_default_device
    return device if isinstance(device, jax.Device) else None


def platform_in_force() -> str:
    """The platform that a trace is for: "cpu", "gpu" or "tpu"."""
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    platform = abstract.platform if abstract is not None else None
    if platform is None:
        device = _device()
        named = jax.config.jax_default_device
        platform = device.platform if device else (named or jax.default_backend())
    return "gpu" if platform in ("cuda", "rocm") else str(platform)


def device_kind_in_force() -> str:
    """The kind of device that a trace is for, such as "TPU v5p"; "" where nothing says it."""
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None and abstract.device_kind:
        return str(abstract.device_kind)
    device = _device() or jax.devices()[0]
    return str(device.device_kind)


def partitioned_axes() -> str | None:
    """Why XLA may have to partition what is traced now, or None if it need not.

    Neither Mosaic nor Mosaic GPU kernels can be partitioned automatically: arrays that live on
    several devices need a `jax.shard_map` around the call.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        count = jax.device_count()
        if count == 1 or _device() is not None:
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


def case_of(
    operation: Operation,
    inputs: Array,
    weights: Array,
    shape: tuple[int, int, int],
    **settings: object,
) -> Case:
    """The case of a call with `weights` [E, D, F]; `shape` is (T, K, E)."""
    tokens, k, experts = shape
    return Case(
        operation,
        inputs.dtype,
        weights.dtype,
        tokens,
        k,
        experts,
        weights.shape[1],
        weights.shape[2],
        **settings,  # type: ignore[arg-type]
    )
