"""Entities of texts: where they are mentioned, and rows with a place for what is known of them."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

from modbrick.data.tokenizers.tokenizer import Tokenizer
from modbrick.errors import InputError

_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class Mention:
    """Mention of an entity in a text.

    Attributes:
      entity: its index.
      start, stop: characters of the text.
    """

    entity: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Entities:
    """Entities with a vector each, such as those of a knowledge graph.

    Attributes:
      names: as texts mention them, of one word or several; upper and lower case do not matter.
      vectors: `[E, width]`, frozen; a `Knowledge` brick learns where they lie among embeddings.

    Examples:
        >>> import numpy as np
        >>> from modbrick.data.entities import Entities
        >>> from modbrick.data import ByteTokenizer
        >>> known = Entities(("Bonn", "Rhine"), np.eye(2, 8, dtype=np.float32))
        >>> text = "Bonn lies on the Rhine."
        >>> [text[m.start : m.stop] for m in known.mentions(text)]
        ['Bonn', 'Rhine']
        >>> tokens, rows = known.encode(text, ByteTokenizer(), placeholder=0)
        >>> tokens[4], rows, known.features([rows]).shape
        (0, [0, 1], (1, 2, 8))
    """

    names: tuple[str, ...]
    vectors: Float[np.ndarray, "E W"]

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.names):
            shape = list(self.vectors.shape)
            raise InputError(f"{len(self.names)} entities do not fit vectors of shape {shape}")
        if empty := [name for name in self.names if not _WORD.search(name)]:
            raise InputError(f"{empty[0]!r} is no name of an entity: it has no word")

    def mentions(self, text: str) -> list[Mention]:
        """Lists mentions in a text, in their order; of those that overlap the first and longest."""
        words = list(_WORD.finditer(text))
        found, at = [], 0
        while at < len(words):
            mention, length = self._longest(words, at)
            if mention is not None:
                found.append(mention)
            at += length
        return found

    def encode(
        self, text: str, tokenizer: Tokenizer, placeholder: int
    ) -> tuple[list[int], list[int]]:
        """Returns the tokens of a text with a placeholder behind every mention.

        Returns:
          The tokens, and the entity of each placeholder.
        """
        tokens: list[int] = []
        entities, start = [], 0
        for mention in self.mentions(text):
            tokens += [*tokenizer.encode(text[start : mention.stop]), placeholder]
            entities.append(mention.entity)
            start = mention.stop
        return tokens + list(tokenizer.encode(text[start:])), entities

    def features(self, rows: Sequence[Sequence[int]]) -> Float[np.ndarray, "B P W"]:
        """Returns the vectors of the entities of each row, padded with zeros to the most."""
        most = max([1, *map(len, rows)])
        features = np.zeros((len(rows), most, self.vectors.shape[1]), np.float32)
        for row, entities in zip(features, rows, strict=True):
            row[: len(entities)] = self.vectors[list(entities)]
        return features

    @functools.cached_property
    def _by_first_word(self) -> dict[str, list[tuple[tuple[str, ...], int]]]:
        """Names by their first word, the longest first."""
        found: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        for entity, name in enumerate(self.names):
            words = tuple(_words(name))
            found.setdefault(words[0], []).append((words, entity))
        for names in found.values():
            names.sort(key=lambda item: -len(item[0]))
        return found

    def _longest(self, words: Sequence[re.Match[str]], at: int) -> tuple[Mention | None, int]:
        """Returns the longest name that begins with a word, and its number of words, at least 1."""
        for name, entity in self._by_first_word.get(words[at][0].casefold(), ()):
            here = words[at : at + len(name)]
            if tuple(word[0].casefold() for word in here) == name:
                return Mention(entity, here[0].start(), here[-1].end()), len(name)
        return None, 1


def _words(name: str) -> Iterator[str]:
    return (word[0].casefold() for word in _WORD.finditer(name))
