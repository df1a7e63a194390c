from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modbrick.errors import InputError
from modbrick.parallel import MeshConfig
from modbrick.planning.compiled.compilation import DoesNotFitError, compile_step, required_bytes
from modbrick.planning.plan import make_plan
from modbrick.planning.topology import find_topology
from modbrick.schema import to_json
from tests.modbrick.planning.small_run import small_run

ROOT = Path(__file__).resolve().parents[4]


# Compiles in half the time without experts.
@pytest.mark.parametrize("experts", [None, pytest.param(4, marks=pytest.mark.verify)])
def test_a_small_run_is_planned(experts):
    """The step compiles for chips that are not here, and what it needs and takes adds up."""
    stages = []
    run = small_run(mesh=MeshConfig(data=2, fsdp=2), layers=5, experts=experts)
    topology = find_topology("v5e:2x2")
    plan = make_plan(run, topology, progress=lambda stage, seconds: stages.append(stage))
    assert plan.fits
    assert "compiling" in stages
    assert plan.memory.optimizer == pytest.approx(2 * plan.memory.parameters, rel=1e-3)
    assert plan.memory.total < topology.generation.hbm_bytes
    assert plan.time is not None
    kinds = {(total.kind, total.axes) for total in plan.time.collectives}
    assert any("fsdp" in axes for _, axes in kinds), kinds
    # Weights are gathered in the loop over layers, at least once a layer in each pass.
    gathers = sum(t.executions for t in plan.time.collectives if "fsdp" in t.axes)
    assert gathers >= 2 * 5
    assert 0 < plan.time.utilisation <= plan.time.highest_utilisation < 1
    # Of most operations the compiler said how often they run; not so of sorts and scatters.
    assert 0 < plan.time.estimated < 0.6 * (plan.time.compute["dense"] + plan.time.hbm)
    assert json.loads(json.dumps(plan.to_mapping()))["mesh"]["fsdp"] == 2


@pytest.mark.verify
def test_compiling_does_not_grow_with_depth(monkeypatch):
    """Equal layers are one loop: the program of 24 is as long as that of 4."""
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    topology = find_topology("v5e:2x2")
    few, many = (compile_step(small_run(layers=layers), topology) for layers in (4, 24))
    assert len(many.text) < 1.1 * len(few.text)
    assert many.processor_seconds < 1.5 * few.processor_seconds


def test_open_choices_are_refused():
    with pytest.raises(InputError, match=r"execution\.attention is open"):
        compile_step(small_run(attention=None), find_topology("v5e:2x2"))


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("total memory required for HLO temporaries (100.00G) exceeds available HBM", 100 * 2**30),
        ("Ran out of memory in memory space hbm. Used 17.5M of 15.75G hbm.", int(17.5 * 2**20)),
        ("no figures", None),
    ],
)
def test_reads_what_would_be_needed(message, size):
    assert required_bytes(DoesNotFitError(message, 1.0, 1.0)) == size


@pytest.mark.verify
def test_planned_memory_is_what_a_run_takes(tmp_path):
    """On this CPU, where the truth can be had: within 3 %."""
    path = tmp_path / "run.json"
    path.write_text(to_json(small_run(layers=4, width=512, sequence_length=512)))
    script = ROOT / "tests/modbrick/planning/measure_step.py"
    output = subprocess.run(
        [sys.executable, str(script), str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    figures = json.loads(output.splitlines()[-1])
    planned = (
        figures["arguments"] + figures["outputs"] - figures["aliased"] + figures["temporaries"]
    )
    error = planned / figures["measured"] - 1
    print(f"planned {planned / 2**20:.0f} MiB, measured {figures['measured'] / 2**20:.0f} MiB")
    assert abs(error) < 0.03, f"{error:.1%}"
