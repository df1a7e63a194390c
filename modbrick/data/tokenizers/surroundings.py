"""Tokens that a tokenizer itself puts around a text."""

from __future__ import annotations

from dataclasses import dataclass

import tokenizers

from modbrick.errors import InputError


@dataclass(frozen=True)
class Surroundings:
    """Ids around the ids of a text.

    Attributes:
      before: of the tokens before it, in order.
      behind: of the tokens behind it.
    """

    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()

    @classmethod
    def of_start(cls, start: int | None) -> Surroundings:
        """Returns a start token and nothing else, or nothing at all."""
        return cls(() if start is None else (start,))

    @classmethod
    def of_post_processor(cls, tokenizer: tokenizers.Tokenizer, name: str) -> Surroundings:
        """Asks a tokenizer's own post-processor, whatever its kind.

        Args:
          tokenizer: of the tokenizers library.
          name: where it came from, for messages.

        Raises:
          InputError: it does not leave the text whole and once.
        """
        if tokenizer.post_processor is None:
            return cls()
        # By itself, for the tokenizer would also cut and pad.
        marked = tokenizer.post_processor.process(_one_token(), add_special_tokens=True)
        if marked.special_tokens_mask.count(0) != 1:
            raise InputError(f"{name}: its post_processor does not keep a text as it is")
        at = marked.special_tokens_mask.index(0)
        return cls(tuple(marked.ids[:at]), tuple(marked.ids[at + 1 :]))


def with_surroundings(text: str, wanted: Surroundings, name: str) -> str:
    """Returns a `tokenizer.json` that puts these tokens around texts, and no others.

    Args:
      text: of the file.
      wanted: what it is to put.
      name: where it came from, for messages.
    """
    tokenizer = load_json(text, name)
    if Surroundings.of_post_processor(tokenizer, name) == wanted:
        return text
    tokens = {i: str(tokenizer.id_to_token(i)) for i in (*wanted.before, *wanted.behind)}
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=[*map(tokens.get, wanted.before), "$A", *map(tokens.get, wanted.behind)],
        pair=None,
        special_tokens=[(token, i) for i, token in tokens.items()],
    )
    return tokenizer.to_str()


def _one_token() -> tokenizers.Encoding:
    words = tokenizers.models.WordLevel({"x": 0}, unk_token="x")
    return tokenizers.Tokenizer(words).encode("x")


def load_json(text: str, name: str) -> tokenizers.Tokenizer:
    """Parses a `tokenizer.json` as the tokenizers library does by itself.

    Raises:
      InputError: it is none.
    """
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception for every malformed file
        raise InputError(f"{name}: not a tokenizer.json ({str(error).splitlines()[0]})") from None
