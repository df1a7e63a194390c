"""Mixtral 8x7B: 32 layers of dense attention and 2 of 8 gated feed-forward experts.

46,702,792,704 parameters, 12,879,925,248 of them active for a token; 1 trillion tokens in 238,419
steps of 4,194,304.

Published (arXiv 2401.04088 and the model's config): the sizes, and a context of 32,768 tokens. How
it was trained is not: tokens, batch, rows of 4,096 (short rows first, as is usual), AdamW and its
learning rate, the schedule and the weight 0.01 of the balance loss are chosen here.

Laid out for these topologies; HBM of a chip and time of a step as `tools/plan_presets.py`
predicts them:

    v5p:4x4x4, data 2 x fsdp 32: 79.3 of 95.7 GiB, 16.94 s a step
    v5e:16x16, fsdp 64 x expert 4: 12.7 of 15.8 GiB, 17.27 s a step
    v6e:16x16, data 2 x fsdp 32 x expert 4: 28.4 of 31.2 GiB, 3.84 s a step

To train, on the first of them or on another:

    python scripts/train.py --config=configs/mixtral_8x7b.py --config.data.path=DATA --workdir=DIR
    python scripts/train.py --config=configs/mixtral_8x7b.py:v5e:16x16 ...
"""

from modbrick.config.families import mixtral
from modbrick.execution import ExecutionConfig
from modbrick.objective import ObjectiveConfig
from modbrick.parallel import MeshConfig
from modbrick.training.machines import Machine
from modbrick.training.presets import preset
from modbrick.training.run_config import RunConfig

MACHINES = {
    "v5p:4x4x4": Machine(MeshConfig(data=2, fsdp=32), ExecutionConfig(rematerialisation="full")),
    "v5e:16x16": Machine(
        MeshConfig(fsdp=64, expert=4), ExecutionConfig(rematerialisation="full"), microbatches=4
    ),
    "v6e:16x16": Machine(
        MeshConfig(data=2, fsdp=32, expert=4), ExecutionConfig(rematerialisation="full")
    ),
}


def get_config(topology: str = "v5p:4x4x4") -> RunConfig:
    """Returns the run's config, laid out for a topology."""
    return preset(
        topology,
        MACHINES,
        mixtral(
            vocabulary=32_000,
            width=4096,
            layers=32,
            heads=32,
            key_value_heads=8,
            feed_forward_width=14336,
            experts=8,
            top_k=2,
            context=32_768,
        ),
        tokens=1e12,
        batch_size=1024,
        sequence_length=4096,
        objective=ObjectiveConfig(switch=0.01),
    )
