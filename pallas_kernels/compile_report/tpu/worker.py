"""The process that compiles for one TPU generation: libtpu reads its flags when it loads.

Called by `report` as `python -m pallas_kernels.compile_report.tpu.worker FOLDER`, with what to
do in FOLDER/request.json. Of each program it leaves FOLDER/N/program.json with the compiler's
schedules beside it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from pallas_kernels.compile_report.compilation import compile_for, tpu_devices
from pallas_kernels.compile_report.program import ProgramReference
from pallas_kernels.compile_report.traffic import kernel_traffic


def main(folder: Path) -> None:
    """Compiles the programs that FOLDER/request.json lists."""
    request = json.loads((folder / "request.json").read_text())
    device = tpu_devices(request["topology"])[0]
    for number, reference in enumerate(request["programs"]):
        target = folder / str(number)
        target.mkdir()
        try:
            result = _compile(device, ProgramReference(**reference), target)
        # Whatever the compiler or the kernel refuses is a line of the report.
        except Exception as error:  # noqa: BLE001
            result = {"error": f"{type(error).__name__}: {error}"}
        for path in (folder / "dump").iterdir():
            path.rename(target / path.name)
        (target / "program.json").write_text(json.dumps(result))
        print(f"done {number}", flush=True)


def _compile(device: jax.Device, reference: ProgramReference, target: Path) -> dict[str, Any]:
    program = reference.build()
    start = time.perf_counter()
    compiled = compile_for(device, program.function, *program.arguments)
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    (target / "program.hlo").write_text(compiled.as_text() or "")
    kernels = kernel_traffic(program.function, *program.arguments, device=device)
    return {
        "kernels": [dataclasses.asdict(kernel) for kernel in kernels],
        "compile_seconds": seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
