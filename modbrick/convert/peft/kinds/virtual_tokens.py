"""Virtual tokens in PEFT's format: PREFIX_TUNING, PROMPT_TUNING and P_TUNING.

One tensor `prompt_embeddings` has a row for each of P tokens: embeddings `[P, D]`, in front of what
the model multiplies embeddings by; or, of a prefix, keys and values of L layers of G heads
`[P, L 2 G W]`, the keys as they are stored in a cache. What reparameterises them in training (an
encoder, a projection) is computed as the adapter is stored.

Tokens of a document stand at positions P, P + 1, ... there, and at 0, 1, ... here: rotary keys here
are turned back by P positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from modbrick.bricks.kinds.prefix import Prefix
from modbrick.bricks.kinds.prompt import Prompt
from modbrick.config import AttentionConfig, ModelConfig
from modbrick.convert.peft.piece import Piece
from modbrick.errors import InputError, listed
from modbrick.layers.positions import rope_multiplier, rotate

EMBEDDINGS = "prompt_embeddings"

_PROMPT, _MEMORY = "prompt", "attention.memory"
"""Sites of both kinds."""


@dataclasses.dataclass(frozen=True)
class VirtualTokens:
    """Settings of a `PromptLearningConfig` that say what is stored.

    Attributes:
      num_virtual_tokens: P.
      token_dim: width of a row, or of one layer's keys in it; this and the others follow from the
        model, and need not be there.
      num_layers: of the model.
      num_attention_heads: of a prefix, those of keys; else without effect.
      num_transformer_submodules: 1, a decoder.
    """

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    num_virtual_tokens: int = 0
    token_dim: int | None = None
    num_layers: int | None = None
    num_attention_heads: int | None = None
    num_transformer_submodules: int | None = None

    def __post_init__(self) -> None:
        if self.num_virtual_tokens < 1:
            raise InputError(f"num_virtual_tokens is {self.num_virtual_tokens}, there must be one")

    def check(self, model: ModelConfig) -> None:
        """Refuses sizes that are not the model's, each by name.

        Raises:
          InputError: they differ.
        """
        problems = [
            f"{name} is {stored}, not {own}"
            for name, own in self.sizes(model).items()
            if (stored := getattr(self, name)) not in (None, own)
        ]
        if problems:
            raise InputError(f"not for this model: {listed(problems)}")

    def sizes(self, model: ModelConfig) -> dict[str, int]:
        """Returns what a model has, by the names of settings."""
        return {
            "token_dim": model.width,
            "num_layers": len(_layers(model)),
            "num_transformer_submodules": 1,
        }

    def shape(self, model: ModelConfig) -> tuple[int, int]:
        """Returns the shape of the tensor."""
        return self.num_virtual_tokens, model.width

    def pieces(
        self, rows: Float[np.ndarray, "P D"], name: str, model: ModelConfig
    ) -> Iterator[Piece]:
        """Yields a prompt."""
        leaves = {"embeddings": rows * np.float32(model.embedding_multiplier)}
        yield Piece(_PROMPT, Prompt(self.num_virtual_tokens), leaves, name)


@dataclasses.dataclass(frozen=True)
class PromptSettings(VirtualTokens):
    """Settings of `PromptTuningConfig`."""

    aside: ClassVar = (
        "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path",
        "tokenizer_kwargs",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EncodedPromptSettings(VirtualTokens):
    """Settings of `PromptEncoderConfig`, p-tuning."""

    aside: ClassVar = (
        "encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers",
        "encoder_dropout",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class PrefixSettings(VirtualTokens):
    """Settings of `PrefixTuningConfig`."""

    aside: ClassVar = ("encoder_hidden_size", "prefix_projection", "init_weights")

    def sizes(self, model: ModelConfig) -> dict[str, int]:
        """Returns what a model has, by the names of settings; refuses layers of several widths."""
        widths = {layer.key_width for layer in _layers(model)}
        if len(widths) > 1:
            raise InputError(f"layers have keys of widths {sorted(widths)}: PEFT has one prefix")
        heads = {"token_dim": widths.pop(), "num_attention_heads": _layers(model)[0].grouped_heads}
        return super().sizes(model) | heads

    def shape(self, model: ModelConfig) -> tuple[int, int]:
        """Returns the shape of the tensor."""
        return self.num_virtual_tokens, 2 * sum(layer.key_width for layer in _layers(model))

    def pieces(
        self, rows: Float[np.ndarray, "P D"], name: str, model: ModelConfig
    ) -> Iterator[Piece]:
        """Yields a prefix for each layer."""
        layers = _layers(model)
        parts = rows.reshape(len(rows), len(layers), 2, -1)
        for number, layer in enumerate(layers):
            keys, values = parts[:, number, 0], parts[:, number, 1]
            leaves = {"keys": _turned(keys, layer, -len(rows)), "values": values}
            yield Piece(f"layer.{number}.{_MEMORY}", Prefix(len(rows)), leaves, name)


KINDS: Mapping[str, type[PromptSettings] | type[EncodedPromptSettings] | type[PrefixSettings]] = {
    "PREFIX_TUNING": PrefixSettings,
    "PROMPT_TUNING": PromptSettings,
    "P_TUNING": EncodedPromptSettings,
}
"""By `peft_type`."""


def written(
    pieces: list[Piece], model: ModelConfig
) -> tuple[dict[str, Any], Float[np.ndarray, "P D"]]:
    """Returns the settings of an adapter, and its tensor.

    Args:
      pieces: of prefixes and prompts.
      model: the base.

    Raises:
      InputError: they are not one prompt, or one prefix in all layers.
    """
    first = pieces[0]
    names = " and ".join(dict.fromkeys(piece.brick for piece in pieces))
    if any(piece.settings != first.settings for piece in pieces):
        raise InputError(f"{names} are of several lengths or kinds, PEFT has one in an adapter")
    if isinstance(first.settings, Prompt):
        if len(pieces) > 1:
            raise InputError(f"{names} are prompts, of which PEFT has one in an adapter")
        rows = first.leaves["embeddings"] / np.float32(model.embedding_multiplier)
        return _settings("PROMPT_TUNING", PromptSettings(len(rows)), model), rows
    at = {piece.address: piece for piece in pieces}
    layers = _layers(model)
    addresses = [f"layer.{number}.{_MEMORY}" for number in range(len(layers))]
    if len(pieces) > len(at) or at.keys() != set(addresses):
        raise InputError(f"{names}: PEFT has one prefix in an adapter, and that in all layers")
    parts = []
    for address, layer in zip(addresses, layers, strict=True):
        leaves = at[address].leaves
        parts += [_turned(leaves["keys"], layer, len(leaves["keys"])), leaves["values"]]
    rows = np.concatenate(parts, axis=1)
    return _settings("PREFIX_TUNING", PrefixSettings(len(rows)), model), rows


def _settings(kind: str, settings: VirtualTokens, model: ModelConfig) -> dict[str, Any]:
    sizes = {"num_virtual_tokens": settings.num_virtual_tokens} | settings.sizes(model)
    return {"peft_type": kind, "task_type": "CAUSAL_LM"} | sizes


def _layers(model: ModelConfig) -> list[AttentionConfig]:
    """Returns the attention of each layer."""
    return [s.layer.attention for s in model.segments for _ in range(s.repeats)]


def _turned(
    keys: Float[np.ndarray, "P A"], layer: AttentionConfig, positions: int
) -> Float[np.ndarray, "P A"]:
    """Returns keys rotated by some positions."""
    if layer.rope is None:
        return keys
    by_head = keys.reshape(1, len(keys), layer.grouped_heads, -1)
    turned = rotate(layer.rope, jnp.asarray(by_head), jnp.full((1, len(keys)), positions))
    return np.asarray(turned).reshape(keys.shape) / np.float32(rope_multiplier(layer.rope))
