"""Whether a brick fits a model: sites and widths, the base's weights, the tokenizer."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

from etils import epath

from modbrick.bricks.brick import Brick
from modbrick.bricks.config import BrickConfig
from modbrick.config import ModelConfig
from modbrick.data import TokenizerIdentity
from modbrick.decoder.sites import Site
from modbrick.errors import InputError, listed
from modbrick.library.file import StoredBrick, open_brick
from modbrick.library.manifest import Manifest, attached_sites
from modbrick.schema import convert, differences, to_mapping

_BASES = Literal["same", "any"]


class Model(Protocol):
    """Interface of a model on disk, such as `modbrick.models.StoredModel`."""

    @property
    def config(self) -> ModelConfig:
        """The model."""
        ...

    @property
    def origin(self) -> str:
        """Where it lies."""
        ...

    def fingerprint(self) -> str:
        """Returns the fingerprint of its weights."""
        ...

    def tokenizer_identity(self) -> TokenizerIdentity | None:
        """Returns what its tokenizer must be, if it says so."""
        ...


def check(manifest: Manifest, model: Model, *, allow_base: str = "same") -> list[str]:
    """Lists what of a brick does not fit a model; empty: it fits.

    Args:
      manifest: of the brick.
      model: into which it would be plugged.
      allow_base: on which weights it may have been trained: `same`, those of the model, or `any`
        of the same shapes.

    Raises:
      InputError: `allow_base` is neither of the two.
    """
    convert(_BASES, allow_base, "allow_base")
    remarks = _sites(manifest, model.config)
    base = manifest.base
    if base is not None and allow_base == "same" and base.fingerprint != model.fingerprint():
        changed = differences(to_mapping(base.model), to_mapping(model.config))
        models = f", of another model ({listed(changed[:3])})" if changed else ""
        remarks.append(
            f"it was trained on other weights than those of {model.origin}{models}: "
            "--allow_base=any plugs it in all the same"
        )
    theirs = model.tokenizer_identity()
    if manifest.tokenizer is not None and theirs is not None:
        try:
            manifest.tokenizer.require_same(theirs, "the brick", model.origin)
        except InputError as error:
            remarks.append(str(error))
    return remarks


def read_fitting(
    files: Iterable[epath.PathLike],
    model: Model,
    *,
    allow_base: str = "same",
    taken: Mapping[str, object] = types.MappingProxyType({}),
) -> dict[str, Brick]:
    """Reads bricks that are to be plugged into a model.

    Args:
      files: of the bricks.
      model: into which they are plugged.
      allow_base: on which weights they may have been trained, as for `check`.
      taken: where the bricks come from that it has already, by name.

    Returns:
      The bricks by the names that their manifests say, in the order of the files.

    Raises:
      InputError: a file is not that of a brick, a brick does not fit (every mismatch is named), or
        two of them have one name.
    """
    stored: dict[str, StoredBrick] = {}
    origins = dict(taken)
    for file in files:
        brick = open_brick(file)
        name = brick.manifest.name
        if name in origins:
            raise InputError(
                f"two bricks are named {name}, in {origins[name]} and in {brick.path}: leave one "
                "out, or rename it in a library"
            )
        if remarks := check(brick.manifest, model, allow_base=allow_base):
            raise InputError(f"{brick.path} does not fit {model.origin}: {listed(remarks, '; ')}")
        stored[name], origins[name] = brick, brick.path
    return {name: brick.read() for name, brick in stored.items()}


def _shapes(address: str, brick: BrickConfig, have: Site, want: Site) -> list[str]:
    """Lists arrays that are of other shapes at the model's site, of equal widths."""
    ours, theirs = (brick.settings.leaves(site) for site in (have, want))
    return [
        f"{address}.{leaf}: the brick has {list(info.shape)}, the model needs "
        f"{list(theirs[leaf].shape)}"
        for leaf, info in ours.items()
        if info.shape != theirs[leaf].shape
    ]


def _sites(manifest: Manifest, model: ModelConfig) -> list[str]:
    """Lists sites where the widths differ, and those that only one of both has."""
    try:
        theirs = attached_sites(model, manifest.brick)
    except InputError as error:
        return [str(error)]
    ours = manifest.sites
    remarks = [
        f"{address}: the model has no such site" for address in ours if address not in theirs
    ]
    remarks += [
        f"{address}: the brick has nothing for it" for address in theirs if address not in ours
    ]
    for address in ours:
        if address not in theirs:
            continue
        have, want = ours[address], theirs[address]
        if (have.input_width, have.output_width) != (want.input_width, want.output_width):
            remarks.append(
                f"{address}: the brick is for widths {have.input_width} and {have.output_width}, "
                f"the model has {want.input_width} and {want.output_width}"
            )
        elif (have.hook, have.shape) != (want.hook, want.shape):
            remarks.append(f"{address}: the brick is for {have}, the model has {want}")
        else:
            remarks += _shapes(address, manifest.brick, have, want)
    return remarks
