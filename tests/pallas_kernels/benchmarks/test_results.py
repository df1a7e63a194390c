from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pallas_kernels.benchmarks.results import PARTS, add_run, read_results

OP = "grouped_matmul"
FIRST, SECOND = {"commit": "aaa", "date": "2026-01-01"}, {"commit": "bbb", "date": "2026-01-02"}


def after(*runs: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for run, where in runs:
        results = add_run(results, OP, run, where)
    return results


def test_what_no_run_measured_says_so() -> None:
    results = after(({"cpu": {"forward": 1}}, FIRST))
    assert results == {
        "op": OP,
        **dict.fromkeys(PARTS, "not measured"),
        "cpu": {"forward": 1},
        "measured": {"cpu": FIRST},
    }


def test_runs_of_several_cases_and_generations_become_one() -> None:
    results = after(
        ({"tpu": {"v5p": {"molm": 1, "mixtral": 2}}, "h100": {"molm": 3}}, FIRST),
        ({"tpu": {"v5p": {"molm": 4}, "v6e": {"molm": 5}}, "h100": {"mixtral": 6}}, SECOND),
    )
    assert results["tpu"] == {"v5p": {"molm": 4, "mixtral": 2}, "v6e": {"molm": 5}}
    assert results["h100"] == {"molm": 3, "mixtral": 6}
    assert results["measured"] == {
        "h100/mixtral": SECOND,
        "h100/molm": FIRST,
        "tpu/v5p/mixtral": FIRST,
        "tpu/v5p/molm": SECOND,
        "tpu/v6e/molm": SECOND,
    }


def test_times_are_of_one_run() -> None:
    results = after(({"gpu": {"molm": 1, "skewed": 2}}, FIRST), ({"gpu": {"molm": 3}}, SECOND))
    assert results["gpu"] == {"molm": 3}
    assert results["measured"] == {"gpu": SECOND}


def test_an_error_makes_room_for_what_is_measured_later_and_the_other_way_round() -> None:
    failed = {"tpu": {"v5p": {"error": "no libtpu"}}}
    worked = {"tpu": {"v5p": {"molm": 1}}}
    results = after((failed, FIRST), (worked, SECOND))
    assert results["tpu"] == {"v5p": {"molm": 1}}
    assert results["measured"] == {"tpu/v5p/molm": SECOND}
    results = after((worked, FIRST), (failed, SECOND))
    assert results["tpu"] == {"v5p": {"error": "no libtpu"}}
    assert results["measured"] == {"tpu/v5p": SECOND}


def test_a_file_is_read_if_it_holds_results_of_the_op(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert read_results(file, OP) == {}
    results = after(({"cpu": {"forward": 1}}, FIRST))
    file.write_text(json.dumps(results))
    assert read_results(file, OP) == results
    for text, message in (
        ("{", "is no JSON"),
        ("[]", "holds no results of grouped_matmul"),
        (json.dumps({"op": "stickbreaking_attention"}), "holds no results of grouped_matmul"),
        (json.dumps({"op": OP, "cpu": {"forward": 1}}), "does not say when"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_results(file, OP)
