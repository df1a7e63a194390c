"""Pictures of a run, drawn without a display."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot

from modbrick.analysis.goodput import Goodput


def draw_loss(records: list[dict[str, Any]], path: str) -> None:
    """Draws training and held-out loss over steps, in nats per token.

    Args:
      records: of `metrics.jsonl`; held-out results are those with an `evaluation`.
      path: of the PNG file.
    """
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    training = [(r["step"], r["next_token"]) for r in records if "next_token" in r]
    evaluated = [(r["step"], r["evaluation"]) for r in records if "evaluation" in r]
    held_out = [(step, found["loss"]) for step, found in evaluated if "loss" in found]
    axes.plot(*zip(*training, strict=True), label="training", linewidth=1)
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", label="held out", markersize=4)
    axes.set(xlabel="step", ylabel="next-token loss (nats per token)", title="Loss")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def draw_expert_load(routers: dict[str, dict[str, Any]], path: str) -> None:
    """Draws which share of the choices each expert of each layer receives, one panel a router.

    Args:
      routers: by name, with `layers.load` `[L][E]`: `routers` of a metrics record or an evaluation.
      path: of the PNG file.
    """
    figure, panels = pyplot.subplots(
        1, len(routers), figsize=(1.5 + 4.5 * len(routers), 4), layout="constrained", squeeze=False
    )
    for axes, (name, router) in zip(panels[0], routers.items(), strict=True):
        load = np.asarray(router["layers"]["load"])
        relative = load * load.shape[1]
        brightest = max(2.0, relative.max())
        image = axes.imshow(relative, vmin=0, vmax=brightest)
        for (layer, expert), share in np.ndenumerate(load):
            label = f"{share:.0%}" if share else "0"
            color = "black" if relative[layer, expert] > 0.6 * brightest else "white"
            axes.text(expert, layer, label, ha="center", va="center", fontsize=7, color=color)
        axes.set(xlabel="expert", ylabel="layer", title=name.split(".", 2)[-1].replace("_", "-"))
        axes.set_xticks(range(load.shape[1]))
        axes.set_yticks(range(load.shape[0]))
        figure.colorbar(image, ax=axes, label="load (1: its equal share)", shrink=0.8)
    figure.suptitle("Expert load by layer")
    _save(figure, path)


def draw_goodput(report: Goodput, path: str) -> None:
    """Draws the step reached over wall time, a line a start, and where the time went.

    Args:
      report: of a run.
      path: of the PNG file.
    """
    figure, (course, shares) = pyplot.subplots(
        2, 1, figsize=(8, 5.5), layout="constrained", height_ratios=(3, 1)
    )
    begin, longest = report.starts[0].begin, report.total
    unit, name = next(
        (u, n)
        for u, n in ((3600, "hours"), (60, "minutes"), (1, "seconds"))
        if longest >= 2 * u or u == 1
    )
    for start in report.starts:
        times = [(record["time"] - begin) / unit for record in start.records]
        steps = [record["step"] for record in start.records]
        course.plot(times, steps, color="black", linewidth=1.5)
    course.set(xlabel=f"wall time ({name})", ylabel="step", title="Progress of every start")
    course.grid(alpha=0.3)
    left = 0.0
    for part, seconds in report.seconds.items():
        share = 100 * seconds / report.total if report.total else 0.0
        shares.barh(0, share, left=left, label=f"{part.replace('_', ' ')} {share:.1f} %")
        left += share
    shares.set(xlim=(0, 100), yticks=[], xlabel="share of the wall time (%)", title="Goodput")
    shares.legend(loc="upper center", bbox_to_anchor=(0.5, -0.6), ncols=4, frameon=False)
    _save(figure, path)


def _save(figure: pyplot.Figure, path: str) -> None:
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
