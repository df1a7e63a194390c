"""Tokenizer of a foreign checkpoint, as the checkpoint's own files describe it, or another."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from absl import logging
from etils import epath

from modbrick.checkpoints import Metadata
from modbrick.checkpoints.loading import TOKENIZER
from modbrick.convert.huggingface.directory import tokenizer_files
from modbrick.convert.opening import OpenedSource
from modbrick.data import Tokenizer
from modbrick.data.tokenizers.files import tokenizer_from_json
from modbrick.data.tokenizers.pretrained import FILES, Pretrained, read_pretrained
from modbrick.data.tokenizers.surroundings import Surroundings, with_surroundings
from modbrick.data.tokenizers.tokenizer import TOKENIZER_FILE, UnreadTokenizerError
from modbrick.errors import InputError
from modbrick.inference.stopping import GENERATION, stop_tokens


@dataclasses.dataclass(frozen=True)
class SourceTokenizer:
    """What of a foreign checkpoint has to do with its tokenizer.

    Attributes:
      tokenizer: None: there is none that is read.
      files: to be kept with the model, by name; the tokenizer is `tokenizer.json` among them.
      remarks: in a line each, what may surprise whoever uses it.
    """

    tokenizer: Tokenizer | None
    files: Mapping[str, bytes]
    remarks: tuple[str, ...]

    def with_logged_remarks(self) -> SourceTokenizer:
        """Logs the remarks as warnings and returns it."""
        for remark in self.remarks:
            logging.warning("%s", remark)
        return self


def read_tokenizer(checkpoint: OpenedSource, chosen: str | None = None) -> SourceTokenizer:
    """Builds the tokenizer that came with a checkpoint, if there is one, or another for it.

    Its start and end tokens are those that its own library puts: none where that puts none.

    Args:
      checkpoint: an opened source.
      chosen: None: its own; `none`: none; else a file or directory that takes its place.

    Raises:
      InputError: it is damaged, or nothing is there.
    """
    path = str(checkpoint.source.path)
    aside: tuple[str, ...] = ()
    try:
        files = checkpoint.source.tokenizer()
    except InputError as error:
        if chosen is None:
            raise
        files, aside = {}, (f"its own tokenizer is left aside: {error}",)
    generation = files.get(GENERATION)
    if chosen is not None:
        files = {name: content for name, content in files.items() if name == GENERATION}
    if chosen == "none":
        return SourceTokenizer(None, files, aside)
    if chosen is not None:
        files, path = {**_chosen_files(Path(chosen)), **files}, chosen
    try:
        found = read_pretrained(files, path)
    except UnreadTokenizerError as error:
        return SourceTokenizer(None, files, (f"no tokenizer: {error}",))
    if found is None:
        if chosen is not None:
            raise InputError(f"{chosen}: no tokenizer there; {', '.join(FILES)} are looked for")
        return SourceTokenizer(None, files, (f"no tokenizer: {path} has none",))
    tokenizer, remarks = _fitting(found, path, checkpoint.model.vocabulary)
    config = checkpoint.source.config
    tokenizer.stop_tokens = stop_tokens(generation, config, path, otherwise=tokenizer)
    files = {**files, TOKENIZER_FILE: tokenizer.to_json().encode("utf-8")}
    return SourceTokenizer(tokenizer, files, (*aside, *found.remarks, *remarks))


def _fitting(found: Pretrained, path: str, rows: int) -> tuple[Tokenizer, list[str]]:
    """Returns the tokenizer, without an end token that the model has no row for; and remarks."""
    name, end, remarks = f"{path}/{found.name}", found.end, []
    tokenizer = tokenizer_from_json(found.text, name, end=end, own_prompts=True)
    if tokenizer.vocabulary > rows:
        remarks.append(
            f"{path}: the tokenizer has {tokenizer.vocabulary} tokens, the model {rows}: texts "
            "with a token beyond are refused"
        )
    number = tokenizer.end_of_document
    if number is not None and number >= rows:
        tokenizer = tokenizer_from_json(found.text, name, end=None, own_prompts=True)
        remarks.append(
            f"{path}: the model has no row for the end token (id {number}): documents end without"
        )
    around = tokenizer.around_prompts
    if around.behind or len(around.before) > 1:
        remarks.append(
            f"{path}: the tokenizer puts the ids {list(around.before)} before a text and "
            f"{list(around.behind)} behind it, prompts included, as in its own library; documents "
            "for training get a start and an end token at most"
        )
    return tokenizer, remarks


def _chosen_files(path: Path) -> dict[str, bytes]:
    """Returns the files of a directory, or one file, by the names that they have in directories."""
    if (path / TOKENIZER).is_dir():  # of a model or run of this library
        path = path / TOKENIZER
    if path.is_dir():
        return {n: c for n, c in tokenizer_files(path).items() if n != GENERATION}
    if not path.is_file():
        raise InputError(f"--tokenizer={path}: no such file or directory")
    return {path.name if path.name in FILES else TOKENIZER_FILE: path.read_bytes()}


def copy_tokenizer(checkpoint: epath.Path, metadata: Metadata, directory: Path) -> None:
    """Copies the files of a checkpoint's tokenizer for another library.

    Where there is only `tokenizer.json`, a file says how to load it. That of a model that was not
    imported is made to put around a text what its prompts have here.

    Args:
      checkpoint: of this library.
      metadata: of it.
      directory: that gets the files; it exists.
    """
    places = [Path(place) / TOKENIZER for place in (checkpoint, *list(checkpoint.parents)[:2])]
    for place in [place for place in places if place.is_dir()][:1]:
        for file in (file for file in sorted(place.rglob("*")) if file.is_file()):
            target = directory / file.relative_to(place)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    file = directory / TOKENIZER_FILE
    if not file.exists():
        return
    if metadata.tokenizer and "imported" not in metadata.extra:
        around = Surroundings.of_start(metadata.tokenizer["start_of_document"])
        text = with_surroundings(file.read_text(encoding="utf-8"), around, str(file))
        file.write_text(text, encoding="utf-8")
    if not (directory / "tokenizer_config.json").exists():
        text = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n"
        (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
