"""Updates of parameters: schedules, clipping, groups, AdamW and Muon, the non-finite guard."""

from modbrick.optimizer.config import (
    ConstantSchedule,
    CosineSchedule,
    GroupConfig,
    MuonConfig,
    OptimizerConfig,
    PowerConfig,
    PowerSchedule,
    Schedule,
    ScheduleConfig,
    WarmupStableDecaySchedule,
)
from modbrick.optimizer.optimizer import Optimizer, OptimizerMetrics, OptimizerState
from modbrick.optimizer.schedule import schedule

__all__ = [
    "ConstantSchedule",
    "CosineSchedule",
    "GroupConfig",
    "MuonConfig",
    "Optimizer",
    "OptimizerConfig",
    "OptimizerMetrics",
    "OptimizerState",
    "PowerConfig",
    "PowerSchedule",
    "Schedule",
    "ScheduleConfig",
    "WarmupStableDecaySchedule",
    "schedule",
]
