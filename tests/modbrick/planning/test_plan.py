"""What a run needs, of a run that trains customized bricks."""

from __future__ import annotations

import dataclasses

from modbrick.bricks import BrickConfig, LoRA
from modbrick.decoder.functional import parameter_table
from modbrick.parallel import MeshConfig
from modbrick.planning.analytic import estimated_memory
from modbrick.planning.plan import abstract_program
from modbrick.planning.topology import find_topology
from tests.modbrick.planning.small_run import small_run


def test_a_frozen_model_has_no_gradients_and_no_moments() -> None:
    """The model beneath a LoRA is not opened: it need not be there."""
    topology, whole = find_topology("v5p:2x2x1", 1), small_run(mesh=MeshConfig(fsdp=4))
    lora = dataclasses.replace(
        whole,
        bricks={"lora": BrickConfig(("layer.*.attention.query",), LoRA(rank=2))},
        training=dataclasses.replace(
            whole.training, initial_checkpoint="nowhere", frozen_dtype="bfloat16"
        ),
    )
    before, after = (estimated_memory(abstract_program(c, topology)) for c in (whole, lora))
    model = 2 * sum(info.size for info in parameter_table(whole.model)) / topology.devices
    assert before.parameters > 2 * model
    assert model < after.parameters < 1.1 * model + 4 * after.gradients
    for part in ("gradients", "optimizer"):
        assert getattr(after, part) < getattr(before, part) / 20, part
