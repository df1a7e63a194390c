"""Sparse deltas, half a percent of every layer's weights of any model (arXiv 2012.07463).

python scripts/train.py --config=configs/bricks/sparse.py --workdir=RUN \
        --config.training.initial_checkpoint=MODEL --config.data.path=DATA

Which entries are trained is drawn at random; `modbrick.bricks.sparse_difference` takes the largest
that another way of tuning has changed.
"""

from modbrick.bricks import BrickConfig, SparseDelta
from modbrick.training.adaptation import adaptation
from modbrick.training.run_config import RunConfig


def get_config() -> RunConfig:
    """Returns the run's config."""
    sites = ("layer.*.attention.*.weight", "layer.*.feed_forward.*.weight")
    return adaptation({"sparse": BrickConfig(sites, SparseDelta())}, learning_rate=1e-3)
