"""Run in a process of its own: one step's loss and gradients on a mesh of 8, against one device.

    python equality.py DISPATCH[+few|+bricks|+weights|+memory] MESH[:WAY]...

such as `reference data=2,expert=4:gather`.

Prints for each mesh and each way of expert parallelism, or the one that is named, a line of JSON:
the relative errors of the loss, of each of its parts and of each gradient.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from modbrick.bricks import (
    IA3,
    Adapter,
    BrickConfig,
    DoRA,
    LoRA,
    NormTuning,
    Prefix,
    Prompt,
    initial_bricks,
)
from modbrick.bricks.config import NO_BRICKS
from modbrick.bricks.functional import plugged_decoder
from modbrick.config.families import moduleformer
from modbrick.decoder.functional import initial_parameters
from modbrick.execution import ExecutionConfig, ExpertParallelism
from modbrick.objective import ObjectiveConfig
from modbrick.parallel import MeshConfig, make_mesh, parameter_shardings
from modbrick.parallel.batch import batch_sharding
from modbrick.training.step import loss_function
from modbrick.training.tasks.pretraining import next_token_totals

ROWS, LENGTH, VOCABULARY = 16, 24, 48
OBJECTIVE = ObjectiveConfig(load_balancing=0.3, switch=0.2, router_z=0.1, concentration=0.05)
# Routers far from uniform: their mutual information would else be a difference of equals. Not
# farther: at a scale of 0.5 the rounding of one device alone is 1e-5 of the gradient of the keys.
CONFIG = dataclasses.replace(
    moduleformer(
        vocabulary=VOCABULARY,
        width=16,
        layers=2,
        heads=2,
        attention_width=8,
        feed_forward_width=16,
        attention_experts=8,
        feed_forward_experts=16,
        router_width=8,
        dtype="float32",
        expert_initialiser="normal",
    ),
    initial_scale=0.4,
)


BRICKS = {
    "de": BrickConfig(("layer.*.attention.query", "layer.*.feed_forward.up"), LoRA(rank=2)),
    "gain": BrickConfig(("layer.*.feed_forward.hidden", "embedding"), IA3()),
    "law": BrickConfig(("layer.*.feed_forward",), Adapter(hidden=4)),
}
# Outside of banks and within.
FEW = {
    "de": BrickConfig(("layer.*.attention.query",), LoRA(rank=2)),
    "gain": BrickConfig(("layer.*.feed_forward.hidden",), IA3()),
}
# Those that read weights, experts or norms.
WEIGHTS = {
    "each": BrickConfig(
        ("layer.*.attention.query", "layer.*.feed_forward.down"),
        LoRA(rank=2, pairs="expert"),
    ),
    "style": BrickConfig(("layer.*.attention.key",), DoRA(rank=2)),
    "norms": BrickConfig(("layer.*.attention_norm", "norm"), NormTuning()),
}
# What stands in front; for prompts all layers are compiled once more.
MEMORY = {
    "fore": BrickConfig(("layer.*.attention.memory",), Prefix(length=3)),
    "ask": BrickConfig(("prompt",), Prompt(length=5)),
    "beg": BrickConfig(("prompt",), Prompt(length=2)),
}


def batch() -> dict[str, np.ndarray]:
    """Packed rows, some with padding."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (ROWS, LENGTH + 1)).astype(np.int32)
    segments = np.sort(rng.integers(1, 4, (ROWS, LENGTH)), axis=1).astype(np.int32)
    segments[: ROWS // 2, -5:] = 0
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments,
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        "loss_mask": (segments != 0).astype(np.int32),
    }


def values(
    parameters: Any,
    data: Any,
    execution: ExecutionConfig,
    bricks: Mapping[str, BrickConfig],
) -> dict[str, np.ndarray]:
    """Loss, its parts, dropped choices and gradients of one step, by name."""

    def brick_totals(model: Any, batch: Any, random_keys: Any) -> Any:
        # Documents of a row use bricks of their own: the first none, the second two, the third one.
        last = len(bricks) - 1
        ids = jnp.asarray([[-1, -1], [-1, -1], [0, 1], [last, -1]])[batch["segment_ids"]]
        return next_token_totals(model, batch, random_keys, ids if bricks else None)

    loss = loss_function(brick_totals, CONFIG, execution, OBJECTIVE, bricks=bricks)
    # The compiler's effort would be most of the time.
    options = {"xla_backend_optimization_level": 0}
    function = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=options)
    (value, (parts, totals)), gradients = function(parameters, data, jnp.int32(0), None)
    dropped = sum(s.dropped.sum() for s in totals.router_statistics.values())
    named = {"loss": value, "dropped": dropped, **parts, **gradients}
    return {name: np.asarray(x, np.float64) for name, x in named.items()}


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of what is expected; not finite if any value is not."""
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30))


def on_mesh(
    sizes: str, parameters: Any, execution: ExecutionConfig, bricks: Mapping[str, BrickConfig]
) -> dict[str, np.ndarray]:
    """The same on a mesh of all devices."""
    axes = {name: int(size) for name, _, size in (x.partition("=") for x in sizes.split(","))}
    mesh = make_mesh(MeshConfig(**{"data": 1, **axes}))
    shardings = parameter_shardings(plugged_decoder(CONFIG, bricks).table, mesh)
    placed = {p: jax.device_put(x, shardings[p]) for p, x in parameters.items()}
    with jax.set_mesh(mesh):
        data = jax.device_put(batch(), batch_sharding(mesh))
        return values(placed, data, execution, bricks)


def main() -> None:
    parameters = initial_parameters(CONFIG, jax.random.key(1))
    dispatch, *meshes = sys.argv[1:]
    dispatch, _, kind = dispatch.partition("+")
    bricks = {"": NO_BRICKS, "few": FEW, "bricks": BRICKS, "weights": WEIGHTS, "memory": MEMORY}[
        kind
    ]
    random = np.random.default_rng(3)
    for path, value in initial_bricks(CONFIG, bricks, jax.random.key(2)).items():
        parameters[path] = value + random.normal(0.0, 0.1, value.shape).astype(np.float32)
    alone = values(parameters, batch(), ExecutionConfig(dispatch=dispatch), bricks)
    ways: tuple[ExpertParallelism, ...] = get_args(ExpertParallelism)
    for asked, way in itertools.product(meshes, ways):
        sizes, _, only = asked.partition(":")
        if only and way != only:
            continue
        if way == "exchange" and dispatch == "reference" and "expert" not in sizes:
            continue  # the same program as the other way; `make verify` compares it too
        execution = ExecutionConfig(dispatch=dispatch, expert_parallelism=way)
        together = on_mesh(sizes, parameters, execution, bricks)
        dropped = float(together.pop("dropped"))
        errors = {name: error(x, alone[name]) for name, x in together.items()}
        print(json.dumps({"mesh": sizes, "way": way, "dropped": dropped, "errors": errors}))


if __name__ == "__main__":
    main()
