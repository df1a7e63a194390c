"""Continues texts with a model, printing each as it comes.

    python scripts/generate.py --checkpoint=DIR --prompt=TEXT [--prompt=TEXT ...]
    [--greedy --max_new_tokens=N --stop=TEXT --special_tokens --bricks=FILE,FILE --json ...]

Prompt i is drawn with seed + i, so that what it gets does not depend on the others; it may be empty
where documents have a start token. A continuation also ends with its document. Standard output gets
prompts and continuations, or with --json one JSON object as its last line; standard error the rest.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from absl import flags

from modbrick import command_line
from modbrick.bricks.features import refuse_blind
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.hardware import enable_compilation_cache
from modbrick.inference import GREEDY, SamplingConfig
from modbrick.inference.continuation import continue_texts
from modbrick.inference.printing import Printer
from modbrick.models import open_model

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Directory of a model, or a GGUF file.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint of a run; none: the newest.")
BRICKS = flags.DEFINE_list("bricks", [], "Files of bricks to plug in; all apply, in order.")
BASE = flags.DEFINE_enum("allow_base", "same", ["same", "any"], "Weights that bricks are for.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "Text to continue; may be repeated.")
PROMPT_FILE = flags.DEFINE_multi_string("prompt_file", [], "A file: its text is one more prompt.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 200, "At most so many for each prompt.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Divides the logits; 0: as --greedy.")
TOP_K = flags.DEFINE_integer("top_k", None, "Draw from the k likeliest tokens only.")
TOP_P = flags.DEFINE_float("top_p", None, "Draw from the likeliest that reach this probability.")
GREEDILY = flags.DEFINE_bool("greedy", False, "Always take the likeliest token.")
TOLERANCE = flags.DEFINE_float("attention_tolerance", 0.0, "Early exit, below 1; 0: off, exact.")
SEED = flags.DEFINE_integer("seed", 0, "Of the draws.")
SPECIAL = flags.DEFINE_bool("special_tokens", False, "Prompts may name special tokens.")
STOP = flags.DEFINE_multi_string("stop", [], "Text that ends a continuation and is left out.")
JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of text.")


def main(argv: Sequence[str]) -> None:
    """Continues the prompts that the flags give."""
    del argv
    if not CHECKPOINT.value:
        raise InputError("name a model: --checkpoint=DIR")
    if not (texts := [*PROMPT.value, *command_line.read_texts(PROMPT_FILE)]):
        raise InputError("name a text to continue: --prompt=TEXT or --prompt_file=FILE")
    command_line.check_alone(GREEDILY, TEMPERATURE, TOP_K, TOP_P, because="draws nothing")
    draw = SamplingConfig(TEMPERATURE.value, TOP_K.value, TOP_P.value)
    enable_compilation_cache()
    stored = open_model(CHECKPOINT.value, STEP.value)
    stored = stored.with_bricks(BRICKS.value, allow_base=BASE.value)
    refuse_blind(stored.bricks)
    tokenizer = stored.tokenizer()
    model = stored.load(execution=ExecutionConfig(attention_tolerance=TOLERANCE.value))
    continuation = continue_texts(
        model,
        tokenizer,
        texts,
        max_new_tokens=MAX_NEW_TOKENS.value,
        sampling=GREEDY if GREEDILY.value else draw,
        seed=SEED.value,
        stop=STOP.value,
        special_tokens=SPECIAL.value,
        on_text=None if JSON.value else Printer(texts).write,
    )
    if JSON.value:
        print(json.dumps({"sequences": continuation.to_mapping(), "seconds": continuation.seconds}))
    else:
        print(continuation.summary(), file=sys.stderr)


if __name__ == "__main__":
    command_line.run(main)
