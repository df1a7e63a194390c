"""JetMoE-8B: 24 layers with 2 of 8 attention experts and 2 of 8 gated feed-forward experts.

8,522,237,952 parameters, 2,331,445,248 of them active for a token; 1.25 trillion tokens in 298,023
steps of 4,194,304.

Published (arXiv 2404.07413 and the model card): sizes, tokens, learning rate, 4M tokens a batch,
rows of 4,096, weights 0.01 and 0.001 of the balance and z losses, a linear warm-up, a constant
phase of 1 trillion tokens and a decay over the last 250 billion. The decay is exponential there and
linear here. Chosen: a warm-up of 10 billion tokens, an end at a tenth, AdamW's betas, weight decay,
clipping.

Laid out for these topologies; HBM of a chip and time of a step as `tools/plan_presets.py`
predicts them:

    v5p:4x4x4, data 4 x fsdp 16: 40.0 of 95.7 GiB, 4.85 s a step
    v5e:16x16, data 4 x fsdp 64: 9.7 of 15.8 GiB, 3.07 s a step
    v6e:16x16, data 16 x fsdp 16: 19.8 of 31.2 GiB, 1.27 s a step

To train, on the first of them or on another:

    python scripts/train.py --config=configs/jetmoe_8b.py --config.data.path=DATA --workdir=DIR
    python scripts/train.py --config=configs/jetmoe_8b.py:v5e:16x16 ...
"""

from modbrick.config.families import jetmoe
from modbrick.execution import ExecutionConfig
from modbrick.objective import ObjectiveConfig
from modbrick.optimizer import WarmupStableDecaySchedule
from modbrick.parallel import MeshConfig
from modbrick.training.machines import Machine
from modbrick.training.presets import preset
from modbrick.training.run_config import RunConfig

MACHINES = {
    "v5p:4x4x4": Machine(
        MeshConfig(data=4, fsdp=16), ExecutionConfig(rematerialisation="sublayers")
    ),
    "v5e:16x16": Machine(MeshConfig(data=4, fsdp=64), ExecutionConfig(rematerialisation="full")),
    "v6e:16x16": Machine(
        MeshConfig(data=16, fsdp=16), ExecutionConfig(rematerialisation="sublayers")
    ),
}


def get_config(topology: str = "v5p:4x4x4") -> RunConfig:
    """Returns the run's config, laid out for a topology."""
    return preset(
        topology,
        MACHINES,
        jetmoe(
            vocabulary=32_000,
            width=2048,
            layers=24,
            heads=16,
            head_width=128,
            feed_forward_width=5632,
            experts=8,
            top_k=2,
            context=4096,
        ),
        tokens=1.25e12,
        batch_size=1024,
        sequence_length=4096,
        learning_rate=5e-4,
        schedule=WarmupStableDecaySchedule(warm_up_steps=2_384, decay_steps=59_605, end_factor=0.1),
        objective=ObjectiveConfig(switch=0.01, router_z=0.001),
    )
