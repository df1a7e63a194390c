"""Trees of arrays by the names of their leaves: flattening, comparing, checksums.

A checkpoint keeps every tree as named leaves, so that it can be read, checked and complained about
without the classes (optimizer states, for instance) that the tree was made of.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt, UInt32


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One stored array: shape, name of the dtype, and checksum of its values."""

    shape: tuple[int, ...]
    dtype: str
    checksum: int

    @property
    def bytes(self) -> int:
        """Size of the values in memory; keys of random generators count as their data."""
        words = 8 if self.dtype.startswith("key<") else jnp.dtype(self.dtype).itemsize
        return int(np.prod(self.shape, dtype=np.int64)) * words

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by dotted path, in its order; a lone leaf is called `value`.

    Raises:
      ValueError: two leaves with one name.
    """
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        if name in named:
            raise ValueError(f"two leaves of the tree are called {name!r}")
        named[name] = leaf
    return named


def as_array(name: str, leaf: Any) -> Array:
    """Returns `leaf` as an array of jax.

    Raises:
      ValueError: it holds values that jax would change (float64 without x64, for instance).
    """
    if isinstance(leaf, jax.Array):
        return leaf
    array = jnp.asarray(leaf)
    if isinstance(leaf, np.ndarray | np.generic) and array.dtype != leaf.dtype:
        raise ValueError(f"{name} is {leaf.dtype}, which jax keeps as {array.dtype} here")
    return array


def is_key(leaf: Any) -> bool:
    """Returns whether a leaf (or its abstract form) holds keys of a random generator."""
    return bool(jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def stored(leaf: Array) -> Array:
    """Returns a leaf as it is stored: keys as their data, everything else as it is."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def abstract(leaf: Any, default: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding of an array or of its abstract form."""
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding or default)


def mismatches(
    saved: Mapping[str, Leaf], wanted: Mapping[str, jax.ShapeDtypeStruct], prefix: str = ""
) -> list[str]:
    """Lists how stored leaves differ from wanted ones, a remark for each leaf by name."""
    remarks = [f"missing: {prefix}{name}" for name in wanted if name not in saved]
    remarks += [f"unexpected: {prefix}{name}" for name in saved if name not in wanted]
    for name, leaf in wanted.items():
        target = Leaf(tuple(leaf.shape), str(leaf.dtype), 0)
        if name in saved and str(saved[name]) != str(target):
            remarks.append(f"{prefix}{name}: saved {saved[name]}, wanted {target}")
    return remarks


def checksums(leaves: Mapping[str, Array]) -> dict[str, int]:
    """Returns the checksum of each leaf, computed where the leaf lies."""
    sums = {name: _checksum(stored(leaf)) for name, leaf in leaves.items()}
    return {name: int(value) for name, value in jax.device_get(sums).items()}


@dataclasses.dataclass(frozen=True)
class SliceSummary:
    """What a slice adds to its leaf's checksum, modulo 2³², and how many values are not finite."""

    checksum: int
    not_finite: int


def slice_summary(values: np.ndarray, starts: Sequence[int], shape: Sequence[int]) -> SliceSummary:
    """Summarises a slice; the checksums of slices that cover a leaf once add up to the leaf's.

    Args:
      values: of the slice, floating-point numbers of at most 32 bits.
      starts: where the slice begins along each axis.
      shape: of the whole leaf.
    """
    strides = [math.prod(shape[axis + 1 :]) % 2**32 for axis in range(len(shape))]
    first = sum(start * stride for start, stride in zip(starts, strides, strict=True)) % 2**32
    bits = values.view(f"u{values.dtype.itemsize}")
    infinity = int(np.array(np.inf, values.dtype).view(bits.dtype))
    arguments = (bits, np.array(strides, np.uint32), np.uint32(first), infinity)
    if values.nbytes <= _SMALL:
        checksum, not_finite = _slice_summary(np, *arguments)
    else:
        with jax.default_device(_host()):
            checksum, not_finite = jax.device_get(_COMPILED_SUMMARY(*arguments))
    return SliceSummary(int(checksum), int(not_finite))


_SMALL = 1 << 20
"""Bytes up to which compiling for another shape costs more than it saves."""


def _host() -> jax.Device | None:
    """Returns where values in the host's memory are best worked on; None: wherever jax does."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the processor out
        return None


def _slice_summary(
    xp: Any,
    bits: UInt[Array, "..."] | np.ndarray,
    strides: UInt32[Array, "axes"] | np.ndarray,
    first: UInt32[Array, ""] | np.uint32,
    infinity: int,
) -> tuple[UInt32[Array, ""], Int32[Array, ""]]:
    """Returns checksum and count; `xp` is `numpy` or `jax.numpy`."""
    index = xp.broadcast_to(first, bits.shape)
    for axis, size in enumerate(bits.shape):
        steps = xp.arange(size, dtype=xp.uint32) * strides[axis]
        index = index + steps.reshape((-1,) + (1,) * (bits.ndim - axis - 1))
    # Infinities and everything that is no number have all bits of the exponent set.
    return _sum_of_hashes(xp, bits, index), ((bits & infinity) == infinity).sum()


_COMPILED_SUMMARY = jax.jit(functools.partial(_slice_summary, jnp), static_argnames="infinity")


@jax.jit
def _checksum(x: Array) -> UInt32[Array, ""]:
    """Sums a hash of (bits, index) over the values, modulo 2³².

    The sum does not depend on the order of its terms, hence neither on sharding nor on the device;
    the hash (the finaliser of MurmurHash3, a bijection of 32 bits) finds any change of a single
    value for certain, others but for one in 2³².
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    if x.dtype.itemsize == 8:
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    else:
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(x, unsigned)
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return _sum_of_hashes(jnp, bits, index)


def _sum_of_hashes(
    xp: Any, bits: UInt[Array, "..."] | np.ndarray, index: UInt32[Array, "..."] | np.ndarray
) -> UInt32[Array, ""]:
    mixed = bits.astype(xp.uint32) ^ (index * xp.uint32(0x9E3779B1) + xp.uint32(1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * xp.uint32(factor)
    return xp.sum(mixed ^ (mixed >> 16), dtype=xp.uint32)
