"""Norm tuning of all norms of any model (arXiv 2312.11420).

python scripts/train.py --config=configs/bricks/norm.py --workdir=RUN \
        --config.training.initial_checkpoint=MODEL --config.data.path=DATA
"""

from modbrick.bricks import BrickConfig, NormTuning
from modbrick.training.adaptation import adaptation
from modbrick.training.run_config import RunConfig


def get_config() -> RunConfig:
    """Returns the run's config."""
    return adaptation({"norm": BrickConfig(("layer.*", "norm"), NormTuning())}, learning_rate=1e-2)
