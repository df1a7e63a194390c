"""Run in a process of its own: train steps compiled for 8 devices, and what their text yields.

    python compiled_steps.py [--tpu] POLICY WAY MESH...     as sublayers gather fsdp=2,expert=4

Prints a line of JSON for each WAY (several with commas between) and mesh, and one for a program
that gathers a bank on purpose (way `replicated`): the kinds of collectives with how many values
each yields (`collectives`), and all numbers of values that any instruction yields (`arrays`).
With --tpu the programs are compiled ahead of time for 8 chips of v5e, with the kernels of TPUs. The
policy `all` keeps everything between the passes, gathered parameters included.

The sizes of the model are such that a number of values tells what an array is: only a bank of
experts has the prime of the width together with that of attention or of the feed-forward width.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Literal
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from modbrick.config import ModelConfig
from modbrick.config.families import moduleformer
from modbrick.data import DataConfig
from modbrick.execution import ExecutionConfig
from modbrick.layers import rematerialisation
from modbrick.objective import ObjectiveConfig
from modbrick.optimizer import OptimizerConfig
from modbrick.parallel import MeshConfig, make_mesh
from modbrick.schema import from_mapping
from modbrick.training.program import train_program
from modbrick.training.run_config import RunConfig, TrainingConfig
from modbrick.training.tasks.pretraining import Pretraining

LAYERS, EXPERTS = 3, 8


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the model: the smallest, or those that kernels for TPUs can run."""

    width: int
    attention: int
    hidden: int
    heads: int
    dtype: Literal["float32", "bfloat16"]

    @property
    def banks(self) -> tuple[int, int]:
        """Values of a whole bank of one layer, of attention and of the feed-forward."""
        return EXPERTS * self.width * self.attention, EXPERTS * self.width * self.hidden

    @property
    def model(self) -> ModelConfig:
        """The model."""
        return moduleformer(
            vocabulary=48,
            width=self.width,
            layers=LAYERS,
            heads=self.heads,
            attention_width=self.attention,
            feed_forward_width=self.hidden,
            attention_experts=EXPERTS,
            feed_forward_experts=EXPERTS,
            router_width=8,
            dtype=self.dtype,
        )


ON_CPU = Sizes(width=8 * 17, attention=8 * 19, hidden=8 * 23, heads=2, dtype="float32")
ON_TPU = Sizes(width=128 * 17, attention=128 * 19, hidden=128 * 23, heads=19, dtype="bfloat16")

_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.-]+ = (.+?) ([a-z][\w-]*)\(")
_ARRAY = re.compile(r"\b[a-z]+\d+\w*\[([\d,]*)\]")
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


def yields(text: str) -> Iterator[tuple[str, int]]:
    """Each instruction's name without `-start` or `-done`, and values of each array it yields."""
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            operation = re.sub(r"-(start|done)$", "", match[2])
            for dimensions in _ARRAY.findall(match[1]):
                yield operation, math.prod(int(size) for size in dimensions.split(",") if size)


def collectives(text: str) -> list[tuple[str, int]]:
    """Results of each collective."""
    return [found for found in yields(text) if found[0] in _COLLECTIVES]


def whole_banks(
    found: Iterable[tuple[str, int]], sizes: Sizes, layers: int = 1
) -> list[tuple[str, int]]:
    """Those that are a whole bank, of so many layers or a multiple of them, in whatever shape."""
    banks = [layers * bank for bank in sizes.banks]
    return [(kind, size) for kind, size in found if size and any(size % b == 0 for b in banks)]


def mesh_config(sizes: str) -> MeshConfig:
    """Reads `fsdp=2,expert=4`."""
    axes = {name: int(size) for name, _, size in (x.partition("=") for x in sizes.split(","))}
    return MeshConfig(**{"data": 1, **axes})


def step_text(config: MeshConfig, execution: ExecutionConfig, devices: list[Any] | None) -> str:
    """The compiled program of one step: forward, backward and update."""
    mesh = make_mesh(config, devices)
    sizes = ON_CPU if devices is None else ON_TPU
    run = RunConfig(
        model=sizes.model,
        data=DataConfig(path="", sequence_length=12 if devices is None else 128, batch_size=8),
        training=TrainingConfig(steps=10),
        optimizer=OptimizerConfig(),
        objective=ObjectiveConfig(load_balancing=0.01),
        execution=execution,
        mesh=config,
    )
    program = train_program(run, Pretraining(run), mesh)
    step: Any = program.step
    with jax.set_mesh(mesh):
        return compiled_text(step.lower(program.state, program.batch()), devices)


def replicated_text(config: MeshConfig, devices: list[Any] | None) -> str:
    """The program of a product with a bank that is made whole on every device."""
    mesh = make_mesh(config, devices)
    sizes = ON_CPU if devices is None else ON_TPU
    shape = (LAYERS, EXPERTS, sizes.width, sizes.attention)
    bank = jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "expert"))
    )

    def product(bank: jax.Array) -> jax.Array:
        whole = jax.lax.with_sharding_constraint(bank, NamedSharding(mesh, PartitionSpec()))
        return jnp.tanh(whole)

    return compiled_text(jax.jit(product).lower(bank), devices)


def compiled_text(lowered: Any, devices: list[Any] | None) -> str:
    # On CPU the compiler's effort would be most of the time.
    options = {"xla_backend_optimization_level": 0} if devices is None else {}
    return str(lowered.compile(compiler_options=options).as_text())


def main() -> None:
    arguments = [x for x in sys.argv[1:] if x != "--tpu"]
    policy, ways, *meshes = arguments
    devices = None
    if "--tpu" in sys.argv:
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4")
        devices = list(topology.devices)
    implementation = "xla" if devices is None else "tpu"
    everything = mock.patch.object(
        rematerialisation, "all_but_gathered", jax.checkpoint_policies.everything_saveable
    )
    if policy == "all":
        everything.start()
    for sizes in meshes:
        config = mesh_config(sizes)
        for way in ways.split(","):
            if way == "replicated":
                text = replicated_text(config, devices)
            else:
                choices = {
                    "rematerialisation": "none" if policy == "all" else policy,
                    "expert_parallelism": way,
                    "dispatch": implementation,
                    "attention": implementation,
                }
                execution = from_mapping(ExecutionConfig, choices)
                text = step_text(config, execution, devices)
            record = {
                "mesh": sizes,
                "way": way,
                "collectives": collectives(text),
                "arrays": sorted({size for _, size in yields(text)}),
            }
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
