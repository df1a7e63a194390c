"""What one config of a model computes otherwise than another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modbrick.config import ModelConfig
from modbrick.schema import differences, to_mapping

TRAINING_ONLY = (
    "context",
    "dtype",
    "router_statistics",
    "initial_scale",
    "expert_initialiser",
    "sample_top_k",
)
"""Fields that a run may choose for itself without making another model of the same weights."""


def changes(before: ModelConfig, after: ModelConfig) -> list[str]:
    """Returns what `after` computes otherwise, though shapes may agree, in a line each."""
    return differences(_computed(to_mapping(before)), _computed(to_mapping(after)))


def _computed(record: Any) -> Any:
    """Returns plain data without the fields that do not change what a model computes."""
    if isinstance(record, Mapping):
        return {k: _computed(v) for k, v in record.items() if k not in TRAINING_ONLY}
    return [_computed(v) for v in record] if isinstance(record, list) else record
