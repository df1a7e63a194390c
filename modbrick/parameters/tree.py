"""Parameters as one flat mapping from path to array, and nested, as Flax and Orbax take them.

Everywhere in this library parameters are flat: `{"segments.0.feed_forward.up.weight": array}`. They
are nested where `nnx.merge` binds them to a module and where Orbax writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array

Parameters = Mapping[str, Array]
"""Arrays by path; anything that stands for arrays (shapes, shardings) is keyed alike."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested mapping as one mapping from dotted path to leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        flat |= flatten(value, path) if isinstance(value, Mapping) else {path: value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested mapping that `flatten` makes this one of."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
