"""MoLM-350M-4B, a ModuleFormer of 24 layers: 2 of 16 attention, 2 of 32 feed-forward experts.

4,142,526,464 parameters, 417,984,512 of them active for a token; 300 billion tokens in 95,367 steps
of 3,145,728.

Published (the model card and arXiv 2306.04640): sizes, tokens, learning rate, 3M tokens a batch.
Not published, chosen here: AdamW's betas, weight decay and clipping as usual for language models, a
warm-up of 2,000 steps and half a cosine down to a tenth, 0.01 as the weight of load balancing, rows
of 1,024 tokens (the released models see 512 and 512 before them).

Laid out for these topologies; HBM of a chip and time of a step as `tools/plan_presets.py`
predicts them:

    v5p:4x4x4, data 2 x fsdp 32: 27.5 of 95.7 GiB, 0.59 s a step
    v5e:16x16, data 4 x fsdp 64: 4.5 of 15.8 GiB, 0.69 s a step
    v6e:16x16, data 4 x fsdp 64: 8.0 of 31.2 GiB, 0.23 s a step

To train, on the first of them or on another:

    python scripts/train.py --config=configs/molm_350m_4b.py --config.data.path=DATA --workdir=DIR
    python scripts/train.py --config=configs/molm_350m_4b.py:v5e:16x16 ...
"""

from modbrick.config.families import moduleformer
from modbrick.execution import ExecutionConfig
from modbrick.objective import ObjectiveConfig
from modbrick.parallel import MeshConfig
from modbrick.training.machines import Machine
from modbrick.training.presets import preset
from modbrick.training.run_config import RunConfig

MACHINES = {
    "v5p:4x4x4": Machine(MeshConfig(data=2, fsdp=32), ExecutionConfig(rematerialisation="kernels")),
    "v5e:16x16": Machine(
        MeshConfig(data=4, fsdp=64), ExecutionConfig(rematerialisation="sublayers")
    ),
    "v6e:16x16": Machine(MeshConfig(data=4, fsdp=64), ExecutionConfig(rematerialisation="kernels")),
}


def get_config(topology: str = "v5p:4x4x4") -> RunConfig:
    """Returns the run's config, laid out for a topology."""
    return preset(
        topology,
        MACHINES,
        moduleformer(
            vocabulary=50_295,
            width=1024,
            layers=24,
            heads=1,
            attention_width=1024,
            feed_forward_width=2048,
            attention_experts=16,
            feed_forward_experts=32,
            top_k=2,
            context=1024,
        ),
        tokens=300e9,
        batch_size=3072,
        sequence_length=1024,
        objective=ObjectiveConfig(load_balancing=0.01),
    )
