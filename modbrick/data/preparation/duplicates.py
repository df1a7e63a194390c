"""Documents that a data set has already: copies of held-out ones, copies, near copies.

What is remembered of a document is a hash or a few, never its text.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import re
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from jaxtyping import UInt8

from modbrick.data.manifest import Split
from modbrick.errors import InputError

Deduplication = Literal["none", "exact", "near"]

HELD_OUT_COPY = "copy of a held-out document"
COPY = "copy of an earlier document"
NEAR_COPY = "near copy of an earlier document"
COPY_REASONS = (HELD_OUT_COPY, COPY, NEAR_COPY)

# Two texts that share a share s of their shingles agree in a band with probability
# 1 - (1 - s^8)^14: 5 % at one half, 56 % at 0.7, 92 % at 0.8.
BANDS, ROWS = 14, 8
_SHINGLE = 5  # words
_BATCH = 8192  # shingles at a time, which bounds memory

# A word; of scripts that are written without spaces, a letter.
_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W{_SPACELESS}]+")


class Screen(Protocol):
    """Tells which documents are left out; sees them all, in their order."""

    def reason(
        self, digest: bytes, bands: Sequence[bytes], input_split: Split | None
    ) -> str | None:
        """Returns why a document is left out; None: it is not.

        Args:
          digest: of its text, see `text_digest`.
          bands: of its MinHash, see `minhash_bands`; none if nobody needs them.
          input_split: where all documents of its input belong; None: decided by hash.
        """
        ...


class HeldOutCopies:
    """Leaves out what is in a held-out input, which comes first, and in another input too."""

    def __init__(self) -> None:
        self._held_out: set[bytes] = set()

    def reason(
        self, digest: bytes, bands: Sequence[bytes], input_split: Split | None
    ) -> str | None:
        """See `Screen`."""
        if input_split == "held_out":
            self._held_out.add(digest)
        elif digest in self._held_out:
            return HELD_OUT_COPY
        return None


class Copies:
    """Leaves out all but the first of equal documents."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def reason(
        self, digest: bytes, bands: Sequence[bytes], input_split: Split | None
    ) -> str | None:
        """See `Screen`."""
        if digest in self._seen:
            return COPY
        self._seen.add(digest)
        return None


class NearCopies:
    """Leaves out documents that share most of their five-word shingles with an earlier one.

    MinHash in bands (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4),
    with the hashes of `datasketch`.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def reason(
        self, digest: bytes, bands: Sequence[bytes], input_split: Split | None
    ) -> str | None:
        """See `Screen`."""
        if not self._seen.isdisjoint(bands):
            return NEAR_COPY
        self._seen.update(bands)
        return None


def screens_of(deduplication: Deduplication) -> tuple[Screen, ...]:
    """Returns the screens of a kind of deduplication, fresh ones."""
    screens: dict[Deduplication, tuple[Screen, ...]] = {
        "none": (HeldOutCopies(),),
        "exact": (HeldOutCopies(), Copies()),
        "near": (HeldOutCopies(), Copies(), NearCopies()),
    }
    return screens[deduplication]


def left_out(
    screens: Sequence[Screen], digest: bytes, bands: Sequence[bytes], input_split: Split | None
) -> str | None:
    """Returns the reason of the first screen that has one; arguments as of `Screen.reason`."""
    reasons = (screen.reason(digest, bands, input_split) for screen in screens)
    return next(filter(None, reasons), None)


def require_minhash() -> None:
    """Checks that near copies can be told.

    Raises:
      InputError: the library for it is not installed.
    """
    try:
        importlib.import_module("datasketch")
    except ImportError:
        raise InputError(
            '--deduplicate=near needs datasketch: pip install "modbrick[deduplicate]"'
        ) from None


def minhash_bands(text: str) -> tuple[bytes, ...]:
    """Returns `BANDS` hashes of a text, 8 bytes each; near copies share one or more of them.

    The text counts as the set of its runs of five words; case and punctuation do not matter.
    """
    minhash = importlib.import_module("datasketch").MinHash(
        num_perm=BANDS * ROWS, seed=1, hashfunc=_hash, scheme="affine32"
    )
    words = [word.encode("utf-8") for word in _WORD.findall(text.casefold())] or [text.encode()]
    count = max(len(words) - _SHINGLE + 1, 1)
    shingles = {b" ".join(words[at : at + _SHINGLE]) for at in range(count)}
    for some in itertools.batched(shingles, _BATCH):
        minhash.update_batch(some)
    values: UInt8[np.ndarray, "bands bytes"] = np.ascontiguousarray(
        minhash.hashvalues.reshape(BANDS, ROWS)
    ).view(np.uint8)
    return tuple(
        hashlib.blake2b(bytes([band]) + row.tobytes(), digest_size=8).digest()
        for band, row in enumerate(values)
    )


def _hash(shingle: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(shingle, digest_size=4).digest(), "little")
