"""The process that compiles a run's step; libtpu reads its settings when it loads.

Called by `compilation` as `python -m modbrick.planning.compiled.worker FOLDER`, with what to do in
FOLDER/request.json. It leaves FOLDER/result.json and, if the step compiled, FOLDER/program.hlo and,
for TPUs, the compiler's schedules in FOLDER/schedules.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from modbrick.errors import InputError
from modbrick.parallel import make_mesh
from modbrick.schema import from_mapping
from modbrick.training.program import train_program
from modbrick.training.run_config import RunConfig
from modbrick.training.tasks.pretraining import Pretraining

REQUEST, RESULT, PROGRAM = "request.json", "result.json", "program.hlo"
SCHEDULES = "schedules"

MEMORY = {
    "arguments": "argument_size_in_bytes",
    "outputs": "output_size_in_bytes",
    "aliased": "alias_size_in_bytes",
    "temporaries": "temp_size_in_bytes",
    "code": "generated_code_size_in_bytes",
    "host_temporaries": "host_temp_size_in_bytes",
    "peak": "peak_memory_in_bytes",
}


def main(folder: Path) -> None:
    """Compiles the step that FOLDER/request.json describes."""
    request = json.loads((folder / REQUEST).read_text())
    config = from_mapping(RunConfig, request["config"])
    start = time.perf_counter()
    try:
        mesh = make_mesh(config.mesh, _devices(request["topology"], config.mesh.slices))
        program = train_program(config, Pretraining(config), mesh)
        with jax.set_mesh(mesh):
            step: Any = program.step  # jitted, which its type does not say
            lowered = step.lower(program.state, program.batch())
        lowering, start = time.perf_counter() - start, time.perf_counter()
        print("lowered", flush=True)
        compiled = lowered.compile()
    except InputError as error:
        result: dict[str, Any] = {"input_error": str(error)}
    except jax.errors.JaxRuntimeError as error:
        # What does not fit, and what the compiler cannot do: the plan says so.
        result = {
            "compiler_error": str(error),
            "compile_seconds": time.perf_counter() - start,
            "processor_seconds": time.process_time(),
        }
    else:
        memory = compiled.memory_analysis()
        (folder / PROGRAM).write_text(compiled.as_text() or "")
        result = {
            "lowering_seconds": lowering,
            "compile_seconds": time.perf_counter() - start,
            "processor_seconds": time.process_time(),
            "memory": {name: getattr(memory, field) for name, field in MEMORY.items()},
            "coordinates": [_coordinates(device) for device in mesh.devices.flat],
        }
    (folder / RESULT).write_text(json.dumps(result))


def _devices(topology: str | None, slices: int) -> Sequence[jax.Device]:
    if topology is None:
        return jax.devices()
    several = {"num_slices": slices} if slices > 1 else {}
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **several
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"topology {topology!r} is unknown to libtpu: {error}") from error


def _coordinates(device: Any) -> list[int]:
    """Returns slice, then place in the torus; a CPU has no place."""
    coordinates = getattr(device, "coords", None)
    if coordinates is None:
        return []
    return [getattr(device, "slice_index", None) or 0, *coordinates]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
