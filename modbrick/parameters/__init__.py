"""The parameters of a model: their table, their addresses, and which of them are trained."""

from __future__ import annotations

from modbrick.parameters.partition import Partition
from modbrick.parameters.slices import ParameterSlice
from modbrick.parameters.table import ParameterInfo, ParameterTable, Role
from modbrick.parameters.tree import Parameters, flatten, nest

__all__ = [
    "ParameterInfo",
    "ParameterSlice",
    "ParameterTable",
    "Parameters",
    "Partition",
    "Role",
    "flatten",
    "nest",
]
