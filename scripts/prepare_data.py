r"""Turns text into a tokenised data set that training and evaluation read.

  python scripts/prepare_data.py --input PATH... --tokenizer byte|FILE|CHECKPOINT|train \
      --output DIR

Inputs are directories (searched for text, source files and records), globs, files, or `stdlib:`
(the sources of this Python's standard library). Text and source files are one document each;
.jsonl, .json (lines or an array) and .parquet hold one document a record; all may be compressed by
gzip, zstd, xz or bzip2. `DOMAIN=PATH` names the domain, by which mixtures are weighted and
evaluation is reported. What cannot be read is skipped, counted and listed.

  python scripts/prepare_data.py --input stdlib: --tokenizer byte --output data/stdlib
  python scripts/prepare_data.py --input code=~/src books=books/*.txt --input web=web.jsonl.zst \
      --exclude node_modules --deduplicate exact --tokenizer train --vocab_size 32768 \
      --held_out 0.01 --output data/mine

The tokenizer is `byte`; a Hugging Face tokenizer.json, or a directory with one (or tokenizer.model,
or vocab.json and merges.txt) and what belongs to it; that of a run or a model, with its boundary
tokens, by its directory; or `train`: a byte-level BPE of --vocab_size tokens, trained on the
training split. Documents are held out by a hash of their text: copies stay on one side, and the
choice is stable when files are added.

The outcome does not depend on the number of workers. An interrupted run leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath

from modbrick import command_line
from modbrick.data.preparation.flags import PreparationFlags
from modbrick.data.preparation.preparation import prepare
from modbrick.data.preparation.terminal import preparation_progress, print_report
from modbrick.data.tokenizers.tokenizer import TokenizerIdentity
from modbrick.paths import expanded
from modbrick.schema import from_mapping

FLAGS = PreparationFlags()


def main(argv: Sequence[str]) -> None:
    """Prepares the data set that the flags describe, and reports on it."""
    command_line.interrupt_at_sigterm()
    tokenizer, identity = tokenizer_of(expanded(FLAGS.tokenizer.value))
    config = FLAGS.config(argv[1:], tokenizer, identity)
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
