"""Addresses: absolute, stable names of bricks, and patterns that cover them.

`layer.17.feed_forward.expert.5.up.weight`, `layer.3.attention.router`, `embedding`. A pattern is
an address, or the front of one; in it, `*`, `?` and `[abc]` match within a component, and `4-7`
matches the numbers 4 to 7. A template is an address with `{layer}` and `{expert}` for the numbers.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence

import numpy as np

LAYER, EXPERT = "{layer}", "{expert}"


def segment_template(path: str, axes: Sequence[str]) -> str:
    """Returns the template of a parameter of a segment's layers.

    Args:
      path: `segments.N.SUBLAYER.REST`.
      axes: of the stored parameter, `layer` first.
    """
    _, _, sublayer, *rest = path.split(".")
    bank = ["expert", EXPERT] if "expert" in axes else []
    return ".".join(["layer", LAYER, sublayer, *bank, *rest])


def fill(template: str, *, layer: int | None, expert: int | None) -> str:
    """Returns the template with the numbers put in; None stands as `*`."""
    numbers = {LAYER: layer, EXPERT: expert}
    return ".".join(
        ("*" if numbers[part] is None else str(numbers[part])) if part in numbers else part
        for part in template.split(".")
    )


def covered(pattern: str, template: str, numbers: Mapping[str, Sequence[int]]) -> np.ndarray:
    """Returns which members of a bank a pattern covers.

    Args:
      pattern: see above.
      template: of the bank's addresses.
      numbers: of its layers and experts, by `layer` and `expert`, in the order of the axes.

    Returns:
      bool, one axis for each entry of `numbers`.
    """
    mask = np.zeros([len(span) for span in numbers.values()], bool)
    wanted, parts = pattern.split("."), template.split(".")
    if len(wanted) > len(parts):
        return mask
    chosen = {name: np.ones(len(span), bool) for name, span in numbers.items()}
    for want, part in zip(wanted, parts, strict=False):
        name = part[1:-1]
        if part in (LAYER, EXPERT):
            chosen[name] = np.array([_matches(want, str(number)) for number in numbers[name]])
        elif not _matches(want, part):
            return mask
    mask[np.ix_(*chosen.values())] = True
    return mask


def _matches(want: str, have: str) -> bool:
    span = re.fullmatch(r"(\d+)-(\d+)", want)
    if span and have.isdigit():
        return int(span[1]) <= int(have) <= int(span[2])
    return fnmatch.fnmatchcase(have, want)
