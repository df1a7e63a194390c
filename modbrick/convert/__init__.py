"""Checkpoints of other formats: in and out, streaming, exact.

`open_checkpoint(source)` recognises the format and reads slices of parameters; `import_checkpoint`
and `export_checkpoint` convert on disk. `format.py` says how a format is described. Models and
parameters are loaded by `modbrick.load_model` and `modbrick.load_parameters`.
"""

from __future__ import annotations

from modbrick.convert.exporting import Export, export_checkpoint, prepare_export
from modbrick.convert.importing import Imported, import_checkpoint, stored_bytes
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
    "open_checkpoint",
    "prepare_export",
    "stored_bytes",
]
