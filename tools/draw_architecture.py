"""Draws docs/pictures/architecture.svg, how data flows, from the text file beside it.

python -m tools.draw_architecture
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

from tools.svg import Picture

TEXT = Path(__file__).resolve().parents[1] / "docs/pictures/architecture.txt"

MARGIN, GAP, WIDTH, HEIGHT = 28, 72, 162, 92
LANE_TOP, LANE_BOTTOM, BETWEEN = 40, 18, 34
Point = tuple[float, float]


@dataclasses.dataclass
class Box:
    """A box: where it stands, and what it says."""

    lane: int
    column: int
    title: str
    room: str
    lines: list[str]

    @property
    def left(self) -> float:
        """Left edge."""
        return 2 * MARGIN + self.column * (WIDTH + GAP)

    @property
    def top(self) -> float:
        """Upper edge."""
        return MARGIN + self.lane * (LANE_TOP + HEIGHT + LANE_BOTTOM + BETWEEN) + LANE_TOP


@dataclasses.dataclass(frozen=True)
class Flow:
    """A flow from one box to another."""

    start: str
    end: str
    both: bool
    label: str


def read(text: str) -> tuple[list[str], dict[str, Box], list[Flow]]:
    """Returns lanes, boxes by name, and flows.

    Raises:
      ValueError: a line that is none of these.
    """
    lanes: list[str] = []
    boxes: dict[str, Box] = {}
    flows: list[Flow] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("lane "):
            lanes.append(line.removeprefix("lane "))
        elif found := re.fullmatch(r"box (\w+) (\d) (.+?) \| (.+?) \| (.+)", line):
            name, column, title, room, what = found.groups()
            boxes[name] = Box(len(lanes) - 1, int(column), title, room, what.split(";"))
        elif found := re.fullmatch(r"flow (\w+) (<?)-> (\w+) \| (.+)", line):
            flows.append(Flow(found[1], found[3], bool(found[2]), found[4]))
        else:
            raise ValueError(f"neither lane, box nor flow: {line}")
    return lanes, boxes, flows


def draw(text: str) -> str:
    """Returns the picture of a description as SVG."""
    lanes, boxes, flows = read(text)
    columns = 1 + max(box.column for box in boxes.values())
    width = 4 * MARGIN + columns * WIDTH + (columns - 1) * GAP
    lane_height = LANE_TOP + HEIGHT + LANE_BOTTOM
    under = any(is_under(boxes[flow.start], boxes[flow.end]) for flow in flows)
    height = 2 * MARGIN + len(lanes) * lane_height + (len(lanes) - 1) * BETWEEN + 20 * under
    picture = Picture(width, height, "How data flows through modbrick")
    for number, lane in enumerate(lanes):
        top = MARGIN + number * (lane_height + BETWEEN)
        tall = lane_height + (20 if under and number == len(lanes) - 1 else 0)
        picture.box(MARGIN, top, width - 2 * MARGIN, tall, "lane", radius=10)
        head, _, rest = lane.partition(":")
        left: float = 2 * MARGIN + WIDTH + GAP  # flows come down on the left of it
        picture.write(left, top + 25, head, bold=True, anchor="start", size=13)
        left += 8.2 * len(head) + 12
        picture.write(left, top + 25, rest.strip(), fill="faint", anchor="start")
    for flow in flows:
        connect(picture, boxes[flow.start], boxes[flow.end], flow)
    for box in boxes.values():
        picture.box(box.left, box.top, WIDTH, HEIGHT, "box", edge="edge")
        middle = box.left + WIDTH / 2
        picture.write(middle, box.top + 22, box.title, bold=True, size=14)
        room = box.room.removeprefix("modbrick/")
        picture.write(middle, box.top + 39, room, size=10.5, fill="flow", code=True)
        for i, line in enumerate(box.lines):
            picture.write(middle, box.top + 60 + 16 * i, line, size=11.5, fill="faint")
    return picture.text()


def is_under(start: Box, end: Box) -> bool:
    """Returns whether a flow passes under the boxes between its ends."""
    return start.lane == end.lane and abs(start.column - end.column) > 1


def connect(picture: Picture, start: Box, end: Box, flow: Flow) -> None:
    """Draws what flows between two boxes: beside, under, below or above each other."""
    if is_under(start, end):
        y = start.top + HEIGHT
        points = [(start.left + WIDTH / 2, y), (start.left + WIDTH / 2, y + 18)]
        points += [(end.left + WIDTH / 2, y + 18), (end.left + WIDTH / 2, y)]
        label = ((points[1][0] + points[2][0]) / 2, y + 13)
    elif start.lane == end.lane:
        y = start.top + HEIGHT / 2
        points = [(start.left + WIDTH, y), (end.left, y)]
        label = ((points[0][0] + points[1][0]) / 2, y - 7)
    elif start.lane < end.lane:  # as a line of text goes on in the next one
        a, b = start.left + WIDTH / 2, end.left + 0.7 * WIDTH
        y = end.top - LANE_TOP - BETWEEN / 2
        points = [(a, start.top + HEIGHT), (a, y), (b, y), (b, end.top)]
        label = ((a + b) / 2, y - 6)
    else:
        x = start.left + 0.3 * WIDTH
        points = [(x, start.top), (x, end.top + HEIGHT)]
        label = (x + 38, start.top - LANE_TOP - BETWEEN / 2 - 6)
    picture.line(points, head=True, tail=flow.both)
    picture.write(*label, flow.label, size=11, fill="faint")


def main() -> None:
    """Draws the picture."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    TEXT.with_suffix(".svg").write_text(draw(TEXT.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
