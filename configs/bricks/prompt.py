"""A prompt of 16 trained embeddings in front of every document, for any model (arXiv 2104.08691).

    python scripts/train.py --config=configs/bricks/prompt.py --workdir=RUN \
        --config.training.initial_checkpoint=MODEL --config.data.path=DATA

Another length: --config.bricks.prompt.settings.length=64.
"""

from modbrick.bricks import BrickConfig, Prompt
from modbrick.training.adaptation import adaptation
from modbrick.training.run_config import RunConfig


def get_config() -> RunConfig:
    """Returns the run's config."""
    return adaptation({"prompt": BrickConfig(("prompt",), Prompt(length=16))}, learning_rate=3e-2)
