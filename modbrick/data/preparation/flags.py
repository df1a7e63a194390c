"""Flags of a preparation, and the config that they make."""

from __future__ import annotations

import typing
from collections.abc import Sequence

from absl import flags

from modbrick.data.preparation.duplicates import Deduplication
from modbrick.data.preparation.formats.kinds import TEXT_EXTENSIONS, text_extensions
from modbrick.data.preparation.inputs import Input
from modbrick.data.preparation.preparation import PreparationConfig
from modbrick.data.preparation.work_units import ReadingOptions
from modbrick.data.tokenizers.tokenizer import TokenizerIdentity
from modbrick.errors import InputError
from modbrick.paths import expanded

# The flags are those of the script that makes them, which its --help lists.
flags.disclaim_key_flags()


class PreparationFlags:
    """Flags that describe a data set to be prepared; to be made once, by a script."""

    def __init__(self) -> None:
        self.input = flags.DEFINE_multi_string(
            "input", [], "PATH or DOMAIN=PATH; several may follow."
        )
        self.held_out_input = flags.DEFINE_multi_string(
            "held_out_input",
            [],
            "Input that is all held out; what else holds copies of it loses them.",
        )
        self.tokenizer = flags.DEFINE_string(
            "tokenizer",
            "byte",
            "byte; train; a tokenizer.json, or the directory of one or of a model.",
        )
        self.vocab_size = flags.DEFINE_integer(
            "vocab_size", None, "Tokens of one to be trained, 257 or more."
        )
        self.training_bytes = flags.DEFINE_integer(
            "tokenizer_training_bytes",
            256 << 20,
            "About so many bytes of text train the tokenizer.",
        )
        self.start_token = flags.DEFINE_string(
            "start_token",
            "auto",
            "Put before documents; auto: what the tokenizer itself puts; none.",
        )
        self.end_token = flags.DEFINE_string(
            "end_token",
            "auto",
            "Put after documents; auto: what its files name, or its usual one; none.",
        )
        self.output = flags.DEFINE_string("output", None, "Directory of the data set to be made.")
        self.text_field = flags.DEFINE_string(
            "text_field",
            "text",
            "Field or column with the text of records; doc.text: text within doc.",
        )
        self.domain = flags.DEFINE_string(
            "domain", None, "Of inputs that name none; else made from the path."
        )
        self.held_out = flags.DEFINE_float(
            "held_out", 0.05, "Share of the documents that is held out."
        )
        self.deduplicate = flags.DEFINE_enum(
            "deduplicate",
            "none",
            typing.get_args(Deduplication),
            "Drop copies of earlier documents; near: near copies too, which share most of their "
            "words in the same order.",
        )
        self.separator = flags.DEFINE_string(
            "document_separator", None, "Cut text files at this string, for instance <|endoftext|>."
        )
        self.exclude = flags.DEFINE_multi_string(
            "exclude",
            [],
            "Pattern of files and directories that are not searched, such as *.min.js.",
        )
        self.extensions = flags.DEFINE_list(
            "extensions",
            [],
            "More extensions to read as text (none: files without one), beside "
            + " ".join(TEXT_EXTENSIONS),
        )
        self.workers = flags.DEFINE_integer(
            "workers", 0, "Processes; 0: as many as help. Changes nothing else."
        )
        self.overwrite = flags.DEFINE_bool(
            "overwrite", False, "Replace a data set that --output holds."
        )

    def config(
        self, more: Sequence[str], tokenizer: str, identity: TokenizerIdentity | None
    ) -> PreparationConfig:
        """Returns the config that the flags describe.

        Args:
          more: inputs that followed without a flag.
          tokenizer: what `--tokenizer` stands for.
          identity: of a tokenizer that is a model's.

        Raises:
          InputError: names the flag and what is wrong with it.
        """
        if not self.output.value:
            raise InputError("no --output: name the directory of the data set to be made")
        own = {"train": "a tokenizer that is trained", "byte": "the tokenizer of bytes"}
        owner = own.get(tokenizer) if identity is None else "a model's tokenizer"
        for flag in (self.start_token, self.end_token):
            if owner and flag.present:
                raise InputError(f"--{flag.name}: {owner} has its own; leave it out")
        held_out = (Input.parse(text, "held_out") for text in self.held_out_input.value)
        return PreparationConfig(
            inputs=(*map(Input.parse, [*self.input.value, *more]), *held_out),
            tokenizer=tokenizer,
            identity=identity,
            output=expanded(self.output.value),
            vocabulary=self.vocab_size.value,
            training_bytes=self.training_bytes.value,
            reading=ReadingOptions(
                self.text_field.value, self.held_out.value, self.separator.value
            ),
            domain=self.domain.value,
            extensions=text_extensions(self.extensions.value),
            exclude=tuple(self.exclude.value),
            deduplicate=typing.cast(Deduplication, self.deduplicate.value),
            start_token=None if self.start_token.value == "none" else self.start_token.value,
            end_token=None if self.end_token.value == "none" else self.end_token.value,
            workers=self.workers.value,
            overwrite=self.overwrite.value,
        )
