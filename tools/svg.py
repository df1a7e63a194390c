"""A few shapes as SVG, in colours that follow the reader's light or dark setting."""

from __future__ import annotations

import html

# Light, dark. A picture brings its own background, so that it can be read on any page.
COLOURS = {
    "page": ("#ffffff", "#16181d"),
    "lane": ("#f4f6f9", "#1e222a"),
    "box": ("#ffffff", "#2a303b"),
    "edge": ("#a8b3c2", "#56617a"),
    "text": ("#1c2430", "#e8ecf2"),
    "faint": ("#5b6675", "#9aa6b8"),
    "flow": ("#3d6fb4", "#7fb0f0"),
    "attention": ("#dbe8fa", "#24405f"),
    "attention_chosen": ("#4a86d0", "#5c9be8"),
    "feed_forward": ("#e0f1e4", "#23442f"),
    "feed_forward_chosen": ("#3d9960", "#54b87a"),
    "plugged": ("#e9832b", "#f09a4c"),
    "on_chosen": ("#ffffff", "#10141a"),
}
FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"
CODE = "ui-monospace, 'DejaVu Sans Mono', monospace"


class Picture:
    """A picture that grows by shapes; `text()` is the file."""

    def __init__(self, width: int, height: int, title: str):
        self._size = (width, height)
        self._title = title
        self._shapes: list[str] = []
        self.box(0, 0, width, height, "page", radius=10)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str,
        *,
        edge: str | None = None,
        radius: float = 6,
    ) -> None:
        """Draws a rounded rectangle."""
        stroke = f' stroke="var(--{edge})"' if edge else ""
        self._shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" '
            f'fill="var(--{fill})"{stroke}/>'
        )

    def write(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 12,
        fill: str = "text",
        anchor: str = "middle",
        bold: bool = False,
        code: bool = False,
    ) -> None:
        """Writes one line, its base line at y."""
        weight = ' font-weight="600"' if bold else ""
        family = f' font-family="{CODE}"' if code else ""
        self._shapes.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="var(--{fill})" '
            f'text-anchor="{anchor}"{weight}{family}>{html.escape(text, quote=False)}</text>'
        )

    def line(
        self,
        points: list[tuple[float, float]],
        stroke: str = "flow",
        *,
        head: bool = False,
        tail: bool = False,
        width: float = 1.6,
    ) -> None:
        """Draws a line through points, with round corners, and arrow heads at its ends."""
        corner = 8.0
        path = f"M{points[0][0]:g} {points[0][1]:g}"
        for before, at, after in zip(points, points[1:], points[2:], strict=False):
            enter, leave = _towards(at, before, corner), _towards(at, after, corner)
            path += f" L{enter[0]:g} {enter[1]:g} Q{at[0]:g} {at[1]:g} {leave[0]:g} {leave[1]:g}"
        path += f" L{points[-1][0]:g} {points[-1][1]:g}"
        self._shapes.append(
            f'<path d="{path}" fill="none" stroke="var(--{stroke})" stroke-width="{width:g}"/>'
        )
        for wanted, tip, origin in ((head, -1, -2), (tail, 0, 1)):
            if wanted:
                self._head(points[tip], points[origin], stroke)

    def _head(self, tip: tuple[float, float], origin: tuple[float, float], fill: str) -> None:
        base = _towards(tip, origin, 8)
        dx, dy = (tip[0] - base[0]) / 2, (tip[1] - base[1]) / 2
        left, right = (base[0] - dy, base[1] + dx), (base[0] + dy, base[1] - dx)
        points = " ".join(f"{x:g},{y:g}" for x, y in (tip, left, right))
        self._shapes.append(f'<polygon points="{points}" fill="var(--{fill})"/>')

    def text(self) -> str:
        """Returns the SVG file."""
        width, height = self._size
        light, dark = (
            " ".join(f"--{name}: {pair[i]};" for name, pair in COLOURS.items()) for i in (0, 1)
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
                f'width="{width}" height="{height}" font-family="{FONT}" role="img">',
                f"<title>{html.escape(self._title)}</title>",
                f"<style>:root {{ {light} }}",
                f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}</style>",
                *self._shapes,
                "</svg>",
                "",
            ]
        )


def _towards(
    start: tuple[float, float], end: tuple[float, float], distance: float
) -> tuple[float, float]:
    """Returns the point so far from `start` on the way to `end`."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = (dx * dx + dy * dy) ** 0.5
    share = min(distance / length, 0.5) if length else 0.0
    return start[0] + share * dx, start[1] + share * dy
