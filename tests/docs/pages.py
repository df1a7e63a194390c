"""The code blocks of the pages, run as a reader would: in order, in one empty directory a page.

Blocks are `bash`, `python` (they share names) or `text` (not run). A page may hold hidden blocks,
which its readers do not see, to bring what the text takes for granted:

    <!--- invisible-code-block: bash
    mkdir my_texts
    smaller["scripts/train.py"]="--config.training.steps=2"
    --->

`smaller` has what the tests add to a command, so that what takes a reader minutes takes a test
seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from sybil import Example
from sybil.document import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
]
STATE = ".state"  # variables that one block sets and the next one reads

# `python` is this interpreter, with what `smaller` has for the script or module.
BEFORE = """
set -euo pipefail
declare -A smaller
[ ! -e {state} ] || . ./{state}
python() {{
  local what=$1
  [ "$what" != -m ] || what="-m $2"
  command {python} "$@" ${{smaller[$what]:-}}
}}
"""
AFTER = """
{{ declare -p smaller; export -p; }} > {state}
"""


def name_of(path: Path) -> str:
    """Returns the path of a page in the repository."""
    return path.relative_to(ROOT).as_posix()


def run_shell(example: Example) -> None:
    """Runs a block of commands; fails with what they said."""
    names = {"state": STATE, "python": sys.executable}
    script = BEFORE.format(**names) + str(example.parsed) + AFTER.format(**names)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, (
        f"{example.path}:{example.line}: status {run.returncode}\n"
        f"{example.parsed}\n{run.stdout[-1000:]}\n{run.stderr[-3000:]}"
    )


PARSERS = (
    CodeBlockParser("bash", run_shell),
    CodeBlockParser("python", PythonEvaluator()),
)


def parse(path: Path) -> Document:
    """Reads a page."""
    return Document.parse(str(path), *PARSERS)


def title(example: Example) -> str:
    """Returns a block's first line, by which lists name it."""
    return str(example.parsed).strip().splitlines()[0]


def is_hidden(example: Example) -> bool:
    """Whether readers do not see a block."""
    return example.document.text.startswith("<!-", example.region.start)


def run_page(path: Path, leave_out: Collection[str]) -> None:
    """Runs a page's blocks in the current directory, but for those with these titles."""
    for folder in ("scripts", "configs", "docs", "tests"):
        Path(folder).symlink_to(ROOT / folder)
    for example in parse(path).examples():
        if title(example) not in leave_out:
            example.evaluate()
