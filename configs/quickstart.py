"""A small ModuleFormer that learns to write Python in minutes on two CPU cores.

    make quickstart

or, on a data set with a vocabulary of up to 2,048 tokens:

    python scripts/train.py --config=configs/quickstart.py --config.data.path=DATA --workdir=DIR
"""

from ml_collections import ConfigDict

from modbrick.families import moduleformer
from modbrick.schema import to_mapping


def get_config() -> ConfigDict:
    """Returns the run's config."""
    model = moduleformer(
        vocabulary=2048,
        width=256,
        layers=4,
        heads=4,
        attention_width=256,
        feed_forward_width=512,
        attention_experts=8,
        feed_forward_experts=8,
        top_k=2,
        router_width=64,
        context=256,
        dtype="float32",
    )
    return ConfigDict(
        {
            "model": to_mapping(model),
            "data": {
                "path": "quickstart/data",
                "sequence_length": 256,
                "batch_size": 16,
                "seed": 0,
            },
            "training": {"steps": 400, "seed": 0},
            "optimizer": {
                "kind": "adamw",
                "learning_rate": 3e-3,
                "schedule": {"kind": "cosine", "warm_up_steps": 40, "end_factor": 0.05},
                "weight_decay": 0.1,
                "max_gradient_norm": 1.0,
            },
            "objective": {"load_balancing": 0.01},
            "evaluation": {"every": 100, "max_tokens": 40_000},
            "checkpoint": {"every": 100, "keep_latest": 2},
            "logging": {"every": 5},
        }
    )
