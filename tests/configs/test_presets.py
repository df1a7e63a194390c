"""Presets: what their docstrings claim, and that they fit the machines they are laid out for."""

from __future__ import annotations

import functools
import importlib
import json
import math
import re
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest
from jax.sharding import AbstractMesh

from modbrick.analysis.shardings import describe_shardings
from modbrick.analysis.summary import ModelSummary, summarise
from modbrick.config import ModelConfig
from modbrick.config.files import load_config
from modbrick.errors import InputError
from modbrick.parallel import AXES
from modbrick.parallel.batch import check_batch
from modbrick.training.run_config import RunConfig
from tools.docstrings import planned_line

PRESETS = (
    "molm_350m_4b",
    "molm_700m_4b",
    "molm_700m_8b",
    "dense_420m",
    "dense_730m",
    "jetmoe_8b",
    "mixtral_8x7b",
)
TOPOLOGIES = ("v5p:4x4x4", "v5e:16x16", "v6e:16x16")
CONFIGS = Path(__file__).parents[2] / "configs"
PLANS = Path(__file__).parents[2] / "docs/figures/plans.json"
UNITS = {"billion": 1e9, "trillion": 1e12}


def preset(name: str) -> ModuleType:
    return importlib.import_module(f"configs.{name}")


def run_of(name: str, *topology: str) -> RunConfig:
    run: RunConfig = preset(name).get_config(*topology)
    return run


@functools.cache
def summary_of(model: ModelConfig) -> ModelSummary:
    return summarise(model)


def text_of(name: str) -> str:
    return " ".join((preset(name).__doc__ or "").split())


@pytest.mark.parametrize("name", PRESETS)
def test_the_docstring_counts_parameters_as_the_summary_does(name: str) -> None:
    summary = summary_of(run_of(name).model)
    found = re.search(r"([\d,]+) parameters, (all|[\d,]+) of them active", text_of(name))
    assert found is not None
    assert found[1] == f"{summary.total:,}"
    assert found[2] == ("all" if summary.active == summary.total else f"{summary.active:,}")


@pytest.mark.parametrize("name", PRESETS)
def test_the_docstring_counts_tokens_as_the_run_sees_them(name: str) -> None:
    run = run_of(name)
    a_step = run.data.batch_size * run.data.sequence_length
    found = re.search(r"([\d.]+) (\w+) tokens in ([\d,]+) steps of ([\d,]+)", text_of(name))
    assert found is not None
    assert (found[3], found[4]) == (f"{run.training.steps:,}", f"{a_step:,}")
    tokens = float(found[1]) * UNITS[found[2]]
    assert abs(run.training.steps * a_step - tokens) <= a_step


@pytest.mark.parametrize("name", PRESETS)
def test_the_docstring_says_of_each_machine_what_was_planned(name: str) -> None:
    plans = json.loads(PLANS.read_text())["plans"].get(name, {}) if PLANS.exists() else {}
    machines = preset(name).MACHINES
    assert tuple(machines) == TOPOLOGIES
    text = preset(name).__doc__ or ""
    for topology, machine in machines.items():
        # Figures are those that are kept, or there are none; `write_presets` brings them in.
        lines = {planned_line(topology, machine.mesh, p) for p in (plans.get(topology), None)}
        assert [line in text for line in lines].count(True) == 1
    for topology, plan in plans.items():
        run = run_of(name, topology)
        devices = math.prod(plan["mesh"].values())
        assert plan["mesh"] == run.mesh.sizes(devices), "it is the machine that was planned"
        assert plan["microbatches"] == run.training.microbatches
        assert plan["execution"]["rematerialisation"] == run.execution.rematerialisation


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("name", PRESETS)
def test_a_machine_fits_model_and_batch(name: str, topology: str) -> None:
    run = run_of(name, topology)
    devices = math.prod(int(size) for size in topology.split(":")[1].split("x"))
    sizes = run.mesh.sizes(devices)  # refuses any other number
    check_batch(
        AbstractMesh(tuple(sizes.values()), AXES),
        rows=run.data.batch_size,
        microbatches=run.training.microbatches,
        positions=run.data.sequence_length,
    )
    kept = describe_shardings(run.model, run.mesh, devices).values_per_device
    # Whole everywhere are vectors; whole over the expert axis is what is no bank.
    divided = devices // sizes["data"]
    assert kept < 1.15 * summary_of(run.model).total / divided


@pytest.mark.parametrize("name", PRESETS)
def test_a_machine_changes_nothing_but_how_it_is_run(name: str) -> None:
    runs = [run_of(name), *(run_of(name, topology) for topology in TOPOLOGIES)]
    assert runs[0] == runs[1], "the first is what the config holds by itself"
    for run in runs:
        assert (run.model, run.data, run.optimizer) == (
            runs[0].model,
            runs[0].data,
            runs[0].optimizer,
        )
        assert (run.objective, run.training.steps) == (runs[0].objective, runs[0].training.steps)
        assert run.model.dtype == "bfloat16"


@pytest.mark.parametrize("name", PRESETS)
def test_a_topology_without_a_machine_is_refused_and_the_others_named(name: str) -> None:
    place = f"{CONFIGS / name}.py"
    assert load_config(RunConfig, f"{place}:{TOPOLOGIES[1]}") == run_of(name, TOPOLOGIES[1])
    known = "'v5p:2x2x1': it has v5e:16x16, v5p:4x4x4, v6e:16x16"
    with pytest.raises(InputError, match=rf"^{place}: .* {known}$"):
        load_config(RunConfig, f"{place}:v5p:2x2x1")


@pytest.mark.parametrize(
    ("dense", "sparse"),
    [
        ("dense_420m", "molm_350m_4b"),
        ("dense_730m", "molm_700m_8b"),
        ("dense_730m", "molm_700m_4b"),
    ],
)
def test_a_dense_baseline_is_as_large_as_what_is_active(dense: str, sparse: str) -> None:
    baseline, model = run_of(dense), run_of(sparse)
    share = summary_of(baseline.model).total / summary_of(model.model).active
    assert abs(share - 1) < (0.001 if sparse != "molm_700m_4b" else 0.02)
    assert baseline.data == model.data
    assert baseline.optimizer == model.optimizer


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.py")), ids=lambda path: path.stem)
def test_every_config_is_a_record(path: Path) -> None:
    """So that an editor completes it, and a misspelt key is seen before anything runs."""
    name = path.relative_to(CONFIGS.parent).with_suffix("")
    module = importlib.import_module(".".join(name.parts))
    assert type(module.get_config()) is RunConfig
    assert get_type_hints(module.get_config)["return"] is RunConfig
