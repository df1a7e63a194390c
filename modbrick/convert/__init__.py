"""Checkpoints of other formats: in and out, streaming, exact.

`open_checkpoint(source)` recognises the format and reads slices of parameters, `load(source)`
returns a model. `format.py` says how a format is described.
"""

from __future__ import annotations

from modbrick.convert.loading import load, read_parameters
from modbrick.convert.opening import OpenedSource, open_checkpoint

__all__ = ["OpenedSource", "load", "open_checkpoint", "read_parameters"]
