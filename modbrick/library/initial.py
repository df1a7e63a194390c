"""Bricks of a run that begin with the values of files."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from etils import epath
from jaxtyping import Array

from modbrick.bricks.brick import Brick
from modbrick.bricks.config import BrickConfig
from modbrick.errors import InputError, listed
from modbrick.library.check import Model, check
from modbrick.library.file import open_brick
from modbrick.library.manifest import Manifest, attached_sites
from modbrick.schema import differences, to_mapping


def read_initial(
    files: Mapping[str, epath.PathLike],
    bricks: Mapping[str, BrickConfig],
    model: Model,
    *,
    allow_base: str = "same",
) -> dict[str, Array]:
    """Reads the values that bricks of a run begin with, as parameters of the model by path.

    A file's brick may have another name. It has the same settings, but for what is dropped in
    training, and the same sites. Values are in float32, whatever the file keeps them in.

    Args:
      files: of bricks, by their names in the run.
      bricks: of the run, by name.
      model: that they are trained on.
      allow_base: on which weights those of the files may have been trained, as for `check`.

    Raises:
      InputError: a file is not that of a brick, or does not fit the model or what the run says of
        the brick; every mismatch is named.
    """
    found: dict[str, Array] = {}
    for name, file in files.items():
        stored, config = open_brick(file), bricks[name]
        remarks = check(stored.manifest, model, allow_base=allow_base)
        remarks += _otherwise(config, stored.manifest, model)
        if remarks:
            raise InputError(
                f"{stored.path} is no start of bricks.{name} on {model.origin}: "
                f"{listed(remarks, '; ')}"
            )
        values = {
            address: value if np.issubdtype(value.dtype, np.integer) else value.astype(np.float32)
            for address, value in stored.read().values.items()
        }
        found |= Brick(config, values).parameters(name, model.config)
    return found


def _otherwise(config: BrickConfig, manifest: Manifest, model: Model) -> list[str]:
    """Lists where a file's brick is another than a run says."""
    ours, theirs = to_mapping(config.settings), to_mapping(manifest.brick.settings)
    for settings in (ours, theirs):
        settings.pop("dropout", None)
    remarks = [f"settings.{line}" for line in differences(theirs, ours)]
    wanted = attached_sites(model.config, config)
    remarks += [f"{address}: it has nothing for it" for address in wanted.keys() - manifest.sites]
    remarks += [
        f"{address}: the run does not attach it there" for address in manifest.sites.keys() - wanted
    ]
    return sorted(remarks)
