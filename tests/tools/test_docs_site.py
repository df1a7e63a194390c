"""The pages that `make docs` adds, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

import modbrick
from tools.docs_site import PAGES, ROOT, fetched, from_root, on_page_markdown, public, reference


def test_the_reference_has_every_public_name() -> None:
    pages = reference()
    for name in set(modbrick.__all__) - {"__version__"}:
        assert f"::: modbrick.{name}\n" in pages["modbrick"]
    assert "::: modbrick.data.Dataset\n" in pages["rooms"]
    assert "::: pallas_kernels.grouped_matmul.routing_plan\n" in pages["pallas_kernels"]
    assert public(Path(modbrick.__file__)) == modbrick.__all__


def test_the_first_page_links_within_the_site() -> None:
    text = from_root(ROOT / "README.md")
    assert "](docs/" not in text
    assert "](training.md)" in text
    assert "](pictures/bricks.svg)" in text
    moved = on_page_markdown("[map](../WORKSPACE.md), [what](../README.md#your-own-text)")
    assert moved == "[map](WORKSPACE.md), [what](index.md#your-own-text)"


def test_the_navigation_has_every_page() -> None:
    def leaves(node):
        if isinstance(node, str):
            return [node]
        return [
            leaf
            for child in (node.values() if isinstance(node, dict) else node)
            for leaf in leaves(child)
        ]

    text = re.sub(r"(?m)^ *(?:- )?toggle:.*$", "", (ROOT / "mkdocs.yml").read_text())
    listed = leaves(yaml.safe_load(text)["nav"])
    written = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    made = [*PAGES.values(), *(f"reference/{name}.md" for name in reference())]
    assert sorted(listed) == sorted(written + made)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("page.html", '<script src="https://example.org/x.js"></script>'),
        ("page.html", '<link rel="stylesheet" href=//example.org/x.css>'),
        ("page.html", "<p><img alt='' src='http://example.org/x.png'>"),
        ("style.css", '@import "https://example.org/x.css";'),
        ("style.css", "p { background: url(https://example.org/x.png) }"),
    ],
)
def test_what_is_fetched_from_elsewhere_is_found(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    [line] = fetched(tmp_path)
    assert line.startswith(f"{name}: ")
    assert "example.org" in line


def test_links_that_a_reader_may_follow_are_none_of_these(tmp_path: Path) -> None:
    page = '<a href="https://example.org">there</a><script src="assets/x.js"></script>'
    (tmp_path / "page.html").write_text(page)
    assert fetched(tmp_path) == []
