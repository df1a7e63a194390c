"""One of several processes: what they exchange, and the rows that each of them holds.

    python in_processes.py HOST:PORT PROCESSES PROCESS

Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from modbrick.checkpoints.metadata import DamagedError
from modbrick.errors import InputError
from modbrick.parallel import MeshConfig, make_mesh
from modbrick.parallel.batch import local_rows, place_batch
from modbrick.parallel.processes import (
    ProcessConfig,
    check_agreement,
    everywhere,
    gather,
    is_first,
    say,
    start_processes,
)
from modbrick.training.evaluation import loss_sums
from modbrick.training.preemption import Votes

ROWS, LENGTH, DOMAINS = 16, 16, 3
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp x tensor": MeshConfig(fsdp=4, tensor=2),
    "data x sequence": MeshConfig(data=2, sequence=4),
    "sequence": MeshConfig(data=1, sequence=8),
    "expert x sequence": MeshConfig(data=2, expert=2, sequence=2),
    "tensor": MeshConfig(data=1, tensor=8),
}


def message(call: Callable[[], Any], error: type[Exception]) -> str | None:
    try:
        call()
    except error as raised:
        return str(raised)
    return None


def raises(text: str, error: type[Exception] = InputError) -> None:
    raise error(text)


def rows_on(config: MeshConfig) -> dict[str, Any]:
    """Places a batch by local rows; says which, and whether everything lies where it belongs."""
    mesh = make_mesh(config)
    random = np.random.default_rng(0)
    whole = random.integers(0, 1 << 30, (ROWS, LENGTH)).astype(np.int32)
    domains = random.integers(0, DOMAINS, (ROWS, LENGTH)).astype(np.int32)
    rows = local_rows(mesh, ROWS)
    placed = place_batch({"x": whole[list(rows)]}, mesh, ROWS)["x"]
    right = all(
        np.array_equal(shard.data, whole[shard.index]) for shard in placed.addressable_shards
    )
    losses = jax.jit(lambda x: x.astype(np.float32))(placed)
    sums = loss_sums(losses, domains[list(rows)], rows, DOMAINS)
    expected = np.bincount(
        domains.reshape(-1), weights=whole.astype(np.float32).reshape(-1), minlength=DOMAINS
    )
    error = np.linalg.norm(np.sum(gather(sums.tolist()), axis=0) - expected)
    return {"rows": rows, "right": right, "error": error / np.linalg.norm(expected)}


def main(coordinator: str, processes: str, process: str) -> None:
    start_processes(ProcessConfig(coordinator, int(processes), int(process)))
    index = jax.process_index()
    first = is_first()
    say("said once")
    votes = Votes(make_mesh(MeshConfig()))
    asked = [0, 0, 15 if index else 0, 0, 2]
    print(
        json.dumps(
            {
                "devices": jax.device_count(),
                "first": first,
                "gathered": gather({"process": index, "text": "é" * (index + 1)}),
                "agreement": message(
                    lambda: check_agreement({"a": 1, "b": {"c": [1, index]}}), InputError
                ),
                "alike": message(lambda: check_agreement({"a": [1, {"b": None}]}), InputError),
                "everywhere": message(
                    lambda: everywhere(lambda: raises("lost") if index else None), InputError
                ),
                "all alike": message(lambda: everywhere(lambda: raises("lost")), InputError),
                "damaged": message(
                    lambda: everywhere(
                        lambda: None if index else raises("bad", DamagedError), DamagedError
                    ),
                    DamagedError,
                ),
                "made": everywhere(lambda: index),
                "votes": [votes.exchange(number) for number in asked],
                "meshes": {name: rows_on(config) for name, config in MESHES.items()},
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
