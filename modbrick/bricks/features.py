"""Features that bricks take beside the tokens: which, and of what width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modbrick.bricks.config import BrickConfig
from modbrick.bricks.kinds.modality import Insertion
from modbrick.errors import InputError
from modbrick.schema import nearest


def takers(bricks: Mapping[str, BrickConfig]) -> dict[str, Insertion]:
    """Returns the forms of those bricks that take features, by name."""
    forms = {name: brick.settings.form for name, brick in bricks.items()}
    return {name: form for name, form in forms.items() if isinstance(form, Insertion)}


def refuse_blind(
    bricks: Mapping[str, BrickConfig], remedy: str = "call the model with brick_features"
) -> None:
    """Refuses bricks that take features where there are only texts: they would change nothing.

    Args:
      bricks: by name.
      remedy: what to do instead.

    Raises:
      InputError: a brick takes features.
    """
    for name, form in takers(bricks).items():
        raise InputError(
            f"bricks.{name} takes features ({form.features!r}), which texts do not have: {remedy}"
        )


def check_features(
    bricks: Mapping[str, BrickConfig], features: Mapping[str, Any], prefix: str = ""
) -> None:
    """Refuses features that are not those which bricks take.

    Args:
      bricks: by name.
      features: arrays `[N, P, W]` by the names that bricks have for them.
      prefix: of the names in messages.

    Raises:
      InputError: features that a brick takes are missing or of another width, or no brick takes
        them.
    """
    taking = takers(bricks)
    for brick, form in taking.items():
        name = prefix + form.features
        if form.features not in features:
            raise InputError(
                f"bricks.{brick} takes features: {name} of shape [N, P, {form.width}] are missing"
            )
        shape = list(features[form.features].shape)
        if len(shape) != 3 or shape[-1] != form.width:
            raise InputError(
                f"{name} have shape {shape}, bricks.{brick} takes [N, P, {form.width}]"
            )
    known = [form.features for form in taking.values()]
    for name in features:
        if name not in known:
            raise InputError(f"no brick takes features {prefix + name}; {nearest(name, known)}")
