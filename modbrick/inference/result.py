"""Result of generation."""

from __future__ import annotations

import dataclasses
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class GenerationResult:
    """Generated tokens, by prompt.

    Attributes:
      tokens: new ids; a stop token, if one ended the sequence, is the last.
      finish_reasons: `stop` (a stop token, or `on_tokens` said so) or `length` (`max_new_tokens`).
      log_probabilities: of each new token under the model itself, in nats, before temperature and
        filters.
    """

    tokens: list[list[int]]
    finish_reasons: list[FinishReason]
    log_probabilities: list[list[float]]
