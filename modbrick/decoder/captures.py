"""Captures: intermediate values of a forward pass, by the names asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from modbrick.layers.context import Context

CAPTURES = frozenset({"hidden_states", "attention_weights", "routing", "sites"})

_DECODER_SITES = frozenset({"embedding", "features", "norm", "head"})


def recorded_names(capture: Iterable[str]) -> frozenset[str]:
    """Returns what contexts have to record for these names of captures and sites."""
    names = frozenset(capture)
    if "hidden_states" in names:  # the stream before the first layer, and after each
        names = names - {"hidden_states"} | {"embedding", "residual"}
    return names


def gather_captures(
    capture: Iterable[str], decoder: Context, segments: Mapping[str, Context]
) -> dict[str, Any]:
    """Returns captured values by name, see `Features`.

    Args:
      capture: names of captures and sites.
      decoder: the context of the decoder's own sites.
      segments: that of each segment, after it ran.

    Raises:
      ValueError: nothing in the model has one of these names.
    """
    captured: dict[str, Any] = {}
    for name in capture:
        found = {key: of.captured[name] for key, of in segments.items() if name in of.captured}
        if name == "hidden_states":
            after = [of.captured["residual"] for of in segments.values()]
            captured[name] = jnp.concatenate([decoder.captured["embedding"][None], *after])
        elif name == "routing":
            captured[name] = by_router(found)
        elif name == "sites":
            captured[name] = {"decoder": decoder.captured["sites"], **found}
        elif name in _DECODER_SITES and name in decoder.captured:
            captured[name] = decoder.captured[name]
        elif found:
            captured[name] = found
        else:
            raise ValueError(
                f"cannot capture {[name]}: name one of {', '.join(sorted(CAPTURES))}, or a site of "
                "the model (modbrick.decoder.sites.model_sites lists them)"
            )
    return captured


def by_router(segments: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns values by router, `segments.N.SUBLAYER`, from values by segment and sublayer."""
    return {
        f"segments.{name}.{sublayer}": value
        for name, sublayers in segments.items()
        for sublayer, value in sublayers.items()
    }
