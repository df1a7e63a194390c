"""IA³ on keys, values and hidden layers of any model (arXiv 2205.05638).

python scripts/train.py --config=configs/bricks/ia3.py --workdir=RUN \
        --config.training.initial_checkpoint=MODEL --config.data.path=DATA
"""

from modbrick.bricks import IA3, BrickConfig
from modbrick.training.adaptation import adaptation
from modbrick.training.run_config import RunConfig


def get_config() -> RunConfig:
    """Returns the run's config."""
    sites = ("layer.*.attention.key", "layer.*.attention.value", "layer.*.feed_forward.hidden")
    return adaptation({"ia3": BrickConfig(sites, IA3())}, learning_rate=1e-2)
