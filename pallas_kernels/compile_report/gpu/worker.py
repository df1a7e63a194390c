"""The process that compiles for an H100 and leaves what the assemblers say of each kernel.

Called by `report` as `python -m pallas_kernels.compile_report.gpu.worker FOLDER`, with what
to do in FOLDER/request.json. In a process of its own, because Mosaic GPU assembles a kernel that it
has seen before no second time.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pallas_kernels.compile_report.compilation import compile_for, h100_device
from pallas_kernels.compile_report.program import ProgramReference


def main(folder: Path) -> None:
    """Compiles the programs that FOLDER/request.json lists."""
    request = json.loads((folder / "request.json").read_text())
    for number, reference in enumerate(request["programs"]):
        target = folder / str(number)
        target.mkdir()
        os.environ["MOSAIC_GPU_DUMP_TO"] = str(target)
        try:
            result = _compile(ProgramReference(**reference))
        # Whatever the compiler or the kernel refuses is a line of the report.
        except Exception as error:  # noqa: BLE001
            result = {"error": f"{type(error).__name__}: {error}"}
        (target / "program.json").write_text(json.dumps(result))
        # The log of the compiler's passes is large and not read.
        for log in target.glob("*.mlir-passes.log"):
            log.unlink()
        print(f"done {number}", flush=True)


def _compile(reference: ProgramReference) -> dict[str, Any]:
    program = reference.build()
    start = time.perf_counter()
    compiled = compile_for(h100_device(), program.function, *program.arguments)
    memory: Any = compiled.memory_analysis()
    return {
        "compile_seconds": time.perf_counter() - start,
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
