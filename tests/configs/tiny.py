"""The smallest ModuleFormer that trains: for tests of scripts."""

from modbrick.checkpoints import CheckpointConfig
from modbrick.config.families import moduleformer
from modbrick.data import DataConfig
from modbrick.objective import ObjectiveConfig
from modbrick.optimizer import CosineSchedule, OptimizerConfig
from modbrick.training.run_config import (
    EvaluationConfig,
    LoggingConfig,
    RunConfig,
    TrainingConfig,
)


def get_config() -> RunConfig:
    return RunConfig(
        model=moduleformer(
            vocabulary=257,
            width=16,
            layers=2,
            heads=2,
            attention_width=16,
            feed_forward_width=16,
            attention_experts=4,
            feed_forward_experts=4,
            router_width=8,
            sample_top_k=1,
            context=32,
            dtype="float32",
        ),
        data=DataConfig(path="", sequence_length=32, batch_size=4),
        training=TrainingConfig(steps=12),
        optimizer=OptimizerConfig(learning_rate=0.01, schedule=CosineSchedule(warm_up_steps=2)),
        objective=ObjectiveConfig(load_balancing=0.01),
        evaluation=EvaluationConfig(every=6, max_tokens=500),
        checkpoint=CheckpointConfig(every=3),
        logging=LoggingConfig(every=2, tensorboard=False),
    )
