"""Evaluates a model on held-out text: loss, perplexity and bits per byte by domain.

    python scripts/evaluate.py --checkpoint=DIR --data=DIR [--sequence_length=N --context=N
    --attention_tolerance=T --json=FILE --bricks=FILE,FILE]

The model is that of a run, or of another library: a directory with config.json and weights, or a
GGUF file. Every held-out token counts once; the last line of standard output is one JSON object.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags
from rich.console import Console

from modbrick import command_line
from modbrick.analysis.evaluation_table import evaluation_table
from modbrick.data import Dataset, check_vocabulary, evaluation_batches
from modbrick.data.dataset import Split
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.hardware import enable_compilation_cache
from modbrick.models import open_model
from modbrick.schema import json_text
from modbrick.training.evaluation import evaluate, evaluation_step

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Directory of a model, or a GGUF file.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint of a run; none: the newest.")
BRICKS = flags.DEFINE_list("bricks", [], "Files of bricks to plug in; all apply, in order.")
BASE = flags.DEFINE_enum("allow_base", "same", ["same", "any"], "Weights that bricks are for.")
DATA = flags.DEFINE_string("data", None, "Directory of a prepared data set.")
SPLIT = flags.DEFINE_enum("split", "held_out", ["held_out", "train"], "Which documents.")
LENGTH = flags.DEFINE_integer("sequence_length", None, "Of rows; none: the model's context.", 1)
CONTEXT = flags.DEFINE_integer("context", 0, "Tokens seen again where a document is cut.")
BATCH = flags.DEFINE_integer("batch_size", 16, "Rows at a time.", lower_bound=1)
MAX_TOKENS = flags.DEFINE_integer("max_tokens", None, "About how many to use; none: all.", 1)
TOLERANCE = flags.DEFINE_float(
    "attention_tolerance", 0.0, "Early exit of stick-breaking attention, below 1; 0: off, exact."
)
JSON = flags.DEFINE_string("json", None, "File for the result too.")


def main(argv: Sequence[str]) -> None:
    """Evaluates a checkpoint on a data set."""
    del argv
    if not CHECKPOINT.value or not DATA.value:
        raise InputError("name a model and data of its tokenizer: --checkpoint=DIR --data=DIR")
    command_line.check_output(JSON)
    execution = ExecutionConfig(attention_tolerance=TOLERANCE.value)
    enable_compilation_cache()
    dataset = Dataset.open(DATA.value)
    split: Split = "train" if SPLIT.value == "train" else "held_out"
    stored = open_model(CHECKPOINT.value, STEP.value)
    stored = stored.with_bricks(BRICKS.value, allow_base=BASE.value)
    if identity := stored.tokenizer_identity():
        dataset.tokenizer_identity.require_same(identity, DATA.value, CHECKPOINT.value)
    check_vocabulary(dataset, stored.config.vocabulary)
    batches = evaluation_batches(
        dataset,
        sequence_length=LENGTH.value or stored.config.context,
        batch_size=BATCH.value,
        split=split,
        context=CONTEXT.value,
        max_tokens=MAX_TOKENS.value,
    )
    sets = stored.brick_sets(batches.domains)
    step = evaluation_step(stored.config, execution, bricks=stored.bricks, brick_sets=sets)
    parameters = stored.read_all()
    with command_line.progress_bars() as bar:
        result = evaluate(step, parameters, batches, progress=bar("evaluating", len(batches)))
    assert result is not None, "nothing asks it to stop"
    Console(stderr=True).print(evaluation_table(result))
    record = json_text({"step": stored.step, "split": SPLIT.value, **result.to_mapping()})
    print(record)
    command_line.write_output(JSON, record)


if __name__ == "__main__":
    command_line.run(main)
