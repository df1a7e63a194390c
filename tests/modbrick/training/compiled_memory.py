"""Run in a process of its own: a step compiled for v5e:2x2, and the memory that the compiler plans.

    python compiled_memory.py OPTION:MEMORY...     as optimizer:host activations:device

Prints for each choice a line of JSON: bytes on one device and in the host's memory. `optimizer` is
a whole step under that `optimizer_memory`, `activations` the gradient of a scan over layers of one
product each under that `activation_memory`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from modbrick.config.families import dense
from modbrick.data import DataConfig
from modbrick.execution import ExecutionConfig, Memory
from modbrick.layers.rematerialisation import mark_layer_input, rematerialised
from modbrick.optimizer import OptimizerConfig
from modbrick.parallel import MeshConfig, make_mesh
from modbrick.schema import from_mapping
from modbrick.training.program import train_program
from modbrick.training.run_config import RunConfig, TrainingConfig
from modbrick.training.tasks.pretraining import Pretraining
from pallas_kernels.compile_report.compilation import tpu_devices

LAYERS, WIDTH, HIDDEN, ROWS, LENGTH, DEVICES = 6, 512, 4096, 16, 512, 4
MODEL = dense(
    vocabulary=512, width=WIDTH, layers=LAYERS, heads=4, feed_forward_width=HIDDEN, context=LENGTH
)
MATRICES = LAYERS * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN)
"""Values of the layers' matrices, which fsdp divides."""


def run_config(optimizer: str) -> RunConfig:
    """A run on four devices, its parameters divided over all of them."""
    choices = {
        "rematerialisation": "full",
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


def step(memory: str, devices: Sequence[jax.Device]) -> Any:
    """Lowers a whole step."""
    run = run_config(memory)
    mesh = make_mesh(run.mesh, devices)
    program = train_program(run, Pretraining(run), mesh)
    compiled: Any = program.step
    with jax.set_mesh(mesh):
        return compiled.lower(program.state, program.batch())


def layers(memory: Memory, devices: Sequence[jax.Device]) -> Any:
    """Lowers the gradient of a scan over layers."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=DEVICES), devices)

    def layer(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(mark_layer_input(x) @ weight), None

    def loss(weights: jax.Array, x: jax.Array) -> jax.Array:
        y, _ = jax.lax.scan(rematerialised(layer, "full", memory), x, weights)
        return y.astype(jnp.float32).sum()

    def abstract(shape: tuple[int, ...], *axes: str | None) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    weights = abstract((LAYERS, WIDTH, WIDTH), None, "fsdp")
    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss)).lower(weights, abstract((ROWS * LENGTH, WIDTH), "fsdp"))


def main() -> None:
    for choice in sys.argv[1:]:
        option, memory = choice.split(":")
        lower: Any = {"optimizer": step, "activations": layers}[option]
        planned = lower(memory, tpu_devices("v5e:2x2")).compile().memory_analysis()
        fields = ("argument", "temp", "host_argument", "host_temp")
        record = {name: getattr(planned, f"{name}_size_in_bytes") for name in fields}
        print(json.dumps({"choice": choice, **record}), flush=True)


if __name__ == "__main__":
    main()
