"""Tokens that end a generated text, as a model's original library has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modbrick.data import Tokenizer
from modbrick.errors import InputError
from modbrick.formats.strict_json import parse_object

GENERATION = "generation_config.json"


def stop_tokens(
    generation: bytes | None, config: Mapping[str, Any], where: str, *, otherwise: Tokenizer
) -> tuple[int, ...]:
    """Returns the ids that a model's files name.

    Args:
      generation: content of `generation_config.json`; None: there is no such file.
      config: the `config.json`, which counts where there is no such file.
      where: the directory, for messages.
      otherwise: its stop tokens count where nothing is said.

    Raises:
      InputError: the file is damaged, or has what are no ids.
    """
    said = config if generation is None else parse_object(generation, f"{where}: {GENERATION}")
    found = said.get("eos_token_id")
    if found is None:
        return otherwise.stop_tokens
    ids = found if isinstance(found, list) else [found]
    if not all(type(number) is int for number in ids):
        raise InputError(f"{where}: eos_token_id is {found!r}, expected ids")
    return tuple(dict.fromkeys(ids))
