"""Bricks in files and libraries: one brick is one file, which says what it fits.

Examples:
    >>> import jax
    >>> import modbrick
    >>> from modbrick.bricks import Brick, BrickConfig, LoRA, initial_bricks
    >>> from modbrick.library import Library, Manifest, write_brick
    >>> model = modbrick.load_model("run").config
    >>> config = BrickConfig(("layer.*.attention.query",), LoRA(rank=2))
    >>> values = initial_bricks(model, {"german": config}, jax.random.key(0))
    >>> brick = Brick.of_parameters("german", config, model, values)
    >>> manifest = Manifest.of("german", config, model, tags=("lang:de",))
    >>> write_brick("german.brick", brick, manifest)
    >>> plugged = modbrick.load_model("run", bricks=["german.brick"])
    >>> library = Library.create("library")
    >>> _ = library.add("german.brick")
    >>> [entry.name for entry in library.find(tag="lang:de")]
    ['german']
    >>> sorted(library["german"].values)[:2]
    ['layer.0.attention.query.down', 'layer.0.attention.query.up']
"""

from modbrick.library.adapters import export_adapter, import_adapter
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
    "export_adapter",
    "import_adapter",
    "open_brick",
    "read_brick",
    "write_brick",
]
