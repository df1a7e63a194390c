r"""Turns text into a tokenised data set that training and evaluation read.

  python scripts/prepare_data.py --input PATH... --tokenizer byte|FILE|CHECKPOINT|train \
      --output DIR

Inputs are directories (searched for text, source files and records), globs, files, or `stdlib:`
(the sources of this Python's standard library). Text and source files are one document each;
.jsonl, .jsonl.gz, .jsonl.zst and .parquet hold one document a record. `DOMAIN=PATH` names the
domain, by which mixtures are weighted and evaluation is reported. Files that are not UTF-8 text are
skipped, counted and listed.

  python scripts/prepare_data.py --input stdlib: --tokenizer byte --output data/stdlib
  python scripts/prepare_data.py --input code=~/src books=books/*.txt --input web=web.jsonl.zst \
      --tokenizer train --vocab_size 32768 --held_out 0.01 --output data/mine

The tokenizer is `byte`; a Hugging Face tokenizer.json, or a directory with one (or tokenizer.model,
or vocab.json and merges.txt) and what belongs to it; that of a run or a model, with its boundary
tokens, by its directory; or `train`: a byte-level BPE of --vocab_size
tokens, trained on the training split. Documents are held out by a hash of the file's path within
its input (and the record's number), so that the choice is stable when files are added.

The outcome does not depend on the number of workers. An interrupted run leaves nothing behind.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from absl import flags
from etils import epath

from modbrick import command_line
from modbrick.data.preparation.preparation import PreparationConfig, prepare
from modbrick.data.preparation.sources import TEXT_EXTENSIONS, Input, text_extensions
from modbrick.data.preparation.terminal import preparation_progress, print_report
from modbrick.data.preparation.work_units import ReadingOptions
from modbrick.data.tokenizers.tokenizer import TokenizerIdentity
from modbrick.errors import InputError
from modbrick.schema import from_mapping

INPUT = flags.DEFINE_multi_string("input", [], "PATH or DOMAIN=PATH; several may follow.")
HELD_OUT_INPUT = flags.DEFINE_multi_string("held_out_input", [], "Input that is all held out.")
TOKENIZER = flags.DEFINE_string(
    "tokenizer", "byte", "byte; train; a tokenizer.json, or the directory of one or of a model."
)
VOCAB_SIZE = flags.DEFINE_integer("vocab_size", None, "Tokens of one to be trained, 257 or more.")
TRAINING_BYTES = flags.DEFINE_integer(
    "tokenizer_training_bytes", 256 << 20, "About so many bytes of text train the tokenizer."
)
START_TOKEN = flags.DEFINE_string(
    "start_token", "auto", "Put before documents; auto: what the tokenizer itself puts; none."
)
END_TOKEN = flags.DEFINE_string(
    "end_token", "auto", "Put after documents; auto: what its files name, or its usual one; none."
)
OUTPUT = flags.DEFINE_string("output", None, "Directory of the data set to be made.")
TEXT_FIELD = flags.DEFINE_string("text_field", "text", "Field or column with the text of records.")
DOMAIN = flags.DEFINE_string("domain", None, "Of inputs that name none; else made from the path.")
HELD_OUT = flags.DEFINE_float("held_out", 0.05, "Share of the documents that is held out.")
SEPARATOR = flags.DEFINE_string(
    "document_separator", None, "Cut text files at this string, for instance <|endoftext|>."
)
EXTENSIONS = flags.DEFINE_list(
    "extensions", [], "More extensions to read as text, beside " + " ".join(TEXT_EXTENSIONS)
)
WORKERS = flags.DEFINE_integer("workers", 0, "Processes; 0: as many as help. Changes nothing else.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a data set that --output holds.")


def main(argv: Sequence[str]) -> None:
    """Prepares the data set that the flags describe, and reports on it."""
    command_line.interrupt_at_sigterm()
    if not OUTPUT.value:
        raise InputError("no --output: name the directory of the data set to be made")
    tokenizer, identity = tokenizer_of(TOKENIZER.value)
    held_out = (Input.parse(text, "held_out") for text in HELD_OUT_INPUT.value)
    config = PreparationConfig(
        inputs=(*map(Input.parse, [*INPUT.value, *argv[1:]]), *held_out),
        tokenizer=tokenizer,
        identity=identity,
        output=os.path.expanduser(OUTPUT.value),
        vocabulary=VOCAB_SIZE.value,
        training_bytes=TRAINING_BYTES.value,
        reading=ReadingOptions(TEXT_FIELD.value, HELD_OUT.value, SEPARATOR.value),
        domain=DOMAIN.value,
        extensions=text_extensions(EXTENSIONS.value),
        start_token=None if START_TOKEN.value == "none" else START_TOKEN.value,
        end_token=None if END_TOKEN.value == "none" else END_TOKEN.value,
        workers=WORKERS.value,
        overwrite=OVERWRITE.value,
    )
    with preparation_progress() as progress:
        report = prepare(config, progress)
    print_report(report, config)


def tokenizer_of(source: str) -> tuple[str, TokenizerIdentity | None]:
    """Returns where a tokenizer lies, and what it must be if it is that of a model."""
    if not (epath.Path(source) / "checkpoints").is_dir():
        return source, None
    from modbrick.checkpoints import describe, tokenizer_file  # two seconds that others are spared

    identity = describe(source).metadata.tokenizer
    known = from_mapping(TokenizerIdentity, identity) if identity else None
    return str(tokenizer_file(source)), known


if __name__ == "__main__":
    command_line.run(main, positional="PATH")
