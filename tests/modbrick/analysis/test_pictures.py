"""Pictures of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot

from modbrick.analysis.pictures import draw_expert_load, draw_loss


def pixels(path: Path) -> np.ndarray:
    """The picture, which must be a PNG; no figure may be left open."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert pyplot.get_fignums() == []
    return pyplot.imread(path)


def records(held_out: bool, loss: float | None = 2.0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"step": s, "next_token": 5 / s} for s in range(1, 20)]
    found.append({"step": 20, "next_token": loss})
    return found + [{"step": s, "evaluation": {"loss": 6 / s}} for s in (10, 20) if held_out]


def test_losses_are_drawn(tmp_path: Path) -> None:
    drawn = []
    for held_out in (False, True):
        path = tmp_path / f"{held_out}.png"
        draw_loss(records(held_out), str(path))
        drawn.append(pixels(path))
    assert drawn[0].std() > 0
    assert drawn[0].shape == drawn[1].shape
    assert (drawn[0] != drawn[1]).any(), "held-out losses are seen"


@pytest.mark.parametrize("found", [records(True, None), records(True)[-2:]])
def test_a_run_that_diverged_or_recorded_little_is_drawn(
    tmp_path: Path, found: list[dict[str, Any]]
) -> None:
    draw_loss(found, str(tmp_path / "loss.png"))
    assert pixels(tmp_path / "loss.png").std() > 0


def test_expert_load_is_drawn_by_router_and_layer(tmp_path: Path) -> None:
    uniform = {"layers": {"load": [[0.25] * 4] * 3}}
    collapsed = {"layers": {"load": [[1.0, 0.0, 0.0, 0.0]] * 3}}
    drawn = {}
    for name, router in (("uniform", uniform), ("collapsed", collapsed)):
        path = tmp_path / f"{name}.png"
        draw_expert_load(
            {"segments.0.attention": router, "segments.0.feed_forward": uniform}, str(path)
        )
        drawn[name] = pixels(path)
    assert drawn["uniform"].shape == drawn["collapsed"].shape
    assert (drawn["uniform"] != drawn["collapsed"]).any()
    draw_expert_load({"segments.0.attention": uniform}, str(tmp_path / "one.png"))
    assert pixels(tmp_path / "one.png").shape[1] < drawn["uniform"].shape[1]
