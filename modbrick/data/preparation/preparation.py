"""From source files to a finished data set: find, read, split, encode in parallel, write."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from modbrick.data.manifest import Manifest, SourceSummary
from modbrick.data.preparation.encoding import encode
from modbrick.data.preparation.reading import read_work_unit
from modbrick.data.preparation.sources import TEXT_EXTENSIONS, Input, Source, list_sources
from modbrick.data.preparation.work_units import ReadingOptions, SourceRecord, cut_into_work_units
from modbrick.data.tokenizers.files import load_tokenizer, train_tokenizer
from modbrick.data.tokenizers.tokenizer import Tokenizer, TokenizerIdentity
from modbrick.data.writer import DatasetWriter, check_target
from modbrick.errors import InputError
from modbrick.schema import to_mapping


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
    start_token: str | None = "auto"
    end_token: str | None = "auto"
    identity: TokenizerIdentity | None = None
    workers: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.inputs:
            raise InputError("no --input: name a directory, a glob, a file, or stdlib:")
        if not 0 <= self.reading.held_out <= 1:
            raise InputError(f"--held_out must be from 0 to 1, got {self.reading.held_out}")
        if self.tokenizer == "train" and self.vocabulary is None:
            raise InputError("--tokenizer=train needs --vocab_size")
        if self.tokenizer != "train" and self.vocabulary is not None:
            raise InputError(
                f"--vocab_size={self.vocabulary} is for --tokenizer=train; {self.tokenizer} has "
                "its own"
            )
        if self.workers < 0:
            raise InputError(f"--workers must be 0 (automatic) or more, got {self.workers}")


@dataclass(frozen=True)
class Report:
    """Outcome of a preparation.

    Attributes:
      manifest: of the finished data set.
      skipped: files and records left out, as (file, reason, count).
      left_aside: files of other extensions in searched directories, by extension.
      source_bytes: size of all source files.
      seconds: of the tokenizer's training, and of everything.
    """

    manifest: Manifest
    skipped: tuple[tuple[str, str, int], ...]
    left_aside: Mapping[str, int]
    source_bytes: int
    training_seconds: float
    seconds: float


Progress = Callable[[str, int, int, int], None]


def prepare(config: PreparationConfig, progress: Progress | None = None) -> Report:
    """Makes a data set.

    Args:
      config: what to prepare.
      progress: called with the stage's name, bytes of source files done and in all, documents done.

    Raises:
      InputError: bad arguments or inputs; nothing is left behind in that case.
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
    sources, left_aside = list_sources(
        config.inputs, domain=config.domain, extensions=config.extensions
    )
    total = sum(source.size for source in sources)
    with DatasetWriter(config.output, overwrite=config.overwrite) as writer:
        if tokenizer is None:
            tokenizer = _train(config, sources, progress)
        trained = time.monotonic()
        writer.set_tokenizer(tokenizer)
        records = {number: SourceRecord() for number in range(len(sources))}
        documents = training = done = 0
        for unit, encoded, found in encode(
            sources, config.reading, tokenizer, records, config.workers
        ):
            for number, split, ids, size, unscored in encoded:
                training += split == "train"
                writer.add(split, sources[number].domain, ids, size, unscored)
            for number, record in found.items():
                records[number].merge(record)
            documents, done = documents + len(encoded), done + unit.advance
            if progress is not None:
                progress("tokenizing", done, total, documents)
        _require_documents(sources, records)
        if training == 0 and any(source.split is None for source in sources):
            raise InputError(
                f"all {documents} documents are held out by chance: the hash of a file's path "
                "decides; lower --held_out, rename, or give more files"
            )
        summaries, lines = _summarise(sources, records)
        manifest = writer.commit(
            sources=summaries, source_lines=lines, arguments=_arguments(config)
        )
    skipped = tuple(
        (sources[number].path, reason, count)
        for number, record in records.items()
        for reason, count in record.skipped.items()
    )
    return Report(
        manifest,
        skipped,
        left_aside,
        sum(record.size for record in records.values()),
        trained - begin,
        time.monotonic() - begin,
    )


def _train(
    config: PreparationConfig, sources: Sequence[Source], progress: Progress | None
) -> Tokenizer:
    total = sum(source.size for source in sources)
    share = min(1.0, config.training_bytes / max(total, 1))
    records = {number: SourceRecord() for number in range(len(sources))}

    def texts() -> Iterator[str]:
        done = documents = 0
        for unit in cut_into_work_units(sources, config.reading, records):
            found, _ = read_work_unit(unit, sources, config.reading)
            for text in found:
                # The split took the low end of the hash: the last digits are as good as another
                # hash.
                if text.split == "train" and text.fraction * 1e6 % 1 < share:
                    documents += 1
                    yield text.text
            done += unit.advance
            if progress is not None:
                progress("training the tokenizer", done, total, documents)

    assert config.vocabulary is not None
    return train_tokenizer(texts(), config.vocabulary)


def _require_documents(sources: Sequence[Source], records: Mapping[int, SourceRecord]) -> None:
    """Refuses inputs of which nothing, or nothing of a file of records, could be used."""
    for number, source in enumerate(sources):
        record = records[number]
        if source.kind != "text" and record.skipped and not record.documents:
            reason, count = record.skipped.most_common(1)[0]
            raise InputError(
                f"{source.path}: none of its records could be used ({count} of them: {reason}); "
                "check --text_field, or leave the file out"
            )
    if not any(record.documents for record in records.values()):
        reasons = sum((record.skipped for record in records.values()), Counter())
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
        raise InputError(
            f"no document could be used in {len(sources)} files ({listed or 'no records'}); check "
            "--input"
        )


def _summarise(
    sources: Sequence[Source], records: Mapping[int, SourceRecord]
) -> tuple[dict[str, SourceSummary], str]:
    lines: dict[str, list[str]] = {}
    totals: dict[str, SourceRecord] = {}
    files: Counter[str] = Counter()
    for number, source in enumerate(sources):
        record = records[number]
        line = {
            "domain": source.domain,
            "path": source.name,
            "bytes": record.size,
            "sha256": record.sha256,
            "documents": record.documents,
            "skipped": dict(sorted(record.skipped.items())),
        }
        lines.setdefault(source.domain, []).append(json.dumps(line, ensure_ascii=False) + "\n")
        totals.setdefault(source.domain, SourceRecord()).merge(record)
        files[source.domain] += 1
    summaries = {
        domain: SourceSummary(
            files[domain],
            total.size,
            hashlib.sha256("".join(lines[domain]).encode("utf-8", "surrogateescape")).hexdigest(),
            dict(sorted(total.skipped.items())),
        )
        for domain, total in totals.items()
    }
    return summaries, "".join(line for domain in lines.values() for line in domain)


def _arguments(config: PreparationConfig) -> dict[str, object]:
    """Returns the arguments that decide what is in the data set."""
    without = ("output", "workers", "overwrite", "extensions")
    kept = {k: v for k, v in to_mapping(config).items() if k not in without}
    if config.extensions != TEXT_EXTENSIONS:
        kept["extensions"] = list(config.extensions)
    return kept
