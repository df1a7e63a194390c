"""Examples that fit in memory: arrays of tokens, and features beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modbrick.errors import InputError

FIELDS = ("tokens", "targets", "loss_mask")
FEATURES = "features."
"""Front of the names of features, `[N, P, W]`, which a call of the model gets by the rest."""

Examples = Mapping[str, np.ndarray]
"""Arrays of N examples: `tokens` and `targets` (what follows each token), int32 `[N, S]`,
`loss_mask`, 1 where a target counts, and features. What no target depends on is padding: behind the
others, with any token."""


def next_token_examples(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], padding: int = 0
) -> dict[str, np.ndarray]:
    """Returns arrays of examples from prompts and their answers, padded to the longest.

    Args:
      rows: tokens of a prompt, and those that answer it; only these count in the loss.
      padding: token that stands behind a row.

    Raises:
      InputError: there are no rows, or one has an empty prompt or answer.
    """
    if not rows:
        raise InputError("there are no examples")
    for number, row in enumerate(rows):
        for what, part in zip(("prompt", "answer"), row, strict=True):
            if not len(part):
                raise InputError(f"example {number} has an empty {what}")
    length = max(len(prompt) + len(answer) for prompt, answer in rows) - 1
    tokens = np.full((len(rows), length + 1), padding, np.int32)
    mask = np.zeros((len(rows), length), np.int32)
    for number, (prompt, answer) in enumerate(rows):
        whole = [*prompt, *answer]
        tokens[number, : len(whole)] = whole
        mask[number, len(prompt) - 1 : len(whole) - 1] = 1
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "loss_mask": mask}


def checked(examples: Examples, what: str, vocabulary: int) -> dict[str, np.ndarray]:
    """Returns examples as arrays of the dtypes that a batch has.

    Args:
      examples: arrays, or what numpy makes arrays of.
      what: they are, for messages.
      vocabulary: of the model.

    Raises:
      InputError: a name that is missing or means nothing, shapes that do not fit together, tokens
        that the model does not have, or no target that counts.
    """
    if missing := [name for name in FIELDS if name not in examples]:
        raise InputError(f"{what} have no {missing[0]}")
    arrays = {name: np.asarray(array) for name, array in examples.items()}
    shape = arrays["tokens"].shape
    if len(shape) != 2 or not shape[0]:
        raise InputError(f"tokens of {what} have shape {shape}, not [N, S] with at least one row")
    for name, array in arrays.items():
        if name not in FIELDS and not name.startswith(FEATURES):
            raise InputError(f"{what} have {name!r}: features begin with {FEATURES!r}")
        if name in FIELDS and array.shape != shape:
            raise InputError(f"{name} of {what} have shape {array.shape}, tokens {shape}")
        if array.shape[:1] != shape[:1]:
            raise InputError(f"{name} of {what}: {len(array)} for {shape[0]} examples")
        if name in FIELDS:
            _check_integers(f"{name} of {what}", array, 2 if name == "loss_mask" else vocabulary)
        elif array.dtype.kind not in "biuf":
            raise InputError(f"{name} of {what} hold {array.dtype}, not numbers")
    if not arrays["loss_mask"].any():
        raise InputError(f"no target of {what} counts: loss_mask is 0 everywhere")
    return {
        name: array.astype(np.int32 if name in FIELDS else np.float32, copy=False)
        for name, array in arrays.items()
    }


def features_of(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the features among arrays, by the names that bricks have for them."""
    return {
        name.removeprefix(FEATURES): x for name, x in batch.items() if name.startswith(FEATURES)
    }


def digest(examples: Examples) -> str:
    """Returns what tells examples from others."""
    found = hashlib.sha256()
    for name in sorted(examples):
        array = np.ascontiguousarray(examples[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:16]


def _check_integers(name: str, array: np.ndarray, below: int) -> None:
    if array.dtype.kind not in "biu":
        raise InputError(f"{name} hold {array.dtype}, not integers")
    if not array.size:
        raise InputError(f"{name} have shape {array.shape}: there is nothing to train on")
    least, largest = int(array.min()), int(array.max())
    if least < 0 or largest >= below:
        raise InputError(
            f"{name} hold {least if least < 0 else largest}: from 0 to {below - 1} is allowed"
        )
