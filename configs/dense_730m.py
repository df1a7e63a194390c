"""A dense decoder with as many parameters as MoLM-700M-8B has active: what its experts must beat.

732,348,416 parameters, all of them active for a token; 300 billion tokens in 95,367 steps of
3,145,728.

Batch, tokens and learning rate are those published for MoLM (arXiv 2306.04640); the baseline itself
is ours. Its layers have the depth, the width and the operations of MoLM's: attention of four
projections stands for the query and output of two experts, 4,096 of its 4,352 hidden units for two
feed-forward experts, and the rest for what the routers take. MoLM-700M-4B has as many active in
half the layers. The schedule is that of `molm_700m_8b`.

Laid out for these topologies; HBM of a chip and time of a step as `tools/plan_presets.py`
predicts them:

    v5p:4x4x4, data 8 x fsdp 8: 15.9 of 95.7 GiB, 1.00 s a step
    v5e:16x16, data 32 x fsdp 8: 5.3 of 15.8 GiB, 0.60 s a step
    v6e:16x16, data 32 x fsdp 8: 5.6 of 31.2 GiB, 0.26 s a step

To train, on the first of them or on another:

    python scripts/train.py --config=configs/dense_730m.py --config.data.path=DATA --workdir=DIR
    python scripts/train.py --config=configs/dense_730m.py:v5e:16x16 ...
"""

from modbrick.config.families import dense
from modbrick.execution import ExecutionConfig
from modbrick.parallel import MeshConfig
from modbrick.training.machines import Machine
from modbrick.training.presets import preset
from modbrick.training.run_config import RunConfig

MACHINES = {
    "v5p:4x4x4": Machine(
        MeshConfig(data=8, fsdp=8), ExecutionConfig(rematerialisation="sublayers")
    ),
    "v5e:16x16": Machine(
        MeshConfig(data=32, fsdp=8), ExecutionConfig(rematerialisation="sublayers")
    ),
    "v6e:16x16": Machine(
        MeshConfig(data=32, fsdp=8), ExecutionConfig(rematerialisation="sublayers")
    ),
}


def get_config(topology: str = "v5p:4x4x4") -> RunConfig:
    """Returns the run's config, laid out for a topology."""
    return preset(
        topology,
        MACHINES,
        dense(
            vocabulary=50_295,
            width=1024,
            layers=48,
            heads=8,
            feed_forward_width=4352,
            context=1024,
        ),
        tokens=300e9,
        batch_size=3072,
        sequence_length=1024,
    )
