"""Pictures of a run, drawn without a display."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot


def draw_loss(records: list[dict[str, Any]], path: str) -> None:
    """Draws training and held-out loss over steps, in nats per token.

    Args:
      records: of `metrics.jsonl`; held-out results are those with an `evaluation`.
      path: of the PNG file.
    """
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    training = [(r["step"], r["next_token"]) for r in records if "next_token" in r]
    held_out = [(r["step"], r["evaluation"]["loss"]) for r in records if "evaluation" in r]
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


def _save(figure: pyplot.Figure, path: str) -> None:
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
