"""The smallest ModuleFormer that trains: for tests of scripts."""

from ml_collections import ConfigDict

from modbrick.families import moduleformer
from modbrick.schema import to_mapping


def get_config() -> ConfigDict:
    model = moduleformer(
        vocabulary=257,
        width=16,
        layers=2,
        heads=2,
        attention_width=16,
        feed_forward_width=16,
        attention_experts=4,
        feed_forward_experts=4,
        router_width=8,
        sample_top_k=1,
        context=32,
        dtype="float32",
    )
    return ConfigDict(
        {
            "model": to_mapping(model),
            "data": {"path": "", "sequence_length": 32, "batch_size": 4},
            "training": {"steps": 12},
            "optimizer": {"learning_rate": 0.01, "schedule": {"warm_up_steps": 2}},
            "objective": {"load_balancing": 0.01},
            "evaluation": {"every": 6, "max_tokens": 500},
            "checkpoint": {"every": 3, "keep_latest": 2},
            "logging": {"every": 2, "tensorboard": False},
        }
    )
