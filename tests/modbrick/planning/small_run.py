"""A run small enough to be planned in a test."""

from __future__ import annotations

from typing import Any

from modbrick.config.families import dense, moduleformer
from modbrick.data import DataConfig
from modbrick.execution import ExecutionConfig
from modbrick.objective import ObjectiveConfig
from modbrick.optimizer import OptimizerConfig
from modbrick.parallel import MeshConfig
from modbrick.training.run_config import RunConfig, TrainingConfig


def small_run(
    *,
    mesh: MeshConfig | None = None,
    layers: int = 3,
    width: int = 128,
    batch_size: int = 8,
    sequence_length: int = 128,
    microbatches: int = 1,
    heads: int = 2,
    experts: int | None = 4,
    **execution: Any,
) -> RunConfig:
    common: Any = {
        "vocabulary": 512,
        "width": width,
        "layers": layers,
        "heads": heads,
        "feed_forward_width": 2 * width,
        "context": sequence_length,
        "dtype": "bfloat16",
    }
    if experts is None:
        model = dense(**common)
    else:
        model = moduleformer(
            **common,
            attention_width=width,
            attention_experts=experts,
            feed_forward_experts=experts,
            router_width=32,
        )
    named = {"attention": "xla", "dispatch": "xla", **execution}
    return RunConfig(
        model=model,
        data=DataConfig(path="", sequence_length=sequence_length, batch_size=batch_size),
        training=TrainingConfig(steps=100, microbatches=microbatches),
        optimizer=OptimizerConfig(),
        objective=ObjectiveConfig(load_balancing=0.01 if experts else 0.0),
        execution=ExecutionConfig(**named),
        mesh=mesh or MeshConfig(),
    )
