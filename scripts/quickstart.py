"""From this Python's own library to a trained, evaluated, talking ModuleFormer, in minutes.

    make quickstart

Runs the project's other scripts one after the other, shows each command, and compares the model
with gzip.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from modbrick import command_line
from modbrick.analysis.report import write_report
from modbrick.paths import expanded

SCRIPTS = Path(__file__).resolve().parent
CONFIG = os.path.relpath(SCRIPTS.parent / "configs" / "quickstart.py")
PROMPT = "def read_file(path):\n"

DIRECTORY = flags.DEFINE_string("directory", "runs/quickstart", "Where everything goes.")
STEPS = flags.DEFINE_integer("steps", None, "Training steps; none: as the config says.")

console = Console(stderr=True)


def main(argv: Sequence[str]) -> None:
    """Runs the quickstart."""
    del argv
    start, root = time.perf_counter(), Path(expanded(DIRECTORY.value))
    data, run = root / "data", root / "run"
    if not (data / "dataset.json").exists():
        title("1  The data: the sources of Python's standard library")
        vocabulary = ("--tokenizer=train", "--vocab_size=2048")
        script("prepare_data.py", "--input=stdlib:", *vocabulary, f"--output={data}")
    title("2  Pretraining a ModuleFormer")
    changes = [f"--config.data.path={data}"]
    if STEPS.value is not None:
        changes += [f"--config.training.steps={STEPS.value}"]
        changes += [f"--config.optimizer.schedule.warm_up_steps={STEPS.value // 10}"]
    script("train.py", f"--config={CONFIG}", f"--workdir={run}", *changes)
    title("3  Evaluation on files it has never seen")
    evaluated = script("evaluate.py", f"--checkpoint={run}", f"--data={data}")
    title("4  It writes")
    text = ("--max_new_tokens=120", "--seed=1")
    sample = script("generate.py", f"--checkpoint={run}", f"--prompt={PROMPT}", *text)
    console.print(sample, highlight=False, markup=False)
    evaluation = json.loads(evaluated.splitlines()[-1])
    report = write_report(root, evaluation, sample, time.perf_counter() - start)
    title("Done")
    console.print(report, highlight=False, markup=False, soft_wrap=True)  # to copy commands from


def title(text: str) -> None:
    """Draws a heading."""
    console.rule(f"[bold]{text}", align="left")


def script(name: str, *arguments: str) -> str:
    """Runs one of the project's scripts, shows the command, and returns its standard output."""
    shown = shlex.join(["python", f"scripts/{name}", *arguments])
    console.print(f"$ {shown}", style="cyan", highlight=False, markup=False, soft_wrap=True)
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)  # the script has said why
    return done.stdout


if __name__ == "__main__":
    command_line.run(main)
