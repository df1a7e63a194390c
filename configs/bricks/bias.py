"""Bias tuning of the attention projections and of both sublayers of any model (arXiv 2106.10199).

python scripts/train.py --config=configs/bricks/bias.py --workdir=RUN \
        --config.training.initial_checkpoint=MODEL --config.data.path=DATA
"""

from modbrick.bricks import Bias, BrickConfig
from modbrick.training.adaptation import adaptation
from modbrick.training.run_config import RunConfig

SITES = ("attention.query", "attention.key", "attention.value", "attention", "feed_forward")


def get_config() -> RunConfig:
    """Returns the run's config."""
    sites = tuple(f"layer.*.{name}" for name in SITES)
    return adaptation({"bias": BrickConfig(sites, Bias())}, learning_rate=1e-2)
