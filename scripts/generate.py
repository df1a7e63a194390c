"""Continues texts with a model, printing each as it comes.

    python scripts/generate.py --checkpoint=DIR --prompt=TEXT [--prompt=TEXT ...]
    [--prompt_file=FILE] [--max_new_tokens=N --temperature=T --top_k=K --top_p=P | --greedy]
    [--seed=N --stop=TEXT --attention_tolerance=T --json]

Several prompts run as one batch. Prompt i is drawn with seed + i, so that what it gets does not
depend on the others. Standard output gets prompts and continuations, or with --json one JSON object
as its last line; standard error the rest.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from absl import flags
from etils import epath

from modbrick import command_line, load_model
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.hardware import enable_compilation_cache
from modbrick.inference import GREEDY, SamplingConfig
from modbrick.inference.continuation import checkpoint_tokenizer, continue_texts
from modbrick.inference.printing import Printer

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's or a model's directory.")
STEP = flags.DEFINE_integer("step", None, "Which checkpoint of a run; none: the newest.")
PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "Text to continue; may be repeated, and empty where documents have a start token."
)
PROMPT_FILE = flags.DEFINE_multi_string(
    "prompt_file", [], "A file whose whole text is one more prompt."
)
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 200, "At most so many for each prompt.")
TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "Divides the logits; 0: as --greedy.")
TOP_K = flags.DEFINE_integer("top_k", None, "Draw from the k likeliest tokens only.")
TOP_P = flags.DEFINE_float(
    "top_p", None, "Draw from the likeliest tokens that together reach this probability only."
)
GREEDILY = flags.DEFINE_bool("greedy", False, "Always take the likeliest token.")
TOLERANCE = flags.DEFINE_float(
    "attention_tolerance", 0.0, "Early exit of stick-breaking attention, below 1; 0: off, exact."
)
SEED = flags.DEFINE_integer("seed", 0, "Of the draws.")
STOP = flags.DEFINE_multi_string(
    "stop", [], "Text that ends a continuation and is left out; the end of a document always does."
)
JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of text.")


def main(argv: Sequence[str]) -> None:
    """Continues the prompts that the flags give."""
    del argv
    if not CHECKPOINT.value:
        raise InputError("name a model: --checkpoint=DIR")
    texts = [*PROMPT.value, *map(_read, PROMPT_FILE.value)]
    if not texts:
        raise InputError("name a text to continue: --prompt=TEXT or --prompt_file=FILE")
    sampling = _sampling()
    enable_compilation_cache()
    tokenizer = checkpoint_tokenizer(CHECKPOINT.value, STEP.value)
    execution = ExecutionConfig(attention_tolerance=TOLERANCE.value)
    model = load_model(CHECKPOINT.value, STEP.value, execution=execution)

    began = time.perf_counter()
    continuation = continue_texts(
        model,
        tokenizer,
        texts,
        max_new_tokens=MAX_NEW_TOKENS.value,
        sampling=sampling,
        seed=SEED.value,
        stop=STOP.value,
        on_text=None if JSON.value else Printer(texts).write,
    )
    seconds = time.perf_counter() - began
    if JSON.value:
        print(json.dumps({"sequences": continuation.to_mapping(), "seconds": seconds}))
        return
    count = sum(map(len, continuation.result.tokens))
    reasons = ", ".join(continuation.result.finish_reasons)
    summary = f"{count} tokens in {seconds:.1f} s, compilation included ({reasons})"
    print(summary, file=sys.stderr)


def _sampling() -> SamplingConfig:
    if not GREEDILY.value:
        return SamplingConfig(TEMPERATURE.value, TOP_K.value, TOP_P.value)
    for name in ("temperature", "top_k", "top_p"):
        if flags.FLAGS[name].present:
            raise InputError(f"--greedy draws nothing: leave out --{name}, or --greedy")
    return GREEDY


def _read(path: str) -> str:
    try:
        return epath.Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompt_file {path} cannot be read as UTF-8 text ({error})") from error


if __name__ == "__main__":
    command_line.run(main)
