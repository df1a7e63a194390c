"""The public surface: listed, lazy, and the same for type checkers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import modbrick

SOURCE = Path(modbrick.__file__).read_text(encoding="utf-8")


def test_type_checkers_see_the_same_names_from_the_same_homes() -> None:
    [block] = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == modbrick._HOMES
    assert sorted(seen) == sorted(set(modbrick.__all__) - {"__version__"})


def test_dir_shows_what_is_public() -> None:
    assert set(modbrick.__all__) <= set(dir(modbrick))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        modbrick.load_modle  # noqa: B018


def test_importing_it_loads_nothing_else() -> None:
    code = (
        "import sys, modbrick, modbrick.config\n"
        "loaded = {'jax', 'flax', 'modbrick.layers', 'modbrick.data'} & set(sys.modules)\n"
        "sys.exit(' '.join(loaded) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
