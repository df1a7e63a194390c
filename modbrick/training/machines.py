"""Machines that a preset is made for: what of its run suits each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.parallel import MeshConfig


@dataclasses.dataclass(frozen=True)
class Machine:
    """Settings of a run that suit a machine and do not change what is computed.

    Attributes:
      mesh: of its devices.
      execution: how the model is run on them.
      microbatches: parts in which a batch is computed.
    """

    mesh: MeshConfig
    execution: ExecutionConfig = dataclasses.field(default_factory=ExecutionConfig)
    microbatches: int = 1


def machine_for(topology: str, machines: Mapping[str, Machine]) -> Machine:
    """Returns what suits a topology, such as `v5p:4x4x4`.

    Raises:
      InputError: there is none; names those that there are.
    """
    if topology not in machines:
        known = ", ".join(sorted(machines))
        raise InputError(f"this config names no machine of topology {topology!r}: it has {known}")
    return machines[topology]
