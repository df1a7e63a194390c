"""UTF-8 bytes as tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int32

from modbrick.data.tokenizers.parts import added_token, byte_pair_model
from modbrick.data.tokenizers.surroundings import Surroundings
from modbrick.data.tokenizers.tokenizer import (
    BYTES,
    END_OF_DOCUMENT,
    TokenizerIdentity,
    not_unicode,
    text_sha256,
)


class ByteTokenizer:
    """UTF-8 bytes: ids 0 to 255 are the bytes, 256 ends (and, as context, begins) a document."""

    vocabulary = BYTES + 1
    end_of_document = BYTES
    start_of_document = BYTES
    around_prompts = Surroundings.of_start(BYTES)
    stop_tokens: tuple[int, ...] = (BYTES,)

    @property
    def identity(self) -> TokenizerIdentity:
        """Identity of the tokenizer, by which it is compared."""
        return TokenizerIdentity(
            "bytes", text_sha256(self.to_json()), self.vocabulary, BYTES, BYTES
        )

    def encode(self, text: str, *, special_tokens: bool = False) -> Int32[np.ndarray, " T"]:
        """Returns the ids of `text`, without boundary tokens."""
        parts = text.split(END_OF_DOCUMENT) if special_tokens else [text]
        try:
            raw = [part.encode("utf-8") for part in parts]
        except UnicodeEncodeError:
            raise not_unicode([text]) from None
        ids = [np.frombuffer(part, np.uint8).astype(np.int32) for part in raw]
        end = np.asarray([BYTES], np.int32)
        return np.concatenate([ids[0], *(piece for part in ids[1:] for piece in (end, part))])

    def encode_batch(
        self, texts: Sequence[str], *, special_tokens: bool = False
    ) -> list[Int32[np.ndarray, " T"]]:
        """Returns the ids of each text, without boundary tokens."""
        return [self.encode(text, special_tokens=special_tokens) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`; boundary tokens are left out."""
        return bytes(i for i in map(int, ids) if i < BYTES).decode("utf-8", errors="replace")

    def first_token_bytes(self, text: str) -> int:
        """Returns how many UTF-8 bytes of `text` its first token stands for."""
        return min(1, len(text))

    def to_json(self) -> str:
        """Returns a byte-level BPE without merges whose ids are the byte values."""
        alphabet = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
        return json.dumps(
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": [added_token(BYTES, END_OF_DOCUMENT, special=True)],
                "normalizer": None,
                "pre_tokenizer": {**level, "use_regex": False},
                "post_processor": None,
                "decoder": {**level, "use_regex": False},
                "model": byte_pair_model({**alphabet, END_OF_DOCUMENT: BYTES}, []),
            },
            ensure_ascii=False,
        )


def byte_symbols() -> list[str]:
    """Returns the printable character that byte-level BPE (GPT-2) writes for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = {byte: chr(byte) for byte in printable}
    spare = iter(range(256, 512))
    return [symbols[byte] if byte in symbols else chr(next(spare)) for byte in range(BYTES)]
