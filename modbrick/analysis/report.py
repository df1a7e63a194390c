"""Report on a run that has ended: pictures, a comparison with gzip, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modbrick.analysis.compression import compare_with_gzip
from modbrick.analysis.pictures import draw_expert_load, draw_loss
from modbrick.data import Dataset
from modbrick.schema import json_text
from modbrick.training.observe.metrics import read_metrics

_WRITTEN = """
{root}/run              checkpoints, metrics.jsonl, TensorBoard events
{root}/data             the tokenised data set
{root}/sample.txt       what it wrote
{root}/loss.png         training and held-out loss
{root}/expert_load.png  which expert works how much, by layer

Try next:
  python scripts/generate.py --checkpoint={root}/run --prompt='import '
  python -m modbrick summary {root}/run
  python scripts/prepare_data.py --input YOUR/TEXT --tokenizer train --vocab_size 2048 --output data
  python scripts/train.py --config=configs/quickstart.py --config.data.path=data --workdir=run"""


def write_report(root: Path, evaluation: Mapping[str, Any], sample: str, seconds: float) -> str:
    """Writes pictures, a sample and figures of a run beside it, and returns a text for people.

    Args:
      root: local directory, which holds the run in `run` and its data set in `data`.
      evaluation: of the run on held-out text, as `scripts/evaluate.py` prints it.
      sample: what it wrote.
      seconds: that everything took.
    """
    compared = compare_with_gzip(evaluation, Dataset.open(str(root / "data")))
    draw_loss(read_metrics(str(root / "run")), str(root / "loss.png"))
    draw_expert_load(evaluation["routers"], str(root / "expert_load.png"))
    (root / "sample.txt").write_text(sample)
    record = {
        "model": evaluation,
        "gzip_bits_per_byte": compared.gzip_bits_per_byte,
        "seconds": seconds,
    }
    (root / "result.json").write_text(json_text(record) + "\n")
    taken = f"time            {seconds / 60:.1f} minutes"
    return "\n".join([*compared.lines(), taken, _WRITTEN.format(root=root)])
