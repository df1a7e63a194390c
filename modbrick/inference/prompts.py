"""Prompts: token ids of any lengths, checked and padded on the left into one batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from modbrick.errors import InputError


def rounded_up(length: int) -> int:
    """Returns the smallest 2^n or 3·2^n that is at least `length` and 16."""
    power = 1 << max(length - 1, 15).bit_length()
    return power * 3 // 4 if power > 16 and length <= power * 3 // 4 else power


def left_padded(
    prompts: Sequence[Sequence[int]],
) -> tuple[Int[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
    """Returns the batch of prompts, and which of its tokens are real."""
    length = rounded_up(max(map(len, prompts)))
    tokens = np.zeros((len(prompts), length), np.int32)
    mask = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = True
    return tokens, mask


def check_prompts(prompts: Sequence[Sequence[int]], vocabulary: int) -> None:
    """Refuses no prompts, empty ones, and ids beyond the vocabulary.

    Raises:
      InputError: names the prompt.
    """
    if not len(prompts):
        raise InputError("there is no prompt: give at least one")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(f"prompt {number} is empty: give it at least one token")
        check_token_ids(prompt, vocabulary, f"prompt {number}")


def check_token_ids(ids: Sequence[int], vocabulary: int, name: str) -> None:
    """Refuses ids beyond the vocabulary.

    Raises:
      InputError: begins with `name`.
    """
    for value in ids:
        if not 0 <= value < vocabulary:
            raise InputError(f"{name}: token id {value} is not in a vocabulary of {vocabulary}")
