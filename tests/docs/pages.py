"""The code blocks of the pages, run as a reader would: in order, in one empty directory a page.

Blocks are `bash` (commands that start with python), `python` (they share names) or `text` (not
run). A page may hold hidden blocks, which its readers do not see, to bring what the text takes for
granted:

    <!--- invisible-code-block: python
    shutil.copytree("scripts", "my_texts")
    smaller["scripts/train.py"] = "--config.training.steps=2"
    --->

`smaller` has what the tests add to a command, so that what takes a reader minutes takes a test
seconds.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from sybil import Example
from sybil.document import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from tests import programs

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(path for path in ROOT.glob("*.md") if path.name != "CHANGELOG.md"),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SHOWN = ("scripts", "configs", "docs", "tests")  # folders of the repository that commands name


def name_of(path: Path) -> str:
    """Returns the path of a page in the repository."""
    return path.relative_to(ROOT).as_posix()


def title(example: Example) -> str:
    """Returns a block's first line, by which lists name it."""
    return str(example.parsed).strip().splitlines()[0]


def is_hidden(example: Example) -> bool:
    """Returns whether readers do not see a block."""
    return example.document.text.startswith("<!-", example.region.start)


def commands(text: str) -> Iterator[list[str]]:
    """Yields the arguments of each command of a block, behind the word python."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert words[0] == "python", f"not run by the tests: {line}"
            assert not {"$", ">", "|"} & set(line), f"left to a shell: {line}"
            yield words[1:]


def run_python(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a script, or `-m` and a module, in the current directory."""
    line = list(arguments)
    if line[0] == "-m":
        module = f"import runpy; runpy.run_module({line[1]!r}, run_name='__main__', alter_sys=True)"
        line = ["-c", module, *line[2:]]
    return programs.run(line, cwd=Path.cwd(), environment=programs.QUICK, timeout=1800)


def run_shell(example: Example) -> None:
    """Runs a block of commands; fails with what they said."""
    smaller = example.namespace["smaller"]
    for arguments in commands(str(example.parsed)):
        more = shlex.split(smaller.get(arguments[0], ""))
        run = run_python([*arguments, *more])
        assert run.returncode == 0, (
            f"{example.path}:{example.line}: status {run.returncode} of "
            f"python {shlex.join([*arguments, *more])}\n{run.stdout[-1000:]}\n{run.stderr[-3000:]}"
        )


PARSERS = (
    CodeBlockParser("bash", run_shell),
    CodeBlockParser("python", PythonEvaluator()),
)


def parse(path: Path) -> Document:
    """Reads a page."""
    return Document.parse(str(path), *PARSERS)


def run_page(path: Path, leave_out: Collection[str]) -> None:
    """Runs a page's blocks in the current directory, but for those with these titles."""
    for folder in SHOWN:
        Path(folder).symlink_to(ROOT / folder)
    document = parse(path)
    document.namespace |= {"smaller": {}, "shutil": shutil, "Path": Path}
    for example in document.examples():
        if title(example) not in leave_out:
            example.evaluate()
