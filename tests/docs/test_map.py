"""The map names what is there."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT

FOLDERS = "|".join(("modbrick", "pallas_kernels", "configs", "scripts", "tools", "docs", "tests"))


@pytest.mark.parametrize("page", ["WORKSPACE.md", "CONTRIBUTING.md", "README.md"])
def test_every_path_on_the_page_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text)
    assert not [path for path in paths if not (ROOT / path).exists() and "NAME" not in path]


def test_what_the_map_promises_to_find_in_a_minute_is_there() -> None:
    table = (ROOT / "WORKSPACE.md").read_text(encoding="utf-8").split("## Rooms")[0]
    found = re.findall(r"(?m)^\| .* \| `([\w./]+)`(?:, `(?:\w+\.)?(\w+)`)?", table)
    assert len(found) >= 6
    for path, name in found:
        files = [ROOT / path] if path.endswith(".py") else sorted((ROOT / path).rglob("*.py"))
        defined = re.compile(rf"(?m)^ *(?:def|class) {name}\b" if name else "")
        assert any(defined.search(file.read_text(encoding="utf-8")) for file in files), path


def test_every_room_is_on_the_map() -> None:
    rooms = (ROOT / "WORKSPACE.md").read_text(encoding="utf-8").split("## How data flows")[0]
    for package in ("modbrick", "pallas_kernels"):
        folders = [
            path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()
        ]
        missing = [name for name in folders if f"`{package}/{name}/`" not in rooms]
        assert not missing, f"{package}: {missing}"
