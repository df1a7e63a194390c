"""Checkpoints of other formats: in and out, streaming, exact.

`open_checkpoint(source)` recognises the format and reads slices of parameters, `load(source)`
returns a model, `import_checkpoint` and `export_checkpoint` convert on disk. `format.py` says how a
format is described.
"""

from __future__ import annotations

from modbrick.convert.exporting import Export, export_checkpoint, prepare_export
from modbrick.convert.importing import Imported, import_checkpoint, stored_bytes
from modbrick.convert.loading import load, read_parameters
from modbrick.convert.opening import OpenedSource, open_checkpoint
from modbrick.convert.registry import FORMATS, format_named

__all__ = [
    "FORMATS",
    "Export",
    "Imported",
    "OpenedSource",
    "export_checkpoint",
    "format_named",
    "import_checkpoint",
    "load",
    "open_checkpoint",
    "prepare_export",
    "read_parameters",
    "stored_bytes",
]
