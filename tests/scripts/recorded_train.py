"""`scripts/train.py` that also notes which rows each process trains on, in `DIR/rows.PROCESS`.

python recorded_train.py DIR FLAGS...
"""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
from pathlib import Path

import jax

from modbrick.data.batches import Batch, TrainingBatches

next_batch = TrainingBatches.__next__


def recorded(batches: TrainingBatches) -> Batch:
    """Notes the number in the plan and a hash of each row that is read."""
    first = batches.get_state()
    batch = next_batch(batches)
    with (Path(directory) / f"rows.{jax.process_index()}").open("a") as file:
        for index, row in enumerate(batches.rows):
            digest = hashlib.sha256()
            for name in sorted(batch):
                digest.update(batch[name][index].tobytes())
            file.write(json.dumps([first + row, digest.hexdigest()]) + "\n")
    return batch


if __name__ == "__main__":
    directory = sys.argv.pop(1)
    setattr(TrainingBatches, "__next__", recorded)  # noqa: B010
    runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "train.py"), run_name="__main__")
