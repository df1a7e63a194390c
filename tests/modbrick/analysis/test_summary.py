"""Model summaries against published sizes."""

from __future__ import annotations

import pytest
from rich.console import Console

from modbrick.analysis.summary import summarise
from modbrick.config.families import moduleformer
from modbrick.decoder.functional import parameter_table


def molm(layers: int, top_k: int):
    return moduleformer(
        vocabulary=50_295,
        width=1024,
        layers=layers,
        heads=1,
        attention_width=1024,
        feed_forward_width=2048,
        attention_experts=16,
        feed_forward_experts=32,
        top_k=top_k,
    )


@pytest.mark.parametrize(
    ("layers", "top_k", "total", "active"),
    [(24, 2, 4.14e9, 0.42e9), (24, 4, 4.14e9, 0.72e9), (48, 2, 8.18e9, 0.73e9)],
)
def test_published_sizes(layers: int, top_k: int, total: float, active: float) -> None:
    summary = summarise(molm(layers, top_k))
    assert summary.total == pytest.approx(total, rel=5e-3)
    assert summary.active == pytest.approx(active, rel=2e-2)


def test_groups_cover_every_parameter_once_and_their_patterns_select_them() -> None:
    config = molm(3, 2)
    summary, table = summarise(config), parameter_table(config)
    assert summary.total == sum(info.size for info in table)
    for group in summary.groups:
        table.select([group.pattern])
    experts = {g.pattern: g for g in summary.groups}["layer.*.feed_forward.expert.*"]
    assert (experts.bricks, experts.active) == (3 * 32, 3 * 2)
    assert experts.parameters == 2 * 1024 * 2048


def test_table_prints_the_totals() -> None:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summarise(molm(3, 2)).table())
    assert f"{summarise(molm(3, 2)).total:,}" in console.export_text()
