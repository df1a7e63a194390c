"""DoRA of rank 8 on the keys and values of any model (arXiv 2402.09353).

    python scripts/train.py --config=configs/bricks/dora.py --workdir=RUN \
        --config.training.initial_checkpoint=MODEL --config.data.path=DATA

Without experts also on the others: --config.bricks.dora.at=layer.*.attention.[kqvo]*. A bank of
experts takes a LoRA.
"""

from modbrick.bricks import BrickConfig, DoRA
from modbrick.training.adaptation import adaptation
from modbrick.training.run_config import RunConfig


def get_config() -> RunConfig:
    """Returns the run's config."""
    sites = ("layer.*.attention.key", "layer.*.attention.value")
    return adaptation({"dora": BrickConfig(sites, DoRA(rank=8, alpha=16.0))}, learning_rate=1e-3)
