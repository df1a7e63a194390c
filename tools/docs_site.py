"""Pages of the documentation site that stand elsewhere in the repository, or in docstrings.

mkdocs calls this (see mkdocs.yml). README, WORKSPACE and the like come in from the root, the README
as the first page; the pages of the reference list what `__all__` names, package by package, and
mkdocstrings fills them in. The library is read, not imported: building needs no jax.
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

FETCHED = re.compile(
    r"""<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^\s>]+"""
    r"""|(?:@import|url\()\s*["']?(?:https?:)?//[^\s"')]+"""
)
"""References that a browser fetches from elsewhere, in HTML and in style sheets."""

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "WORKSPACE.md": "WORKSPACE.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
}
PUBLIC_KERNELS = (
    "grouped_matmul",
    "stickbreaking_attention",
    "softmax_attention",
    "compile_report",
)


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages to those in docs/."""
    # By name: mkdocs has an environment of its own, which type checkers and tests do not see.
    mkdocs_file = importlib.import_module("mkdocs.structure.files").File
    pages = {target: from_root(ROOT / name) for name, target in PAGES.items()}
    pages |= {f"reference/{name}.md": text for name, text in reference().items()}
    for path, text in pages.items():
        files.append(mkdocs_file.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Returns a page of docs/ with links to the root's pages as they are in the site."""
    for name, target in PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({target}")
    return markdown


def on_post_build(config: Any) -> None:
    """Refuses a site that fetches anything from elsewhere."""
    if found := fetched(Path(config.site_dir)):
        raise SystemExit(f"error: the site fetches from elsewhere: {'; '.join(found)}")


def fetched(site: Path) -> list[str]:
    """Returns what the pages and style sheets of a site fetch from elsewhere, with their names."""
    return [
        f"{path.relative_to(site)}: {address}"
        for path in sorted(site.rglob("*"))
        if path.suffix in (".html", ".css")
        for address in FETCHED.findall(path.read_text(encoding="utf-8"))
    ]


def from_root(page: Path) -> str:
    """Returns a page with links that are right one floor below, in docs/."""
    text = page.read_text(encoding="utf-8").replace("](docs/", "](")
    return text.replace("](README.md", "](index.md")


def reference() -> dict[str, str]:
    """Returns the pages of the reference, by name."""
    rooms = [
        f"modbrick.{path.parent.name}"
        for path in sorted((ROOT / "modbrick").glob("*/__init__.py"))
        if public(path)
    ]
    kernels = [f"pallas_kernels.{name}" for name in PUBLIC_KERNELS]
    return {
        "modbrick": "# modbrick\n\nWhat one may rely on.\n\n" + names("modbrick", 2),
        "rooms": "# modbrick, room by room\n\n"
        + "\n".join(f"## {room}\n\n{names(room, 3)}" for room in rooms),
        "pallas_kernels": "# pallas_kernels\n\n"
        + "\n".join(f"## {module}\n\n{names(module, 3)}" for module in kernels),
    }


def names(module: str, level: int) -> str:
    """Returns the entries of what a module's `__all__` names, as headings of a level."""
    folder = ROOT / Path(*module.split("."))
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    return "\n".join(
        f"::: {module}.{name}\n    options:\n      heading_level: {level}\n"
        for name in public(path)
        if name != "__version__"
    )


def public(path: Path) -> list[str]:
    """Returns what a file's `__all__` lists; nothing if it has none."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            found: list[str] = ast.literal_eval(node.value)
            return found
    return []
