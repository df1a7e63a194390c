"""Runs a program of this directory in a process of its own, on 8 simulated devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests import programs

ROOT = Path(__file__).resolve().parents[3]


def reports_of(program: str, *arguments: str) -> list[dict[str, Any]]:
    """Returns what it prints, a record a line."""
    run = programs.run(
        [Path(__file__).with_name(program), *arguments],
        environment={"JAX_NUM_CPU_DEVICES": "8"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]
