"""A run small enough to be planned in a test."""

from __future__ import annotations

from typing import Any

from modbrick.config.families import moduleformer
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
    experts: int = 4,
    **execution: Any,
) -> RunConfig:
    model = moduleformer(
        vocabulary=512,
        width=width,
        layers=layers,
        heads=heads,
        attention_width=width,
        feed_forward_width=2 * width,
        attention_experts=experts,
        feed_forward_experts=experts,
        router_width=32,
        context=sequence_length,
        dtype="bfloat16",
    )
    named = {"attention": "xla", "dispatch": "xla", **execution}
    return RunConfig(
        model=model,
        data=DataConfig(path="", sequence_length=sequence_length, batch_size=batch_size),
        training=TrainingConfig(steps=100, microbatches=microbatches),
        optimizer=OptimizerConfig(),
        objective=ObjectiveConfig(load_balancing=0.01),
        execution=ExecutionConfig(**named),
        mesh=mesh or MeshConfig(),
    )
