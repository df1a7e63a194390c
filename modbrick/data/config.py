"""Config of the rows that a run reads, and of their order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from modbrick.errors import InputError
from modbrick.schema import to_mapping

# Raised whenever the same config would yield other rows than before.
PLAN_VERSION = 1

# These decide how batches are made ready, never what is in them.
EXECUTION_FIELDS = frozenset({"path", "workers", "prefetch"})


@dataclass(frozen=True)
class DataConfig:
    """Config of the rows that a training run reads.

    Attributes:
      path: directory of a prepared data set, local or remote.
      sequence_length: targets in a row, S.
      batch_size: rows of one global batch, B, over all processes.
      seed: of the shuffling.
      mixture: shares of the tokens by domain (any positive numbers; they are divided by their sum).
        A domain that is not named is not read. None: all documents in one pool, each once an epoch.
      packing: `concatenate` joins documents end to end and cuts every S targets: no position is
        padding. `best_fit` (arXiv 2404.10830) keeps every document of at most S targets in one row
        and pads what is left; longer documents are cut every S targets and their remainders packed
        likewise.
      shuffle: documents, and the rows made of them, anew in each epoch.
      epochs: None: without end. With a mixture, the end is where the first domain has been read so
        often.
      workers: processes that make batches ahead; 0: threads of this process.
      prefetch: batches made ahead (by each worker).
    """

    path: str
    sequence_length: int
    batch_size: int
    seed: int = 0
    mixture: Mapping[str, float] | None = None
    packing: Literal["concatenate", "best_fit"] = "concatenate"
    shuffle: bool = True
    epochs: int | None = None
    workers: int = 0
    prefetch: int = 4

    def __post_init__(self) -> None:
        for name, least in (
            ("sequence_length", 1),
            ("batch_size", 1),
            ("seed", 0),
            ("workers", 0),
            ("prefetch", 1),
        ):
            value = getattr(self, name)
            if value < least:
                raise InputError(f"data {name} must be at least {least}, got {value}")
        if self.epochs is not None and self.epochs < 1:
            raise InputError(f"data epochs must be at least 1 (or None: no end), got {self.epochs}")
        if self.packing not in ("concatenate", "best_fit"):
            raise InputError(
                f"data packing must be 'concatenate' or 'best_fit', got {self.packing!r}"
            )
        if self.mixture is not None:
            if not self.mixture:
                raise InputError("data mixture names no domain: name one, or leave it None for all")
            for domain, weight in self.mixture.items():
                if not (math.isfinite(weight) and weight > 0):
                    raise InputError(
                        f"data mixture weight of {domain!r} must be positive and finite, got "
                        f"{weight}; leave a domain out to not read it"
                    )

    def identity(self) -> dict[str, object]:
        """Returns, as JSON-able data, the fields that decide what the batches hold."""
        fields = {k: v for k, v in to_mapping(self).items() if k not in EXECUTION_FIELDS}
        if self.mixture is not None:
            fields["mixture"] = {k: float(v) for k, v in sorted(self.mixture.items())}
        return {"plan_version": PLAN_VERSION, **fields}
