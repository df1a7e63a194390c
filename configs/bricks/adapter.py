"""Serial bottleneck adapters behind attention and feed-forward of any model (arXiv 1902.00751).

    python scripts/train.py --config=configs/bricks/adapter.py --workdir=RUN \
        --config.training.initial_checkpoint=MODEL --config.data.path=DATA

Behind the feed-forward only (arXiv 2005.00247): --config.bricks.adapter.at=layer.*.feed_forward;
beside the sublayers (arXiv 2110.04366): --config.bricks.adapter.settings.placement=parallel.
"""

from modbrick.bricks import Adapter, BrickConfig
from modbrick.training.adaptation import adaptation
from modbrick.training.run_config import RunConfig


def get_config() -> RunConfig:
    """Returns the run's config."""
    sublayers = ("layer.*.attention", "layer.*.feed_forward")
    return adaptation({"adapter": BrickConfig(sublayers, Adapter(hidden=32))}, learning_rate=1e-3)
