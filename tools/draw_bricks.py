"""Draws docs/pictures/bricks.svg, what a brick is, from the text file beside it.

python -m tools.draw_bricks
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

from tools.svg import Picture

TEXT = Path(__file__).resolve().parents[1] / "docs/pictures/bricks.txt"

WIDTH, HEIGHT = 1020, 472
STACK, STACK_WIDTH, BAR = 40, 190, 26  # the decoder, on the left
PANEL, PANEL_WIDTH, PANEL_HEIGHT = 300, 390, 160  # the open layer's two halves
ADDRESSES = 766
TITLES = {"attention": "attention", "feed_forward": "feed-forward"}


@dataclasses.dataclass(frozen=True)
class Bank:
    """A bank of experts, some of them chosen for the token that passes."""

    name: str
    experts: int
    chosen: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Description:
    """Contents of the text file."""

    layers: int
    open: int
    banks: tuple[Bank, ...]
    plugs: tuple[tuple[str, str], ...]
    points: tuple[tuple[str, str, str], ...]


def read(text: str) -> Description:
    """Returns what a text file describes.

    Raises:
      ValueError: a line that is not of the kinds its head explains.
    """
    layers = opened = 0
    banks, plugs, points = [], [], []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if found := re.fullmatch(r"layers (\d+), open (\d+)", line):
            layers, opened = int(found[1]), int(found[2])
        elif found := re.fullmatch(r"bank (\w+) experts (\d+) chosen ([\d ]+)", line):
            banks.append(Bank(found[1], int(found[2]), tuple(map(int, found[3].split()))))
        elif found := re.fullmatch(r"plug (\w+) at ([\w.]+)", line):
            plugs.append((found[1], found[2]))
        elif found := re.fullmatch(r"point ([\w.]+) at ([\w.]+)(?: \| (.+))?", line):
            points.append((found[1], found[2], found[3] or ""))
        else:
            raise ValueError(f"nothing that this picture has: {line}")
    return Description(layers, opened, tuple(banks), tuple(plugs), tuple(points))


def draw(text: str) -> str:
    """Returns the picture of a description as SVG."""
    said = read(text)
    picture = Picture(WIDTH, HEIGHT, "What a brick is")
    at = draw_decoder(picture, said)
    top = 62
    picture.line([(STACK + STACK_WIDTH + 4, at), (PANEL - 26, top - 26)], "edge", width=1.2)
    picture.line(
        [(STACK + STACK_WIDTH + 4, at + BAR), (PANEL - 26, HEIGHT - 32)], "edge", width=1.2
    )
    picture.box(PANEL - 26, top - 30, PANEL_WIDTH + 52, HEIGHT - 58, "lane", radius=10)
    picture.write(PANEL, top - 8, f"layer {said.open}", bold=True, size=14, anchor="start")
    places: dict[str, tuple[float, float]] = {}
    for number, bank in enumerate(said.banks):
        places |= draw_bank(picture, bank, top + 8 + number * (PANEL_HEIGHT + 30))
    stream = PANEL + PANEL_WIDTH / 2
    seam = top + 8 + PANEL_HEIGHT
    picture.line([(stream, seam), (stream, seam + 30)], head=True, width=2)
    picture.write(
        stream + 12, seam + 19, "stream of the token", fill="faint", anchor="start", size=11
    )
    for name, site in said.plugs:
        draw_plug(picture, name, site, top + 8)
    draw_addresses(picture, said, places)
    return picture.text()


def draw_decoder(picture: Picture, said: Description) -> float:
    """Draws the stack of layers; returns the upper edge of the open one."""
    picture.write(STACK, 46, "a decoder", bold=True, size=14, anchor="start")
    names: list[str | None] = ["embedding"]
    shown = range(said.open + 2)
    names += [f"layer {layer}" for layer in shown]
    names += [None, f"layer {said.layers - 1}", "head"]
    y, opened = 62.0, 0.0
    for name in names:
        if name is None:
            for dot in range(3):
                picture.box(STACK + STACK_WIDTH / 2 - 2, y + 4 + 9 * dot, 4, 4, "faint", radius=2)
        else:
            is_open = name == f"layer {said.open}"
            opened = y if is_open else opened
            fill, ink = ("flow", "on_chosen") if is_open else ("box", "text")
            picture.box(STACK, y, STACK_WIDTH, BAR, fill, edge="edge", radius=5)
            picture.write(STACK + STACK_WIDTH / 2, y + 17, name, fill=ink)
        y += BAR + 9
    return opened


def draw_bank(picture: Picture, bank: Bank, top: float) -> dict[str, tuple[float, float]]:
    """Draws half a layer: its router and its experts; returns where each part is pointed at."""
    picture.box(PANEL, top, PANEL_WIDTH, PANEL_HEIGHT, "page", edge="edge", radius=8)
    picture.write(PANEL + 16, top + 23, TITLES[bank.name], bold=True, size=13, anchor="start")
    router = (PANEL + PANEL_WIDTH / 2 - 45, top + 44)
    picture.box(*router, 90, 26, "lane", edge="edge", radius=13)
    picture.write(router[0] + 45, router[1] + 17, "router")
    places = {f"{bank.name}.router": (router[0] + 90, router[1] + 13)}
    gap = 10.0
    size = (PANEL_WIDTH - 32 - gap * (bank.experts - 1)) / bank.experts
    for expert in range(bank.experts):
        x, y = PANEL + 16 + expert * (size + gap), top + 98
        chosen = expert in bank.chosen
        if chosen:
            picture.line(
                [(router[0] + 45, router[1] + 26), (x + size / 2, y - 1)], "flow", head=True
            )
        fill = f"{bank.name}_chosen" if chosen else bank.name
        picture.box(x, y, size, 44, fill, radius=6)
        ink = "on_chosen" if chosen else "faint"
        picture.write(
            x + size / 2,
            y + 27,
            f"expert {expert}",
            fill=ink,
            bold=chosen,
            size=min(11, size / 5.6),
        )
        places[f"{bank.name}.{expert}"] = (x + size / 2, y + 44)
    return places


def draw_plug(picture: Picture, name: str, site: str, top: float) -> None:
    """Draws a customized brick that is attached at a site, with two prongs."""
    x, y = PANEL + PANEL_WIDTH - 12, top + 6
    for prong in (9, 21):
        picture.box(x - 9, y + prong - 2.5, 12, 5, "plugged", radius=1.5)
    picture.box(x, y, 66, 30, "plugged", radius=6)
    picture.write(x + 33, y + 20, name, fill="on_chosen", bold=True)
    picture.write(x - 14, y + 19, f"site {site}", fill="faint", code=True, size=10.5, anchor="end")
    picture.line([(x + 66, y + 15), (ADDRESSES - 8, y + 15)], "plugged", width=1.2)
    picture.write(ADDRESSES, y + 12, "a customized brick, plugged in:", anchor="start", size=12)
    picture.write(
        ADDRESSES, y + 28, f"layer.*.{site}", anchor="start", code=True, fill="plugged", size=12
    )


def draw_addresses(
    picture: Picture, said: Description, places: dict[str, tuple[float, float]]
) -> None:
    """Writes the addresses of bricks on the right, each with a line to its place."""
    for part, address, kind in said.points:
        x, y = places[part]
        name, _, which = part.partition(".")
        right = PANEL + PANEL_WIDTH + 40
        if which == "router":
            points = [(x, y), (right, y), (ADDRESSES - 8, y)]
        else:
            points = [(x, y), (x, y + 8), (right, y + 8), (ADDRESSES - 8, y + 8)]
        picture.line(points, f"{name}_chosen", width=1.2)
        last = points[-1][1]
        if kind:
            picture.write(ADDRESSES, last - 3, kind, anchor="start", size=12)
        down = 13 if kind else 4
        ink = f"{name}_chosen" if kind else "text"
        picture.write(ADDRESSES, last + down, address, anchor="start", code=True, fill=ink)


def main() -> None:
    """Draws the picture."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    TEXT.with_suffix(".svg").write_text(draw(TEXT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
