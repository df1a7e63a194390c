"""Tokenizer of a foreign checkpoint, as the checkpoint's own files describe it."""

from __future__ import annotations

import io
from collections.abc import Mapping

from modbrick.convert.opening import OpenedSource
from modbrick.data import Tokenizer
from modbrick.data.tokenizers.files import tokenizer_from_json
from modbrick.errors import InputError
from modbrick.formats.strict_json import parse_object


def read_tokenizer(
    checkpoint: OpenedSource, files: Mapping[str, bytes] | None = None
) -> Tokenizer | None:
    """Builds the tokenizer that came with a checkpoint, if there is one.

    Its own config says which token ends a document.

    Args:
      checkpoint: an opened source.
      files: what `checkpoint.source.tokenizer()` returned, if that was called before.

    Raises:
      InputError: it is damaged, or has more tokens than the model.
    """
    files = checkpoint.source.tokenizer() if files is None else files
    path = checkpoint.source.path
    if "tokenizer.json" not in files:
        return None
    end = "auto"
    if "tokenizer_config.json" in files:
        where = f"{path}: tokenizer_config.json"
        token = parse_object(files["tokenizer_config.json"], where).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        end = token if isinstance(token, str) else end
    name = f"{path}/tokenizer.json"
    try:
        # As a file is read: the text is hashed, and its line ends with it.
        text = io.TextIOWrapper(io.BytesIO(files["tokenizer.json"]), encoding="utf-8").read()
    except UnicodeDecodeError:
        raise InputError(f"{name}: not a tokenizer.json (not UTF-8 text)") from None
    tokenizer = tokenizer_from_json(text, name, end=end)
    if tokenizer.vocabulary > checkpoint.model.vocabulary:
        raise InputError(
            f"{path}: tokenizer.json has {tokenizer.vocabulary} tokens, "
            f"the model {checkpoint.model.vocabulary}"
        )
    return tokenizer
