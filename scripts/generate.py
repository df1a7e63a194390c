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
from typing import Any

from absl import flags
from etils import epath

from modbrick import command_line, load_model
from modbrick.checkpoints import describe, tokenizer_file
from modbrick.data import Tokenizer, load_tokenizer
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.hardware import enable_compilation_cache
from modbrick.inference import GREEDY, GenerationResult, SamplingConfig, TextStream, generate

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

    tokenizer = _tokenizer(CHECKPOINT.value)
    start, end = tokenizer.start_of_document, tokenizer.end_of_document
    prompts = [
        [*([] if start is None else [start]), *ids.tolist()]
        for ids in tokenizer.encode_batch(texts)
    ]
    execution = ExecutionConfig(attention_tolerance=TOLERANCE.value)
    model = load_model(CHECKPOINT.value, STEP.value, execution=execution)

    streams = [TextStream(tokenizer, prompt, STOP.value) for prompt in prompts]
    printer = None if JSON.value else Printer(texts)
    pieces: list[list[str]] = [[] for _ in prompts]

    def show(index: int, text: str, *, last: bool = False) -> None:
        pieces[index].append(text)
        if printer is not None:
            printer.write(index, text, last=last)

    def on_tokens(index: int, tokens: list[int]) -> bool:
        stream = streams[index]
        text = stream.push(token for token in tokens if token != end)
        show(index, text + (stream.close() if end in tokens else ""), last=stream.stopped)
        return stream.stopped

    began = time.perf_counter()
    result = generate(
        model,
        prompts,
        max_new_tokens=MAX_NEW_TOKENS.value,
        sampling=sampling,
        stop_tokens=[] if end is None else [end],
        seed=SEED.value,
        on_tokens=on_tokens,
    )
    seconds = time.perf_counter() - began
    for index, stream in enumerate(streams):
        if not stream.stopped:
            show(index, stream.close(), last=True)
    if JSON.value:
        print(json.dumps(_record(texts, ["".join(p) for p in pieces], result, seconds)))
    else:
        count = sum(map(len, result.tokens))
        reasons = ", ".join(result.finish_reasons)
        print(
            f"{count} tokens in {seconds:.1f} s, compilation included ({reasons})", file=sys.stderr
        )


class Printer:
    """Prints texts one after the other, the first unfinished one live."""

    def __init__(self, prompts: Sequence[str]):
        self._waiting = list(prompts)
        self._finished = [False] * len(prompts)
        self._current = 0
        self._begin()

    def write(self, index: int, text: str, *, last: bool) -> None:
        """Takes the next piece of a text; `last` ends it."""
        self._waiting[index] += text
        self._finished[index] = last
        if index == self._current:
            self._flush()
        while self._current < len(self._finished) and self._finished[self._current]:
            print(flush=True)
            self._current += 1
            self._begin()

    def _begin(self) -> None:
        if self._current < len(self._waiting):
            if len(self._waiting) > 1:
                print(f"--- {self._current + 1} of {len(self._waiting)}", flush=True)
            self._flush()

    def _flush(self) -> None:
        print(self._waiting[self._current], end="", flush=True)
        self._waiting[self._current] = ""


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


def _tokenizer(checkpoint: str) -> Tokenizer:
    """Loads the checkpoint's tokenizer and makes sure that it fits the model."""
    metadata = describe(checkpoint, STEP.value).metadata
    tokenizer = load_tokenizer(str(tokenizer_file(checkpoint)), identity=metadata.tokenizer or None)
    if tokenizer.vocabulary > metadata.model.vocabulary:
        raise InputError(
            f"the tokenizer of {checkpoint} has {tokenizer.vocabulary} tokens, its model only "
            f"{metadata.model.vocabulary}"
        )
    return tokenizer


def _record(
    prompts: Sequence[str], texts: Sequence[str], result: GenerationResult, seconds: float
) -> dict[str, Any]:
    sequences = [
        {
            "prompt": p,
            "text": t,
            "tokens": ids,
            "finish_reason": reason,
            "log_probabilities": scores,
        }
        for p, t, ids, reason, scores in zip(
            prompts,
            texts,
            result.tokens,
            result.finish_reasons,
            result.log_probabilities,
            strict=True,
        )
    ]
    return {"sequences": sequences, "seconds": seconds}


if __name__ == "__main__":
    command_line.run(main)
