"""Bricks out of the run that trained them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from etils import epath

from modbrick.bricks.brick import Brick
from modbrick.bricks.table import BRICKS
from modbrick.checkpoints import describe, load_checkpoint, locate
from modbrick.data import TokenizerIdentity
from modbrick.errors import InputError
from modbrick.library.manifest import Base, Manifest, Provenance
from modbrick.schema import from_mapping, nearest


def brick_of_run(
    run: epath.PathLike,
    name: str | None = None,
    *,
    step: int | None = None,
    licence: str = "",
    tags: Sequence[str] = (),
    notes: str = "",
) -> tuple[Brick, Manifest]:
    """Reads a brick that a run has trained, and says what is known of it.

    Args:
      run: directory of the run.
      name: of the brick; None: the run has one.
      step: of the checkpoint; None: the newest.
      licence: under which it may be used.
      tags: words to find it by.
      notes: free text.

    Raises:
      InputError: there is no checkpoint; it holds no bricks, none of that name, or several and
        none is named.
    """
    path = locate(run, step)
    metadata = (description := describe(path)).metadata
    if not metadata.bricks:
        raise InputError(f"{run} holds no bricks, but a model: name a run that trained bricks")
    if name is None and len(metadata.bricks) > 1:
        raise InputError(
            f"{run} holds several bricks: choose with --name={'|'.join(metadata.bricks)}"
        )
    name = name or next(iter(metadata.bricks))
    if name not in metadata.bricks:
        raise InputError(f"{run} holds no brick {name!r}; {nearest(name, metadata.bricks)}")
    config = metadata.bricks[name]
    mine = [p for p in description.parameters if p.startswith(f"{BRICKS}.{name}.")]
    parameters, _ = load_checkpoint(path, paths=mine)
    brick = Brick.of_parameters(name, config, metadata.model, parameters)
    assert metadata.base is not None, "bricks have a base"
    tokenizer = metadata.tokenizer
    manifest = Manifest.of(
        name,
        config,
        metadata.model,
        base=Base(metadata.model, metadata.base.fingerprint),
        tokenizer=from_mapping(TokenizerIdentity, tokenizer, "tokenizer") if tokenizer else None,
        provenance=Provenance(
            description.step,
            {key: value for key, value in description.metrics.items() if math.isfinite(value)},
            metadata.run.get("data", {}),
            description.versions,
        ),
        licence=licence,
        tags=tuple(tags),
        notes=notes,
    )
    return brick, manifest
