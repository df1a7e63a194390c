"""Config of an attention layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modbrick.config.checks import require, require_finite
from modbrick.config.experts import ExpertsConfig
from modbrick.config.norm import NormConfig
from modbrick.config.rope import RopeConfig

Projection = Literal["query", "key", "value", "output"]


@dataclass(frozen=True)
class AttentionConfig:
    """Causal self-attention, dense or as a mixture of attention heads.

    With `experts`, the query and output projections are banks chosen by one router, each expert has
    `heads` heads of its own, and keys and values are shared by all experts.

    Attributes:
      kind: `stickbreaking` (arXiv 2410.17980) or `softmax`.
      heads: query heads (of each expert, if there are experts).
      head_width: width of a head.
      key_value_heads: None means `heads`, which becomes None.
      key_value: `projected`, or `identity`: keys and values are the normalised input itself.
      biases: projections with a bias. A query or output bias needs dense heads.
      query_key_norm: normalisation of queries and keys before positions are applied.
      query_key_norm_axis: `head` (each head on its own) or `all` (all heads of a token together).
      clip: largest absolute value of queries, keys and values, beyond which they are cut off after
        normalisation and before positions (`clip_qkv` of the OLMo models); None: no bound.
      rope: rotary positions, or None for no position embedding.
      window: keys further back than this many tokens (the current one included) are invisible.
      scale: multiplier of the logits; None means 1/sqrt(head_width), which becomes None.
      attend_current: stick-breaking only: a token may attend to itself.
    """

    heads: int
    head_width: int
    kind: Literal["stickbreaking", "softmax"] = "stickbreaking"
    key_value_heads: int | None = None
    key_value: Literal["projected", "identity"] = "projected"
    biases: tuple[Projection, ...] = ()
    query_key_norm: NormConfig | None = None
    query_key_norm_axis: Literal["head", "all"] = "head"
    clip: float | None = None
    rope: RopeConfig | None = None
    window: int | None = None
    scale: float | None = None
    attend_current: bool = True
    experts: ExpertsConfig | None = None

    def __post_init__(self) -> None:
        require_finite(self, "attention")
        require(self.heads >= 1, f"attention heads must be at least 1, got {self.heads}")
        require(self.head_width >= 1, f"head_width must be at least 1, got {self.head_width}")
        require(
            self.grouped_heads >= 1 and self.heads % self.grouped_heads == 0,
            f"{self.heads} heads do not divide into {self.grouped_heads} key_value_heads",
        )
        require(
            self.window is None or self.window >= 1,
            f"attention window must be at least 1, got {self.window}",
        )
        require(
            self.clip is None or self.clip > 0,
            f"attention clip must be positive, got {self.clip}",
        )
        require(
            self.kind == "stickbreaking" or self.attend_current,
            "softmax attention always attends to the current token: leave attend_current True",
        )
        for name in ("query", "output"):
            require(
                self.experts is None or name not in self.biases,
                f"a mixture of attention heads has no {name} bias (use experts.output_bias)",
            )
        # Equal attention has equal configs, however it was written down.
        if self.key_value_heads == self.heads:
            object.__setattr__(self, "key_value_heads", None)
        if self.scale == self.head_width**-0.5:
            object.__setattr__(self, "scale", None)
        if self.rope is not None:
            rotated = self.head_width * self.rope.fraction
            require(
                rotated == int(rotated) and int(rotated) % 2 == 0,
                f"rope rotates an even number of a head's values, got "
                f"{rotated:g} of {self.head_width}",
            )

    @property
    def grouped_heads(self) -> int:
        """Number of key/value heads."""
        return self.heads if self.key_value_heads is None else self.key_value_heads

    @property
    def query_width(self) -> int:
        """Width of all query heads (of one expert) together."""
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        """Width of all key heads together."""
        return self.grouped_heads * self.head_width
