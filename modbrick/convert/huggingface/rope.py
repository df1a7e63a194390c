"""Rotary positions in a `config.json` of the transformers library.

Files of release 4 hold `rope_theta` and `rope_scaling`, files of release 5 hold `rope_parameters`;
both are read. What is written is the older form, which both releases read.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

from modbrick.config import (
    LinearScaling,
    Llama3Scaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)
from modbrick.errors import InputError, located


@dataclasses.dataclass(frozen=True)
class RopeFields:
    """Fields of a config that say what its positions are, under the library's names."""

    max_position_embeddings: int = 2048
    original_max_position_embeddings: float | None = None
    rope_theta: float | None = None
    rope_scaling: Mapping[str, Any] | None = None
    rope_parameters: Mapping[str, Any] | None = None
    partial_rotary_factor: float | None = None


def read_rope(fields: RopeFields, where: str, *, theta: float = 10_000.0) -> RopeConfig:
    """Returns the rotary positions, in whichever form they are written.

    Args:
      fields: of the config.
      where: begins every message.
      theta: the family's default base.

    Raises:
      InputError: a kind or an option of scaling that is not supported, or two forms that differ.
    """
    if fields.rope_scaling and fields.rope_parameters:
        older = dataclasses.replace(fields, rope_parameters=None)
        newer = dataclasses.replace(fields, rope_scaling=None)
        if read_rope(older, where, theta=theta) != read_rope(newer, where, theta=theta):
            raise InputError(f"{where}: rope_scaling and rope_parameters say different things")
        fields = newer
    scaling = dict(fields.rope_parameters or fields.rope_scaling or {})
    base = _base([fields.rope_theta, scaling.pop("rope_theta", None)], theta, where)
    kinds = [scaling.pop(key) for key in ("rope_type", "type") if scaling.get(key) is not None]
    kind = kinds[0] if kinds else "default"
    if kinds[1:] not in ([], [kind]):
        raise InputError(f"{where}: rope_type and type of the rope scaling differ: {kinds}")
    for share in (fields.partial_rotary_factor, scaling.pop("partial_rotary_factor", None)):
        if share not in (None, 1):
            raise InputError(
                f"{where}: partial_rotary_factor is {share}; heads are rotated whole here"
            )
    if not isinstance(kind, str) or kind not in _ROPE:
        known = ", ".join(_ROPE)
        raise InputError(f"{where}: rope scaling {kind!r} is not supported; it can be {known}")
    scaling.setdefault("truncate", True)  # where it is null, nothing is truncated
    options = {key: scaling.pop(key, None) for key in _ROPE[kind]}
    unknown = {
        key: value
        for key, value in scaling.items()
        if key not in _OPTIONS and value is not None and value is not False
    }
    if unknown:
        raise InputError(f"{where}: unknown options of {kind!r} rope scaling: {unknown}")
    for key, value in options.items():
        if key != "truncate" and value is not None:
            _check_number(value, f"{key} of the rope scaling", where)
    with located(where):
        return RopeConfig(base=base, scaling=_scaling(kind, options, fields, where))


def _base(values: list[Any], theta: float, where: str) -> float:
    """Returns the one base that is named, or the family's."""
    bases = [value for value in values if value is not None]
    for base in bases:
        _check_number(base, "rope_theta", where)
        if base < 1:
            raise InputError(f"{where}: rope_theta is {base}, below 1")
    if len(bases) == 2 and bases[0] != bases[1]:
        raise InputError(f"{where}: rope_theta has two values, {bases[0]} and {bases[1]}")
    return float(bases[0]) if bases else theta


def _check_number(value: Any, name: str, where: str) -> None:
    """Refuses what is no number, and numbers whose products could leave the range of floats."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: {name} is {value!r}, not a number")
    if not abs(value) <= 1e30:  # NaN too
        raise InputError(f"{where}: {name} is {value}, beyond any reasonable number")


_ROPE: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}
"""Options of each kind of scaling."""

_OPTIONS = {"finetuned", *itertools.chain.from_iterable(_ROPE.values())}
"""Those of any kind: the library reads none of another kind than it has."""


def _scaling(
    kind: str, options: dict[str, Any], fields: RopeFields, where: str
) -> RopeScaling | None:
    """Translates the options of a scaling."""
    if kind == "default":
        return None
    # In this order, as the library has it.
    original = fields.original_max_position_embeddings
    original = options.get("original_max_position_embeddings") if original is None else original
    original = fields.max_position_embeddings if original is None else original
    _check_number(original, "original_max_position_embeddings", where)
    if original < 1 or original != int(original):
        raise InputError(f"{where}: original_max_position_embeddings is {original}, no length")
    factor = options["factor"]
    if factor is None and kind == "yarn":
        factor = fields.max_position_embeddings / original
    needed = ("low_freq_factor", "high_freq_factor") if kind == "llama3" else ()
    for name in ("factor", *needed):
        if (factor if name == "factor" else options[name]) is None:
            raise InputError(f"{where}: {kind!r} rope scaling has no {name}")
    if kind == "linear":
        return LinearScaling(float(factor))
    if kind == "llama3":
        return Llama3Scaling(
            factor=float(factor),
            original_context=int(original),
            low_frequency_factor=float(options["low_freq_factor"]),
            high_frequency_factor=float(options["high_freq_factor"]),
        )
    if options["truncate"] not in (None, True, False):
        raise InputError(
            f"{where}: truncate of 'yarn' rope scaling is {options['truncate']!r}, neither true "
            "nor false"
        )
    attention_factor = options["attention_factor"]
    one, all_dim = options["mscale"], options["mscale_all_dim"]
    if min(one or 0, all_dim or 0) < 0:
        raise InputError(f"{where}: mscale and mscale_all_dim are {one} and {all_dim}: negative")
    if attention_factor is None and one and all_dim:
        growth = 0.1 * math.log(factor) if factor > 1 else 0.0
        attention_factor = (growth * one + 1.0) / (growth * all_dim + 1.0)
    return YarnScaling(
        factor=float(factor),
        original_context=int(original),
        beta_fast=float(options["beta_fast"] or 32.0),
        beta_slow=float(options["beta_slow"] or 1.0),
        attention_factor=None if attention_factor is None else float(attention_factor),
        truncated=bool(options["truncate"]),
    )


def write_rope(rope: RopeConfig | None) -> dict[str, Any]:
    """Returns `rope_theta` and `rope_scaling`; the inverse of `read_rope`."""
    if rope is None:
        return {}
    return {"rope_theta": rope.base, "rope_scaling": _written(rope.scaling)}


def _written(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    options: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if isinstance(scaling, LinearScaling):
        return options
    options["original_max_position_embeddings"] = scaling.original_context
    if isinstance(scaling, Llama3Scaling):
        options["low_freq_factor"] = scaling.low_frequency_factor
        options["high_freq_factor"] = scaling.high_frequency_factor
        return options
    options |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    if scaling.attention_factor is not None:
        options["attention_factor"] = scaling.attention_factor
    return options if scaling.truncated else options | {"truncate": False}
