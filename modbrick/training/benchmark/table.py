"""Figures of a benchmark as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.table import Table


def results_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns what `measure` found, a column for each case."""
    table = Table(title="Training, float32, AdamW")
    rows: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("tokens/s", lambda r: f"{r['tokens_per_second']:,.0f}"),
        ("share of limit", lambda r: f"{r['share_of_limit']:.1%}"),
        ("without optimizer", lambda r: f"{r['share_of_limit_without_optimizer']:.1%}"),
        ("optimizer's share of the step", lambda r: f"{r['optimizer_share_of_step']:.1%}"),
        ("dense GFLOP/s", lambda r: f"{r['dense_gflops']:.0f}"),
        ("peak memory, GiB", lambda r: f"{r['peak_memory_bytes'] / 2**30:.2f}"),
        ("compilation and first steps, s", lambda r: f"{r['compile_seconds']:.0f}"),
    ]
    if any("original" in r for r in results.values()):
        rows += [
            ("original: tokens/s", lambda r: f"{r['original']['tokens_per_second']:,.0f}"),
            ("original: peak, GiB", lambda r: f"{r['original']['peak_memory_bytes'] / 2**30:.2f}"),
            ("times the original", lambda r: f"{r['speedup']:.2f}"),
        ]
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    for label, cell in rows:
        table.add_row(label, *(cell(result) for result in results.values()))
    return table


def brick_costs(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Returns what was measured of bricks: `training`, `mixing`, `plugging` and `peft`, if any."""
    table = Table(title="Customized bricks, float32")
    for name in ("", "seconds", "GiB"):
        table.add_column(name, justify="right" if name else "left")
    for name, rows in (
        ("training", _training_rows),
        ("mixing", _mixing_rows),
        ("plugging", _plugging_rows),
        ("peft", _peft_rows),
    ):
        for row in rows(found[name]) if name in found else ():
            table.add_row(*row)
        table.add_section()
    return table


def _training_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    seconds, memory = found["seconds_per_step"], found["memory_bytes"]
    for name, label in (("whole", "training the whole model"), ("lora", "training a LoRA")):
        yield label, f"{seconds[name]:.3f}", f"{memory[name] / 2**30:.2f}"
    yield "ratio", f"{found['time_ratio']:.2f}", f"{found['memory_ratio']:.2f}"


def _mixing_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    seconds, memory = found["seconds"], found["memory_bytes"]
    for name, label in (
        ("none", "a batch without bricks"),
        ("one", "with one LoRA for all rows"),
        ("many", f"with {found['rows']} LoRAs, one a row"),
    ):
        size = f"{memory[name] / 2**30:.2f}" if name in memory else ""
        yield label, f"{seconds[name]:.3f}", size
    yield "ratio to one", f"{found['time_ratio_to_one']:.2f}", ""


def _plugging_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    seconds, count = found["seconds"], found["bricks"]
    read = f"{found['read_bytes'] / 2**30:.5f}"
    yield "plugging in the brick of a library of one", f"{seconds['one']:.3f}", ""
    yield f"one of a library of {count}, and bytes read", f"{seconds['many']:.3f}", read
    yield "ratio", f"{found['time_ratio']:.2f}", ""


def _peft_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    seconds, memory = found["seconds_per_step"], found["memory_bytes"]
    for name in ("peft", "modbrick"):
        label = f"training a LoRA on a Llama, {name}"
        yield label, f"{seconds[name]:.3f}", f"{memory[name] / 2**30:.2f}"
    yield "ratio", f"{found['time_ratio']:.2f}", ""
