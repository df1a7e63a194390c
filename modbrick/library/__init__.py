"""Bricks in files and libraries: one brick is one file, which says what it fits.

Examples:
    >>> import jax
    >>> import modbrick
    >>> from modbrick.bricks import Brick, BrickConfig, LoRA, initial_bricks
    >>> from modbrick.library import Manifest, read_brick, write_brick
    >>> from modbrick.library.library import Library
from modbrick.library.manifest import model_sites_of
    >>> model = modbrick.load_model("run")
    >>> config = BrickConfig(("layer.*.attention.query",), LoRA(rank=2))
    >>> values = initial_bricks(model.config, {"new": config}, jax.random.key(0))
    >>> brick = Brick.of_parameters("new", config, model.config, values)
    >>> manifest = Manifest("new", config, model_sites_of(model.config, config))
    >>> write_brick("new.brick", brick, manifest)
    >>> sorted(read_brick("new.brick")[1].sites)
    ['layer.0.attention.query', 'layer.1.attention.query']
    >>> plugged = modbrick.load_model("run", bricks=["new.brick"])
"""

from modbrick.library.check import check
from modbrick.library.file import StoredBrick, open_brick, read_brick, write_brick
from modbrick.library.library import Library
from modbrick.library.manifest import Base, Manifest, Provenance
from modbrick.library.saving import brick_of_run

__all__ = [
    "Base",
    "Library",
    "Manifest",
    "Provenance",
    "StoredBrick",
    "brick_of_run",
    "check",
    "open_brick",
    "read_brick",
    "write_brick",
]
