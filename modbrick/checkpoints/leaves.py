"""Trees of arrays by the names of their leaves: flattening, comparing, checksums.

A checkpoint keeps every tree as named leaves, so that it can be read, checked and complained about
without the classes (optimizer states, for instance) that the tree was made of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32


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
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    mixed = bits ^ (index * jnp.uint32(0x9E3779B1) + jnp.uint32(1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)
