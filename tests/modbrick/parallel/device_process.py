"""Runs a program of this directory in a process of its own, on 8 simulated devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


def reports_of(program: str, *arguments: str) -> list[dict[str, Any]]:
    """Returns what it prints, a record a line."""
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(program)), *arguments],
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]
