"""Training that goes on with a checkpoint of the original ModuleFormer, in place."""

from pathlib import Path

from modbrick.convert import open_checkpoint
from modbrick.data import DataConfig
from modbrick.execution import ExecutionConfig
from modbrick.optimizer import OptimizerConfig
from modbrick.training.run_config import (
    EvaluationConfig,
    LoggingConfig,
    RunConfig,
    TrainingConfig,
)

SOURCE = Path(__file__).parents[1] / "fixtures/moduleformer/molm_like"
FROZEN = ("embedding", "layer.0.feed_forward.expert.1")


def get_config() -> RunConfig:
    return RunConfig(
        model=open_checkpoint(SOURCE).model.replace(dtype="float32"),
        data=DataConfig(path="", sequence_length=16, batch_size=2),
        training=TrainingConfig(steps=1, initial_checkpoint=str(SOURCE)),
        optimizer=OptimizerConfig(learning_rate=0.01, frozen=FROZEN),
        evaluation=EvaluationConfig(every=0),
        logging=LoggingConfig(tensorboard=False),
        # What compiles fastest.
        execution=ExecutionConfig(attention="reference", dispatch="reference"),
    )
