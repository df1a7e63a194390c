"""Docstrings of presets: the plan of each, in the docstring of its file."""

from __future__ import annotations

import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modbrick.parallel import AXES, MeshConfig

_LINE = re.compile(r"^    v\w+:[\dx]+, .*\n", re.MULTILINE)


def planned_line(topology: str, mesh: MeshConfig, plan: Mapping[str, Any] | None) -> str:
    """Returns the line of a docstring for one topology.

    Args:
      topology: such as `v5p:4x4x4`.
      mesh: of the machine there.
      plan: as it is kept in JSON (`Plan.to_mapping`); None: there is none yet.
    """
    sizes = {axis: getattr(mesh, axis) for axis in AXES}
    axes = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
    if plan is None:
        figures = "not planned yet"
    else:
        used, limit = (plan["hbm"][name] / 2**30 for name in ("total", "limit"))
        figures = f"{used:.1f} of {limit:.1f} GiB" + (
            f", {plan['time']['step']:.2f} s a step" if "time" in plan else ": does not fit"
        )
    return f"    {topology}, {axes}: {figures}\n"


def write_plans(path: Path, meshes: Mapping[str, MeshConfig], plans: Mapping[str, Any]) -> None:
    """Brings the lines of a preset's docstring up to date.

    Args:
      path: of the preset.
      meshes: by topology.
      plans: what is kept of it, by topology.

    Raises:
      ValueError: the file does not have one such line for each machine.
    """
    text = path.read_text()
    found = list(_LINE.finditer(text))
    if len(found) != len(meshes):
        raise ValueError(f"{path} has {len(found)} lines of plans, but {len(meshes)} machines")
    lines = "".join(planned_line(name, mesh, plans.get(name)) for name, mesh in meshes.items())
    path.write_text(text[: found[0].start()] + lines + text[found[-1].end() :])


def write_presets(folder: Path, plans: Mapping[str, Mapping[str, Any]]) -> None:
    """Brings the docstrings of all planned presets up to date.

    Args:
      folder: of the presets.
      plans: by preset and topology.
    """
    for name, of_preset in plans.items():
        path = folder / f"{name}.py"
        machines = runpy.run_path(str(path))["MACHINES"]
        write_plans(path, {t: machine.mesh for t, machine in machines.items()}, of_preset)
