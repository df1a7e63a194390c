"""Bricks as they are stored, and a model on disk, small enough to be written many times."""

from __future__ import annotations

import dataclasses
from typing import Any

from modbrick.bricks import Brick
from modbrick.config import ModelConfig
from modbrick.data import ByteTokenizer, TokenizerIdentity
from modbrick.library import Base, Manifest, Provenance
from tests.modbrick.bricks.tiny import BRICKS, MODEL, random_bricks

VALUES = random_bricks()
FINGERPRINT = "0123456789abcdef"


def described(name: str, /, **changes: Any) -> tuple[Brick, Manifest]:
    """A brick of `tests.modbrick.bricks.tiny.BRICKS`, and its manifest with changes."""
    config = BRICKS[name]
    brick = Brick.of_parameters(name, config, MODEL, VALUES)
    manifest = Manifest.of(
        name,
        config,
        MODEL,
        base=Base(MODEL, FINGERPRINT),
        tokenizer=ByteTokenizer().identity,
        provenance=Provenance(12, {"loss": 1.5}, {"dataset": "ab", "seed": 0}, {"jax": "1"}),
        licence="Apache-2.0",
        tags=("lang:de",),
        notes="Täglich besser",
    )
    return brick, dataclasses.replace(manifest, **changes)


@dataclasses.dataclass(frozen=True)
class KnownModel:
    """A model of which only is known what bricks are compared with."""

    config: ModelConfig = MODEL
    origin: str = "somewhere"
    weights: str = FINGERPRINT
    tokenizer: TokenizerIdentity | None = dataclasses.field(
        default_factory=lambda: ByteTokenizer().identity
    )

    def fingerprint(self) -> str:
        return self.weights

    def tokenizer_identity(self) -> TokenizerIdentity | None:
        return self.tokenizer
