"""Figures of a benchmark as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def brick_costs(training: Mapping[str, Any], mixing: Mapping[str, Any]) -> Table:
    """Returns what `training_cost` and `mixing_cost` found."""
    table = Table(title="Customized bricks, float32")
    for name in ("", "seconds", "GiB"):
        table.add_column(name, justify="right" if name else "left")
    seconds, memory = training["seconds_per_step"], training["memory_bytes"]
    for name, label in (("whole", "training the whole model"), ("lora", "training a LoRA")):
        table.add_row(label, f"{seconds[name]:.3f}", f"{memory[name] / 2**30:.2f}")
    ratios = training["time_ratio"], training["memory_ratio"]
    table.add_row("ratio", *(f"{ratio:.2f}" for ratio in ratios), end_section=True)
    seconds, memory = mixing["seconds"], mixing["memory_bytes"]
    for name, label in (
        ("none", "a batch without bricks"),
        ("one", "with one LoRA for all rows"),
        ("many", f"with {mixing['rows']} LoRAs, one a row"),
    ):
        size = f"{memory[name] / 2**30:.2f}" if name in memory else ""
        table.add_row(label, f"{seconds[name]:.3f}", size)
    table.add_row("ratio to one", f"{mixing['time_ratio_to_one']:.2f}", "")
    return table
