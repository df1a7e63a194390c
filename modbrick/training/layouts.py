"""How one run is laid out on several kinds of machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.parallel import MeshConfig


@dataclasses.dataclass(frozen=True)
class Layout:
    """What of a run suits a machine and does not change what is computed.

    Attributes:
      mesh: of its devices.
      execution: how the model is run on them.
      microbatches: parts in which a batch is computed.
    """

    mesh: MeshConfig
    execution: ExecutionConfig = dataclasses.field(default_factory=ExecutionConfig)
    microbatches: int = 1


def layout_for(topology: str, layouts: Mapping[str, Layout]) -> Layout:
    """Returns the layout for a topology, such as `v5p:4x4x4`.

    Raises:
      InputError: there is none; names those that there are.
    """
    if topology not in layouts:
        known = ", ".join(sorted(layouts))
        raise InputError(f"this config has no layout for topology {topology!r}: it has {known}")
    return layouts[topology]
