"""Presets: what they share, and what each of them says itself."""

from __future__ import annotations

import pytest

from modbrick.config.families import dense
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.optimizer import ConstantSchedule
from modbrick.parallel import MeshConfig
from modbrick.training.machines import Machine
from modbrick.training.presets import preset

MODEL = dense(vocabulary=32, width=8, layers=2, heads=2, feed_forward_width=16)
MACHINES = {
    "v5e:2x2": Machine(MeshConfig(fsdp=4), ExecutionConfig(rematerialisation="full"), 2),
    "v6e:1x1": Machine(MeshConfig()),
}


def test_a_preset_is_laid_out_for_a_topology_and_counts_its_steps() -> None:
    runs = {
        name: preset(name, MACHINES, MODEL, tokens=1.26e6, batch_size=100, sequence_length=1000)
        for name in MACHINES
    }
    for name, run in runs.items():
        machine = MACHINES[name]
        assert (run.mesh, run.execution) == (machine.mesh, machine.execution)
        assert run.training.microbatches == machine.microbatches
        assert run.training.steps == 13, "the nearest number of whole batches"
        assert run.model == MODEL
    assert runs["v5e:2x2"].optimizer == runs["v6e:1x1"].optimizer
    with pytest.raises(InputError, match="no machine of topology 'v9'"):
        preset("v9", MACHINES, MODEL, tokens=1.0, batch_size=1, sequence_length=1)


def test_what_a_preset_says_itself_is_taken() -> None:
    schedule = ConstantSchedule(warm_up_steps=3)
    run = preset(
        "v6e:1x1",
        MACHINES,
        MODEL,
        tokens=64.0,
        batch_size=2,
        sequence_length=8,
        learning_rate=0.5,
        schedule=schedule,
    )
    assert (run.optimizer.learning_rate, run.optimizer.schedule) == (0.5, schedule)
    assert (run.data.batch_size, run.data.sequence_length, run.training.steps) == (2, 8, 4)
