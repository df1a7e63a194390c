"""Plans of all presets on the topologies they are laid out for, kept as JSON and as a table."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from modbrick.config.files import load_config
from modbrick.errors import InputError
from modbrick.planning.topology import Topology, find_topology
from modbrick.training.run_config import RunConfig

TOPOLOGIES = ("v5p:4x4x4", "v5e:16x16", "v6e:16x16")
PRESETS = (
    "molm_350m_4b",
    "molm_700m_4b",
    "molm_700m_8b",
    "jetmoe_8b",
    "mixtral_8x7b",
    "dense_420m",
    "dense_730m",
)
BEGIN, END = "<!-- plans: generated -->", "<!-- end of plans -->"


def preset(folder: Path, name: str, topology: str) -> RunConfig:
    """Returns a preset as it is laid out for a topology.

    Raises:
      InputError: there is no such preset, or it has no such machine.
    """
    return load_config(RunConfig, f"{folder / name}.py:{topology}")


def missing(plans: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, RunConfig, Topology]]:
    """Yields the presets and topologies of which there is no plan yet."""
    for topology in TOPOLOGIES:
        for name in PRESETS:
            if topology not in plans.get("plans", {}).get(name, {}):
                config = preset(folder, name, topology)
                yield name, config, find_topology(topology, config.mesh.slices)


def read_plans(path: Path) -> dict[str, Any]:
    """Returns the kept plans; none yet if the file does not exist."""
    return json.loads(path.read_text()) if path.exists() else {"plans": {}}


def keep_plan(path: Path, plans: dict[str, Any], name: str, plan: dict[str, Any]) -> None:
    """Adds a plan and writes all of them."""
    stamped = {
        "date": datetime.date.today().isoformat(),
        "jax": jax.__version__,
        "libtpu": importlib.metadata.version("libtpu"),
        **plan,
    }
    plans["plans"].setdefault(name, {})[plan["topology"]] = stamped
    path.write_text(json.dumps(plans, indent=1) + "\n")


def table(plans: Mapping[str, Any]) -> str:
    """Returns the kept plans as a Markdown table."""
    lines = [
        "| preset | topology | mesh | rematerialisation | HBM, GiB (of) | step, s | bound | "
        "collectives | utilisation | at most |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in PRESETS:
        for topology in TOPOLOGIES:
            plan = plans["plans"].get(name, {}).get(topology)
            if plan is not None:
                lines.append(_row(name, plan))
    return "\n".join(lines)


def _row(name: str, plan: Mapping[str, Any]) -> str:
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items() if size > 1)
    remat = plan["execution"]["rematerialisation"]
    if plan["microbatches"] > 1:
        remat += f", {plan['microbatches']} microbatches"
    hbm = plan["hbm"]
    used = f"{hbm['total'] / 2**30:.1f} ({hbm['limit'] / 2**30:.1f})"
    if "time" not in plan:
        figures = ["does not fit", "", "", "", ""]
    else:
        time = plan["time"]
        figures = [
            f"{time['step']:.2f}",
            time["bound"],
            f"{time['collective_share']:.0%}",
            f"{time['utilisation']:.0%}",
            f"{time['highest_utilisation']:.0%}",
        ]
    return f"| {' | '.join([name, plan['topology'], mesh, remat, used, *figures])} |"


def write_table(page: Path, plans: Mapping[str, Any]) -> None:
    """Puts the table between its two marks in a page.

    Raises:
      InputError: the page has no such marks.
    """
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise InputError(f"{page} needs the lines {BEGIN!r} and {END!r}, once each")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{table(plans)}\n\n{END}{after}")
