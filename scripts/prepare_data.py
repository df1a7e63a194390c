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

To train or evaluate a model that there is, name its directory as the tokenizer: its boundary tokens
come with it.

The outcome does not depend on the number of workers. An interrupted run leaves nothing behind.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from absl import flags
from etils import epath
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from modbrick.command_line import run
from modbrick.data.preparation.preparation import PreparationConfig, Report, prepare
from modbrick.data.preparation.sources import TEXT_EXTENSIONS, Input
from modbrick.data.preparation.work_units import ReadingOptions
from modbrick.data.tokenizers.tokenizer import TokenizerIdentity
from modbrick.errors import InputError
from modbrick.schema import from_mapping

_INPUT = flags.DEFINE_multi_string(
    "input",
    [],
    "PATH or DOMAIN=PATH: a directory, a glob, a file, or stdlib:. Several may follow each "
    "other, and "
    "the flag may be repeated.",
)
_HELD_OUT_INPUT = flags.DEFINE_multi_string(
    "held_out_input", [], "Like --input, but all of it is held out. Repeat the flag for several."
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer",
    "byte",
    "byte; or a Hugging Face tokenizer.json or a directory with one; or the directory of a run or "
    "a model, with its boundary tokens; or train: a byte-level BPE trained on the training split "
    "(--vocab_size).",
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", None, "Tokens of a tokenizer to be trained, at least 257."
)
_TRAINING_BYTES = flags.DEFINE_integer(
    "tokenizer_training_bytes", 256 << 20, "About so many bytes of text train the tokenizer."
)
_START_TOKEN = flags.DEFINE_string(
    "start_token",
    "auto",
    "Token of a tokenizer.json put before each document; auto: its usual special token, else "
    "the end "
    "token; none.",
)
_END_TOKEN = flags.DEFINE_string(
    "end_token",
    "auto",
    "Token of a tokenizer.json put after each document; auto: its usual special token; none.",
)
_OUTPUT = flags.DEFINE_string("output", None, "Directory of the data set to be made.")
_TEXT_FIELD = flags.DEFINE_string("text_field", "text", "Field or column with the text of records.")
_DOMAIN = flags.DEFINE_string(
    "domain", None, "Domain of inputs that name none; without it, made from each input's path."
)
_HELD_OUT = flags.DEFINE_float(
    "held_out",
    0.05,
    "Share of the documents that is held out: by a hash of the file's path within its input "
    "(and the "
    "record's number), so stable when files are added.",
)
_SEPARATOR = flags.DEFINE_string(
    "document_separator",
    None,
    "Cut text files into documents at this string, for instance <|endoftext|>.",
)
_EXTENSIONS = flags.DEFINE_list(
    "extensions",
    [],
    "More extensions to read as text in directories and globs, beside " + " ".join(TEXT_EXTENSIONS),
)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Processes; 0: as many as help. Changes nothing else."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a data set that --output holds.")

_SHOWN = 20


def main(argv: Sequence[str]) -> None:
    """Prepares the data set that the flags describe, and reports on it."""
    signal.signal(signal.SIGTERM, _interrupt)
    if not _OUTPUT.value:
        raise InputError("no --output: name the directory of the data set to be made")
    inputs = [Input.parse(os.path.expanduser(text)) for text in (*_INPUT.value, *argv[1:])]
    inputs += [Input.parse(os.path.expanduser(text), "held_out") for text in _HELD_OUT_INPUT.value]
    extensions = [f".{name.lstrip('.').lower()}" for name in _EXTENSIONS.value]
    tokenizer, identity = _tokenizer(_TOKENIZER.value)
    config = PreparationConfig(
        inputs=tuple(inputs),
        tokenizer=tokenizer,
        identity=identity,
        output=os.path.expanduser(_OUTPUT.value),
        vocabulary=_VOCAB_SIZE.value,
        training_bytes=_TRAINING_BYTES.value,
        reading=ReadingOptions(_TEXT_FIELD.value, _HELD_OUT.value, _SEPARATOR.value),
        domain=_DOMAIN.value,
        extensions=(*TEXT_EXTENSIONS, *extensions),
        start_token=_token(_START_TOKEN.value),
        end_token=_token(_END_TOKEN.value),
        workers=_WORKERS.value,
        overwrite=_OVERWRITE.value,
    )
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[documents]} documents"),
        TimeRemainingColumn(),
        console=console,
    )
    stages: dict[str, TaskID] = {}

    def progress(stage: str, done: int, total: int, documents: int) -> None:
        bar.start()
        if stage not in stages:
            stages[stage] = bar.add_task(stage, total=total, documents=0)
        bar.update(stages[stage], completed=done, documents=documents)

    try:
        report = prepare(config, progress)
    finally:
        bar.stop()
    _print_report(report, config)


def _tokenizer(source: str) -> tuple[str, TokenizerIdentity | None]:
    """Returns where the tokenizer lies, and what it must be if it is that of a model."""
    if not (epath.Path(source) / "checkpoints").is_dir():
        return source, None
    from modbrick.checkpoints import describe, tokenizer_file  # two seconds that others are spared

    identity = describe(source).metadata.tokenizer
    known = from_mapping(TokenizerIdentity, identity) if identity else None
    return str(tokenizer_file(source)), known


def _token(name: str) -> str | None:
    return None if name == "none" else name


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _print_report(report: Report, config: PreparationConfig) -> None:
    console = Console(width=None if sys.stdout.isatty() else 100)
    table = Table("split", "domain", "documents", "tokens", "bytes", "bytes/token", box=None)
    for split, domains in report.manifest.splits.items():
        for name, domain in domains.items():
            ratio = domain.bytes / max(domain.tokens, 1)
            counts = (domain.documents, domain.tokens, domain.bytes)
            table.add_row(split, name, *(f"{count:,}" for count in counts), f"{ratio:.2f}")
    console.print(table)
    if report.skipped:
        total = sum(count for _, _, count in report.skipped)
        console.print(f"skipped: {total:,} files or records", markup=False)
        for path, reason, count in report.skipped[:_SHOWN]:
            console.print(f"  {path}: {reason} ({count:,})", markup=False, soft_wrap=True)
        if len(report.skipped) > _SHOWN:
            console.print(f"  ... all of them are in {config.output}/sources.jsonl", markup=False)
    if report.left_aside:
        aside = ", ".join(f"{count:,} {ext}" for ext, count in sorted(report.left_aside.items()))
        console.print(f"left aside, by extension: {aside}", markup=False, soft_wrap=True)
    if not report.manifest.splits["held_out"]:
        console.print(
            "no document is held out: evaluation needs a larger --held_out or --held_out_input",
            markup=False,
        )
    identity = report.manifest.tokenizer
    rate = report.source_bytes / 1e6 / max(report.seconds, 1e-9)
    training = f", of it {report.training_seconds:.1f} s training the tokenizer"
    console.print(
        f"{config.output}: tokenizer {identity.name}, vocabulary {identity.vocabulary:,}; "
        f"{report.source_bytes / 1e6:.1f} MB in {report.seconds:.1f} s ({rate:.1f} MB/s)"
        + (training if config.tokenizer == "train" else ""),
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    run(main, positional="PATH")
