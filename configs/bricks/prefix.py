"""A prefix of 16 keys and values in every layer of any model (arXiv 2101.00190).

    python scripts/train.py --config=configs/bricks/prefix.py --workdir=RUN \
        --config.training.initial_checkpoint=MODEL --config.data.path=DATA

Another length: --config.bricks.prefix.settings.length=64.
"""

from modbrick.bricks import BrickConfig, Prefix
from modbrick.training.adaptation import adaptation
from modbrick.training.run_config import RunConfig


def get_config() -> RunConfig:
    """Returns the run's config."""
    memory = ("layer.*.attention.memory",)
    return adaptation({"prefix": BrickConfig(memory, Prefix(length=16))}, learning_rate=1e-2)
