"""Run in a process of its own: a step compiled for v5e:2x2, and the memory that the compiler plans.

    python compiled_memory.py ACTIVATIONS:OPTIMIZER...     as device:device host:device

Prints for each choice of `activation_memory` and `optimizer_memory` a line of JSON: bytes on one
device and in the host's memory.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax

from modbrick.data import DataConfig
from modbrick.execution import ExecutionConfig
from modbrick.families import dense
from modbrick.optimizer import OptimizerConfig
from modbrick.parallel import MeshConfig, make_mesh
from modbrick.schema import from_mapping
from modbrick.training.program import train_program
from modbrick.training.run_config import RunConfig, TrainingConfig
from pallas_kernels.compile_report.compilation import tpu_devices

LAYERS, WIDTH, HIDDEN, ROWS, LENGTH, DEVICES = 6, 512, 4096, 16, 512, 4
MODEL = dense(
    vocabulary=512, width=WIDTH, layers=LAYERS, heads=4, feed_forward_width=HIDDEN, context=LENGTH
)
MATRICES = LAYERS * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN)
"""Values of the layers' matrices, which fsdp divides."""


def run_config(activations: str, optimizer: str) -> RunConfig:
    """A run on four devices, its parameters divided over all of them."""
    choices = {
        "rematerialisation": "full",
        "activation_memory": activations,
        "optimizer_memory": optimizer,
        "attention": "tpu",
    }
    return RunConfig(
        model=MODEL,
        data=DataConfig(path="", sequence_length=LENGTH, batch_size=ROWS),
        training=TrainingConfig(steps=10),
        optimizer=OptimizerConfig(),
        execution=from_mapping(ExecutionConfig, choices),
        mesh=MeshConfig(data=1, fsdp=DEVICES),
    )


def main() -> None:
    for choice in sys.argv[1:]:
        activations, optimizer = choice.split(":")
        run = run_config(activations, optimizer)
        mesh = make_mesh(run.mesh, tpu_devices("v5e:2x2"))
        program = train_program(run, mesh)
        step: Any = program.step
        with jax.set_mesh(mesh):
            memory = step.lower(program.state, program.batch()).compile().memory_analysis()
        fields = ("argument", "temp", "host_argument", "host_temp")
        record = {name: getattr(memory, f"{name}_size_in_bytes") for name in fields}
        print(json.dumps({"choice": choice, **record}), flush=True)


if __name__ == "__main__":
    main()
