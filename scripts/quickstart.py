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
from typing import Any

from absl import flags
from rich.console import Console

from modbrick import command_line
from modbrick.analysis.compression import gzip_bits_per_byte
from modbrick.analysis.pictures import draw_expert_load, draw_loss
from modbrick.data import Dataset
from modbrick.training.observe.metrics import read_metrics

SCRIPTS = Path(__file__).resolve().parent
CONFIG = SCRIPTS.parent / "configs" / "quickstart.py"
VOCABULARY = 2048
PROMPT = "def read_file(path):\n"

DIRECTORY = flags.DEFINE_string("directory", "runs/quickstart", "Where everything goes.")
STEPS = flags.DEFINE_integer("steps", None, "Training steps; none: as the config says.")

console = Console(stderr=True)


def main(argv: Sequence[str]) -> int:
    """Runs the quickstart."""
    del argv
    start = time.perf_counter()
    root = Path(DIRECTORY.value)
    data, run = root / "data", root / "run"
    steps = []
    if STEPS.value is not None:
        warm_up = f"--config.optimizer.schedule.warm_up_steps={STEPS.value // 10}"
        steps = [f"--config.training.steps={STEPS.value}", warm_up]
    if not (data / "dataset.json").exists():
        title("1  The data: the sources of Python's standard library")
        script(
            "prepare_data.py",
            "--input=stdlib:",
            "--tokenizer=train",
            f"--vocab_size={VOCABULARY}",
            f"--output={data}",
        )
    title("2  Pretraining a ModuleFormer")
    config = [
        f"--config={os.path.relpath(CONFIG)}",
        f"--config.data.path={data}",
        f"--workdir={run}",
        *steps,
    ]
    script("train.py", *config)
    title("3  Evaluation on files it has never seen")
    evaluated = script("evaluate.py", f"--checkpoint={run}", f"--data={data}")
    result = json.loads(evaluated.splitlines()[-1])
    compressed, size = gzip_bits_per_byte(Dataset.open(str(data)))
    title("4  It writes")
    sample = script(
        "generate.py",
        f"--checkpoint={run}",
        f"--prompt={PROMPT}",
        "--max_new_tokens=120",
        "--seed=1",
    )
    (root / "sample.txt").write_text(sample)
    draw_loss(read_metrics(str(run)), str(root / "loss.png"))
    draw_expert_load(result["routers"], str(root / "expert_load.png"))
    report(root, result, compressed, size, time.perf_counter() - start)
    return 0


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
    if name == "generate.py":
        console.print(done.stdout, highlight=False, markup=False)
    return done.stdout


def report(
    root: Path, result: dict[str, Any], compressed: float, size: int, seconds: float
) -> None:
    """Says how it went, where everything lies, and what to try next."""
    better = result["bits_per_byte"] < compressed
    lines = [
        f"held-out text   {result['bits_per_byte']:.3f} bits per byte, "
        f"perplexity {result['perplexity']:.2f} per token",
        f"gzip -9         {compressed:.3f} bits per byte on the same {result['documents']} files "
        f"({size:,} bytes): the model is {'better' if better else 'not better yet'}",
        f"time            {seconds / 60:.1f} minutes",
        "",
        f"{root}/run              checkpoints, metrics.jsonl, TensorBoard events",
        f"{root}/data             the tokenised data set",
        f"{root}/sample.txt       what it wrote",
        f"{root}/loss.png         training and held-out loss",
        f"{root}/expert_load.png  which expert works how much, by layer",
        "",
        "Try next:",
        f"  python scripts/generate.py --checkpoint={root}/run --prompt='import '",
        f"  python -m modbrick summary {root}/run",
        "  python scripts/prepare_data.py --input YOUR/TEXT --tokenizer train --vocab_size 2048 "
        "--output data",
        "  python scripts/train.py --config=configs/quickstart.py "
        "--config.data.path=data --workdir=run",
    ]
    title("Done")
    # Unwrapped, so that commands can be copied.
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    (root / "result.json").write_text(
        json.dumps({"model": result, "gzip_bits_per_byte": compressed, "seconds": seconds}) + "\n"
    )


if __name__ == "__main__":
    command_line.run(main)
