"""From source files to a finished data set: find, read, split, encode in parallel, write."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from modbrick.data.manifest import Manifest
from modbrick.data.preparation.duplicates import (
    Deduplication,
    left_out,
    require_minhash,
    screens_of,
)
from modbrick.data.preparation.encoding import encode
from modbrick.data.preparation.formats.kinds import TEXT_EXTENSIONS
from modbrick.data.preparation.outcome import (
    require_documents,
    require_usable,
    summarise,
)
from modbrick.data.preparation.reading import read_work_unit
from modbrick.data.preparation.sources import Input, Listing, Source, list_sources
from modbrick.data.preparation.splits import fraction_of, threshold
from modbrick.data.preparation.work_units import ReadingOptions, SourceRecord, cut_into_work_units
from modbrick.data.tokenizers.files import load_tokenizer, train_tokenizer
from modbrick.data.tokenizers.tokenizer import BYTES, Tokenizer, TokenizerIdentity
from modbrick.data.writer import DatasetWriter, check_target
from modbrick.errors import InputError
from modbrick.schema import nearest, to_mapping


@dataclass(frozen=True)
class PreparationConfig:
    """Config of a data set to be prepared.

    Attributes:
      inputs: see `Input`.
      tokenizer: `byte`, a `tokenizer.json` or a directory with one, or `train`.
      output: directory of the data set.
      vocabulary: of a tokenizer to be trained.
      training_bytes: about so many bytes of the training split train the tokenizer.
      domain: for inputs that name none.
      extensions: read as text in directories and globs.
      exclude: patterns of files and directories that a search leaves out; see `Exclusions`.
      deduplicate: what is dropped: copies of an earlier document (`exact`; see `text_digest`), or
        near copies too (`near`; see `minhash_bands`). A document that is held out by an input of
        its own is never trained on, whatever this is.
      start_token, end_token: boundary tokens by text, `auto`, or None.
      identity: what the tokenizer must be, boundary tokens included; None: anything.
      workers: processes; 0: as many as help. The outcome is the same.
      overwrite: replace a data set in `output`.
    """

    inputs: tuple[Input, ...]
    tokenizer: str
    output: str
    vocabulary: int | None = None
    training_bytes: int = 256 << 20
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    domain: str | None = None
    extensions: tuple[str, ...] = TEXT_EXTENSIONS
    exclude: tuple[str, ...] = ()
    deduplicate: Deduplication = "none"
    start_token: str | None = "auto"
    end_token: str | None = "auto"
    identity: TokenizerIdentity | None = None
    workers: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        reading = self.reading
        if not self.inputs:
            raise InputError("no --input: name a directory, a glob, a file, or stdlib:")
        if not 0 <= reading.held_out <= 1:
            raise InputError(f"--held_out must be from 0 to 1, got {reading.held_out}")
        if reading.held_out == 1 and any(item.split is None for item in self.inputs):
            raise InputError(
                "--held_out=1 leaves nothing to train on: lower it, or name text that is all held "
                "out with --held_out_input"
            )
        if reading.separator == "":
            raise InputError(
                "--document_separator is empty: name the text between documents, for instance "
                "<|endoftext|>"
            )
        if not reading.text_field:
            raise InputError("--text_field is empty: name the field with the text of records")
        if not all(self.exclude):
            raise InputError("--exclude: one of them is empty; write a pattern such as *.min.js")
        if self.deduplicate not in (known := ("none", "exact", "near")):
            remark = nearest(self.deduplicate, known)
            raise InputError(f"--deduplicate: unknown value {self.deduplicate!r}; {remark}")
        if self.workers < 0:
            raise InputError(f"--workers must be 0 (automatic) or more, got {self.workers}")
        self._check_tokenizer()

    def _check_tokenizer(self) -> None:
        if self.tokenizer != "train":
            if self.vocabulary is not None:
                raise InputError(
                    f"--vocab_size={self.vocabulary} is for --tokenizer=train; {self.tokenizer} "
                    "has its own"
                )
            return
        if self.vocabulary is None:
            raise InputError("--tokenizer=train needs --vocab_size")
        if self.vocabulary < BYTES + 1:
            raise InputError(
                f"--vocab_size: a byte-level tokenizer needs a vocabulary of at least {BYTES + 1}, "
                f"got {self.vocabulary}"
            )
        if self.training_bytes < 1:
            raise InputError(
                f"--tokenizer_training_bytes must be 1 or more, got {self.training_bytes}"
            )


@dataclass(frozen=True)
class Report:
    """Outcome of a preparation.

    Attributes:
      manifest: of the finished data set.
      skipped: files and records left out, as (file, reason, count); the reason says where the first
        of them is.
      listing: the source files, and what was not looked at.
      cut: whether a file was cut into documents, if that was asked for.
      source_bytes: size of all source files.
      training_seconds: of the tokenizer's training.
      seconds: of everything.
    """

    manifest: Manifest
    skipped: tuple[tuple[str, str, int], ...]
    listing: Listing
    cut: bool
    source_bytes: int
    training_seconds: float
    seconds: float


Progress = Callable[[str, int, int, int], None]


def prepare(config: PreparationConfig, progress: Progress | None = None) -> Report:
    """Makes a data set.

    What is wrong with a record, or with a file that was found by searching, never ends a
    preparation: it is skipped and counted.

    Args:
      config: what to prepare.
      progress: called with the stage's name, bytes of source files done and in all, documents done.

    Raises:
      InputError: bad arguments or inputs, before the work wherever that can be known; nothing is
        left behind in that case.
    """
    begin = time.monotonic()
    check_target(config.output, overwrite=config.overwrite)
    tokenizer: Tokenizer | None = None
    if config.tokenizer != "train":
        tokenizer = load_tokenizer(
            config.tokenizer,
            start=config.start_token,
            end=config.end_token,
            identity=config.identity,
        )
    if config.deduplicate == "near":
        require_minhash()
    listing = list_sources(
        config.inputs,
        domain=config.domain,
        extensions=config.extensions,
        exclude=config.exclude,
        text_field=config.reading.text_field,
    )
    sources = listing.sources
    if listing.held_out and all(source.split == "held_out" for source in sources):
        raise InputError(
            "--held_out_input names every file of --input: nothing is left to train on"
        )
    require_usable(sources, config.reading)
    reading = dataclasses.replace(config.reading, held_out=_threshold(sources, config.reading))
    with DatasetWriter(config.output, overwrite=config.overwrite) as writer:
        if tokenizer is None:
            tokenizer = _train(config, sources, reading, progress)
        trained = time.monotonic()
        writer.set_tokenizer(tokenizer)
        records = _write(config, sources, reading, tokenizer, writer, progress)
        summaries, lines = summarise(sources, records)
        manifest = writer.commit(
            sources=summaries, source_lines=lines, arguments=_arguments(config)
        )
    skipped = tuple(
        (sources[number].path, reason, count)
        for number, record in records.items()
        for reason, count in record.reasons().items()
    )
    size = sum(record.size for record in records.values())
    now = time.monotonic()
    of_text = [records[n] for n, source in enumerate(sources) if source.kind == "text"]
    cut = reading.separator is None or any(record.documents > 1 for record in of_text)
    return Report(manifest, skipped, listing, cut, size, trained - begin, now - begin)


def _write(
    config: PreparationConfig,
    sources: Sequence[Source],
    reading: ReadingOptions,
    tokenizer: Tokenizer,
    writer: DatasetWriter,
    progress: Progress | None,
) -> Mapping[int, SourceRecord]:
    """Writes the documents of all sources; returns what became of each source."""
    records = {number: SourceRecord() for number in range(len(sources))}
    screens = screens_of(config.deduplicate)
    total = sum(source.size for source in sources)
    documents = training = done = 0
    near = config.deduplicate == "near"
    for unit, encoded, found in encode(
        sources, reading, tokenizer, records, config.workers, near=near
    ):
        for number, record in found.items():
            records[number].merge(record)
        for document in encoded:
            source, record = sources[document.source], records[document.source]
            reason = left_out(screens, document.digest, document.bands, source.split)
            if reason is not None:
                record.documents -= 1
                record.skip(reason)
                continue
            documents += 1
            training += document.split == "train"
            writer.add(
                document.split, source.domain, document.ids, document.size, document.unscored
            )
        done += unit.advance
        if progress is not None:
            progress("tokenizing", done, total, documents)
    require_documents(sources, records, training)
    return records


def _threshold(sources: Sequence[Source], reading: ReadingOptions) -> float:
    """Returns the fraction below which documents are held out."""
    chosen = [source for source in sources if source.split is None]

    def fractions() -> Iterator[float]:
        records = {number: SourceRecord() for number in range(len(chosen))}
        for unit in cut_into_work_units(chosen, reading, records):
            for text in read_work_unit(unit, chosen, reading)[0]:
                yield fraction_of(text.digest)

    others = any(source.split == "held_out" for source in sources)
    return threshold(fractions(), reading.held_out, others_held_out=others)


def _train(
    config: PreparationConfig,
    sources: Sequence[Source],
    reading: ReadingOptions,
    progress: Progress | None,
) -> Tokenizer:
    """Trains the tokenizer on the training split."""
    total = sum(source.size for source in sources)
    share = min(1.0, config.training_bytes / max(total, 1))
    records = {number: SourceRecord() for number in range(len(sources))}
    # Near copies of one another do no harm here, and would take the time of a preparation.
    screens = screens_of("none" if config.deduplicate == "none" else "exact")

    def texts() -> Iterator[str]:
        done = documents = 0
        for unit in cut_into_work_units(sources, reading, records):
            for text in read_work_unit(unit, sources, reading)[0]:
                if left_out(screens, text.digest, (), sources[text.source].split):
                    continue
                # The split took the first digits of the hash.
                chosen = int.from_bytes(text.digest[8:], "big") / 2.0**64 < share
                if text.split == "train" and chosen:
                    documents += 1
                    yield text.text
            done += unit.advance
            if progress is not None:
                progress("training the tokenizer", done, total, documents)

    assert config.vocabulary is not None
    return train_tokenizer(texts(), config.vocabulary)


def _arguments(config: PreparationConfig) -> dict[str, object]:
    """Returns the arguments that decide what is in the data set."""
    without = ("output", "workers", "overwrite", "extensions")
    kept = {k: v for k, v in to_mapping(config).items() if k not in without}
    if config.extensions != TEXT_EXTENSIONS:
        kept["extensions"] = list(config.extensions)
    return kept
