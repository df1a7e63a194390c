"""How parameters are updated: schedules, clipping, groups, AdamW and Muon, the non-finite guard."""

from modbrick.optimizer.config import (
    GroupConfig,
    MuonConfig,
    OptimizerConfig,
    PowerConfig,
    ScheduleConfig,
)
from modbrick.optimizer.optimizer import Optimizer, OptimizerMetrics, OptimizerState
from modbrick.optimizer.schedule import schedule

__all__ = [
    "GroupConfig",
    "MuonConfig",
    "Optimizer",
    "OptimizerConfig",
    "OptimizerMetrics",
    "OptimizerState",
    "PowerConfig",
    "ScheduleConfig",
    "schedule",
]
