"""LoRA of rank 8 on the attention projections of any model (arXiv 2106.09685).

    python scripts/train.py --config=configs/bricks/lora.py --workdir=RUN \
        --config.training.initial_checkpoint=MODEL --config.data.path=DATA

Another rank: --config.bricks.lora.settings.rank=16; rank-stabilised: ...settings.scaling=root.
"""

from modbrick.bricks import BrickConfig, LoRA
from modbrick.training.adaptation import adaptation
from modbrick.training.run_config import RunConfig

ATTENTION = tuple(f"layer.*.attention.{name}" for name in ("query", "key", "value", "output"))


def get_config() -> RunConfig:
    """Returns the run's config."""
    return adaptation(
        {"lora": BrickConfig(ATTENTION, LoRA(rank=8, alpha=16.0))}, learning_rate=1e-3
    )
