"""Which documents are held out: a matter of their text alone, so that copies stay together."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections.abc import Iterable


def text_digest(text: str) -> bytes:
    r"""Returns 16 bytes that two texts share if they are copies.

    Copies may differ in their line ends (`\r\n`, `\r`, `\n`), in white space around the whole,
    and in the normal form of Unicode (composed or decomposed).
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return hashlib.blake2b(text.strip().encode("utf-8"), digest_size=16).digest()


def fraction_of(digest: bytes) -> float:
    """Returns a digest as a number in [0, 1)."""
    return (int.from_bytes(digest[:8], "big") >> 11) / 2.0**53


def threshold(fractions: Iterable[float], share: float, *, others_held_out: bool) -> float:
    """Returns the fraction below which a document is held out, so that no split is left empty.

    It is the share itself, unless chance leaves one of the splits without a document: then the
    document nearest to it is taken. One document alone (or copies of it) is for training.

    Args:
      fractions: of documents; no more of them are asked for than it takes.
      share: to be held out, less than 1; 0: none.
      others_held_out: whether documents of other inputs are held out in any case.
    """
    if share == 0:
        return 0.0
    lowest, highest = 1.0, 0.0
    for fraction in fractions:
        lowest, highest = min(lowest, fraction), max(highest, fraction)
        if highest >= share and (others_held_out or lowest < share):
            return share
    if lowest > highest:  # there is none
        return share
    if highest < share and (lowest < highest or others_held_out):
        return highest
    return 0.0 if lowest == highest else math.nextafter(lowest, 1.0)
