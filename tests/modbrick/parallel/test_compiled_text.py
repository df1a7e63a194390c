"""Compiled for an expert-parallel mesh, a step leaves the banks where they are: tokens travel."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tests.modbrick.parallel.compiled_steps import LAYERS, ON_CPU, ON_TPU, Sizes, whole_banks
from tests.modbrick.parallel.device_process import reports_of

WAYS = ("gather", "exchange", "replicated")


def check(reports: list[dict[str, Any]], meshes: list[str], sizes: Sizes) -> None:
    """No bank is whole anywhere, but for the program that makes one so."""
    assert [(r["mesh"], r["way"]) for r in reports] == [(m, w) for m in meshes for w in WAYS]
    for report in reports:
        found = [(kind, size) for kind, size in report["collectives"]]
        whole = whole_banks(found, sizes)
        if report["way"] == "replicated":
            assert "all-gather" in {kind for kind, _ in whole}, "the reader sees a whole bank"
            continue
        where = f"{report['mesh']} {report['way']}"
        assert {"all-gather", "all-reduce"} <= {kind for kind, _ in found}, where
        assert whole == [], where
        assert whole_banks([("any", size) for size in report["arrays"]], sizes) == [], where


def test_no_collective_yields_a_whole_bank() -> None:
    meshes = ["fsdp=2,expert=4"]
    check(reports_of("compiled_steps.py", "sublayers", ",".join(WAYS), *meshes), meshes, ON_CPU)


@pytest.mark.verify
@pytest.mark.parametrize("policy", ["none", "full", "dots"])
def test_nor_on_other_meshes_or_under_other_policies(policy: str) -> None:
    meshes = ["expert=8", "data=2,expert=4", "fsdp=2,tensor=2,expert=2"]
    check(reports_of("compiled_steps.py", policy, ",".join(WAYS), *meshes), meshes, ON_CPU)


@pytest.mark.verify
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_nor_compiled_for_a_tpu() -> None:
    meshes = ["fsdp=2,expert=4", "expert=8"]
    reports = reports_of("compiled_steps.py", "--tpu", "sublayers", ",".join(WAYS), *meshes)
    check(reports, meshes, ON_TPU)


def kept_whole(policy: str) -> list[tuple[str, int]]:
    """Arrays that hold the gathered banks of all layers, on a mesh that divides only by fsdp."""
    (report,) = reports_of("compiled_steps.py", policy, "gather", "fsdp=8")
    found = [(kind, size) for kind, size in report["collectives"]]
    # Each of the four matrices for the forward pass, and again for the backward pass.
    assert len(whole_banks(found, ON_CPU)) >= (4 if policy == "all" else 8)
    return whole_banks([("any", size) for size in report["arrays"]], ON_CPU, layers=LAYERS)


def test_gathered_parameters_are_not_kept_between_the_passes() -> None:
    assert kept_whole("none") == []


@pytest.mark.verify
@pytest.mark.parametrize("policy", ["full", "dots", "dots_without_batch", "sublayers"])
def test_nor_under_any_other_policy(policy: str) -> None:
    assert kept_whole(policy) == []


@pytest.mark.verify
def test_the_reader_sees_parameters_that_are_kept() -> None:
    assert len(kept_whole("all")) == len(ON_CPU.banks)
