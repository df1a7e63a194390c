"""Measures, in a process of its own, the memory that a compiled step takes on this CPU.

    python tests/modbrick/planning/measure_step.py FILE

FILE holds a run's config as JSON; the last line of output is what was measured and what the plan
says, in bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from modbrick.parallel import make_mesh
from modbrick.planning.compiled.worker import MEMORY
from modbrick.schema import from_json
from modbrick.training.program import train_program
from modbrick.training.run_config import RunConfig
from modbrick.training.tasks.pretraining import Pretraining


def memory(name: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at most since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def main(path: str) -> None:
    config = from_json(RunConfig, Path(path).read_text())
    mesh = make_mesh(config.mesh)
    program = train_program(config, Pretraining(config), mesh)
    with jax.set_mesh(mesh):
        compiled = program.step.lower(program.state, program.batch()).compile()  # type: ignore[attr-defined]
        before = memory("VmRSS")
        # Ones, not zeros: pages that nobody wrote take no memory.
        state, batch = jax.tree.map(
            lambda x: jax.device_put(jnp.ones(x.shape, x.dtype), x.sharding),
            (program.state, program.batch()),
        )
        jax.block_until_ready((state, batch))
        # The least of some steps: threads that wait for a busy machine hold more of their own.
        measured = []
        for _ in range(3):
            Path("/proc/self/clear_refs").write_text("5")
            state, report = compiled(state, batch)
            jax.block_until_ready((state, report))
            measured.append(memory("VmHWM") - before)
    planned = compiled.memory_analysis()
    figures = {name: getattr(planned, field) for name, field in MEMORY.items()}
    print(json.dumps({"measured": min(measured), **figures}))


if __name__ == "__main__":
    main(sys.argv[1])
