"""Models and batch shapes whose training is measured."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int32

from modbrick.config import ModelConfig
from modbrick.config.families import moduleformer


@dataclasses.dataclass(frozen=True)
class Case:
    """A ModuleFormer in float32 with AdamW and load balancing, and a batch shape."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    attention_width: int
    feed_forward_width: int
    router_width: int
    attention_experts: int
    feed_forward_experts: int
    batch: int
    sequence: int

    @property
    def tokens(self) -> int:
        """Tokens in a batch."""
        return self.batch * self.sequence

    def model(self) -> ModelConfig:
        """Returns the model of this case."""
        shape = dataclasses.asdict(self)
        del shape["batch"], shape["sequence"]
        return moduleformer(**shape, top_k=2, dtype="float32")

    def random_batch(self, rng: np.random.Generator) -> dict[str, Int32[np.ndarray, "B S"]]:
        """Returns a batch of whole rows of random tokens."""
        shape = (self.batch, self.sequence)
        tokens = rng.integers(0, self.vocabulary, (self.batch, self.sequence + 1)).astype(np.int32)
        return {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "segment_ids": np.ones(shape, np.int32),
            "positions": np.broadcast_to(np.arange(self.sequence, dtype=np.int32), shape),
            "loss_mask": np.ones(shape, np.int32),
        }


_B = Case(8192, 512, 6, 8, 512, 1024, 128, 8, 16, batch=4, sequence=512)
CASES = {
    "A": Case(512, 256, 4, 4, 256, 512, 64, 8, 8, batch=8, sequence=256),
    "B512": _B,
    "B1024": dataclasses.replace(_B, batch=2, sequence=1024),
}
