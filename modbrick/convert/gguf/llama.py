"""GGUF files of the Llama family: Llama, Mistral, Mixtral, SmolLM and others of that architecture.

Names of tensors and keys as in github.com/ggml-org/llama.cpp, src/llama-arch.cpp. llama.cpp rotates
neighbouring values of a head, so its files keep the rows of queries and keys interleaved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    NormConfig,
    Projection,
    RouterConfig,
    SegmentConfig,
)
from modbrick.convert.format import Format, Row, Translation, row
from modbrick.convert.gguf.header import GgufFile
from modbrick.convert.gguf.keys import Keys
from modbrick.convert.gguf.rope import ROPE_KEYS, rope_config
from modbrick.convert.transforms import TRANSPOSED, InterleavedRotary
from modbrick.errors import InputError, located
from modbrick.formats.stored_tensor import StoredTensor

ARCHITECTURE = "llama"

TENSORS = "\0tensors"
"""The key under which `source_config` puts the tensors beside the metadata; nobody else uses it."""

EMBEDDING, HEAD, FREQUENCIES = "token_embd.weight", "output.weight", "rope_freqs.weight"

NEUTRAL: Mapping[str, Any] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.sliding_window": 0,
    "expert_gating_func": 1,
    "expert_group_count": 0,
    "expert_shared_count": 0,
    "expert_weights_scale": 1.0,
    "leading_dense_block_count": 0,
    "pooling_type": 0,
    "tensor_data_layout": "Meta AI original pth",
    "use_parallel_residual": False,
}
"""Keys whose only supported value says that the feature is not used."""

KNOWN = (
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("attention.key_length", "attention.value_length", "attention.scale"),
    *("expert_count", "expert_used_count", "expert_feed_forward_length"),
    *ROPE_KEYS,
    *NEUTRAL,
)
"""All keys of the architecture that are understood; any other is refused."""

SIZES = (
    *("embedding_length", "feed_forward_length", "attention.head_count", "expert_count"),
    *("attention.head_count_kv", "attention.key_length", "expert_feed_forward_length"),
)
"""Keys that some axis of some tensor must be as large as."""

_QUERY = InterleavedRotary(lambda layer: layer.attention.heads)
_KEY = InterleavedRotary(lambda layer: layer.attention.grouped_heads)

_OUTER = (
    row("embedding", EMBEDDING),
    row("norm.scale", "output_norm.weight"),
    row("head.weight", HEAD, TRANSPOSED),
)
_ATTENTION = (
    row("attention_norm.scale", "blk.{layer}.attn_norm.weight"),
    row("attention.query.weight", "blk.{layer}.attn_q.weight", _QUERY),
    row("attention.query.bias", "blk.{layer}.attn_q.bias", _QUERY),
    row("attention.key.weight", "blk.{layer}.attn_k.weight", _KEY),
    row("attention.key.bias", "blk.{layer}.attn_k.bias", _KEY),
    row("attention.value.weight", "blk.{layer}.attn_v.weight", TRANSPOSED),
    row("attention.value.bias", "blk.{layer}.attn_v.bias"),
    row("attention.output.weight", "blk.{layer}.attn_output.weight", TRANSPOSED),
    row("attention.output.bias", "blk.{layer}.attn_output.bias"),
    row("feed_forward_norm.scale", "blk.{layer}.ffn_norm.weight"),
)
_DENSE = (
    row("feed_forward.gate.weight", "blk.{layer}.ffn_gate.weight", TRANSPOSED),
    row("feed_forward.gate.bias", "blk.{layer}.ffn_gate.bias"),
    row("feed_forward.up.weight", "blk.{layer}.ffn_up.weight", TRANSPOSED),
    row("feed_forward.up.bias", "blk.{layer}.ffn_up.bias"),
    row("feed_forward.down.weight", "blk.{layer}.ffn_down.weight", TRANSPOSED),
    row("feed_forward.down.bias", "blk.{layer}.ffn_down.bias"),
)
_EXPERTS = (
    row("feed_forward.router.output.weight", "blk.{layer}.ffn_gate_inp.weight", TRANSPOSED),
    row("feed_forward.gate.weight", "blk.{layer}.ffn_gate_exps.weight", TRANSPOSED),
    row("feed_forward.up.weight", "blk.{layer}.ffn_up_exps.weight", TRANSPOSED),
    row("feed_forward.down.weight", "blk.{layer}.ffn_down_exps.weight", TRANSPOSED),
)


def layer_rows(layer: LayerConfig) -> tuple[Row, ...]:
    """Rows of a layer, dense or sparse."""
    return (*_ATTENTION, *(_EXPERTS if layer.feed_forward.experts else _DENSE))


def source_config(file: GgufFile) -> dict[str, Any]:
    """Returns what `read_config` reads of a file: its metadata, and its tensors under `TENSORS`."""
    return {**file.metadata, TENSORS: file.tensors}


def read_config(config: Mapping[str, Any], where: str) -> Translation:
    """Returns the model that llama.cpp would run.

    Args:
      config: of `source_config`.
      where: begins every message.

    Raises:
      InputError: anything that this library would compute otherwise, by name, or sizes that no
        tensor has.
    """
    tensors: Mapping[str, StoredTensor] = config[TENSORS]
    keys = Keys(config, f"{ARCHITECTURE}.", where)
    keys.refuse_others(KNOWN)
    _refuse_features(keys)
    _check_sizes(keys, tensors)
    _check_experts(tensors, where)
    with located(where):
        return Translation(_model(keys, tensors))


def _model(keys: Keys, tensors: Mapping[str, StoredTensor]) -> ModelConfig:
    context = keys.count("context_length")
    norm = NormConfig("rms", keys.number("attention.layer_norm_rms_epsilon"), bias=False)
    layer = LayerConfig(_attention(keys, tensors, context), _feed_forward(keys, tensors), norm)
    return ModelConfig(
        vocabulary=_vocabulary(keys, tensors),
        width=keys.count("embedding_length"),
        segments=(SegmentConfig(layer, keys.count("block_count")),),
        norm=norm,
        context=context,
        tied_head=HEAD not in tensors,
        dtype=_dtype(tensors),
    )


def _attention(keys: Keys, tensors: Mapping[str, StoredTensor], context: int) -> AttentionConfig:
    heads, width = keys.count("attention.head_count"), keys.count("embedding_length")
    if heads < 1 or (width % heads and f"{keys.prefix}attention.key_length" not in keys.metadata):
        raise keys.error("attention.head_count", f"the width {width} does not divide into it")
    head_width = keys.count("attention.key_length", width // heads)
    if keys.count("attention.value_length", head_width) != head_width:
        raise keys.error("attention.value_length", f"only that of keys, {head_width}, is supported")
    divisors = tensors[FREQUENCIES].read() if FREQUENCIES in tensors else None
    names: dict[Projection, str] = {"query": "q", "key": "k", "value": "v", "output": "output"}
    return AttentionConfig(
        heads=heads,
        head_width=head_width,
        kind="softmax",
        key_value_heads=keys.count("attention.head_count_kv", heads),
        biases=tuple(side for side, name in names.items() if _has(tensors, f"attn_{name}.bias")),
        rope=rope_config(keys, head_width, context, divisors),
        scale=keys.number("attention.scale", 0.0) or None,
    )


def _refuse_features(keys: Keys) -> None:
    for name, value in NEUTRAL.items():
        found = keys.metadata.get(keys.prefix + name, value)
        if not isinstance(found, type(value)) or found != value:
            raise keys.error(name, f"only {value!r} is supported")


def _check_sizes(keys: Keys, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuses sizes beyond those of any tensor before something of such a size is made."""
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    for name in SIZES:
        if keys.count(name, 0) > largest:
            raise keys.error(name, f"no tensor is larger than {largest} along any axis")
    if keys.count("block_count") > len(tensors):
        raise keys.error("block_count", f"there are only {len(tensors)} tensors")


def _check_experts(tensors: Mapping[str, StoredTensor], where: str) -> None:
    if any(re.fullmatch(r"blk\.\d+\.ffn_(gate|up|down)\.\d+\.weight", name) for name in tensors):
        raise InputError(
            f"{where}: every expert has tensors of its own, as llama.cpp wrote them until April "
            "2024, which is not read: convert the original again"
        )


def _vocabulary(keys: Keys, tensors: Mapping[str, StoredTensor]) -> int:
    if EMBEDDING not in tensors or len(tensors[EMBEDDING].shape) != 2:
        raise InputError(f"{keys.where}: there is no matrix {EMBEDDING}")
    vocabulary = tensors[EMBEDDING].shape[0]
    if keys.count("vocab_size", vocabulary) != vocabulary:
        raise keys.error("vocab_size", f"{EMBEDDING} has {vocabulary} rows")
    return vocabulary


def _feed_forward(keys: Keys, tensors: Mapping[str, StoredTensor]) -> FeedForwardConfig:
    hidden, count = keys.count("feed_forward_length"), keys.count("expert_count", 0)
    if not count:
        bias = any(_has(tensors, f"ffn_{name}.bias") for name in ("gate", "up", "down"))
        return FeedForwardConfig(hidden=hidden, activation="silu", gated=True, bias=bias)
    if keys.count("expert_feed_forward_length", hidden) != hidden:
        raise keys.error("expert_feed_forward_length", f"only {hidden} is supported")
    router = RouterConfig(kind="linear", gates="renormalised")
    experts = ExpertsConfig(count, keys.count("expert_used_count"), router)
    return FeedForwardConfig(hidden=hidden, activation="silu", gated=True, experts=experts)


def _has(tensors: Mapping[str, StoredTensor], ending: str) -> bool:
    """Returns whether any layer has a tensor; one that others then lack is reported as missing."""
    return any(re.fullmatch(rf"blk\.\d+\.{re.escape(ending)}", name) for name in tensors)


def _dtype(tensors: Mapping[str, StoredTensor]) -> Literal["float32", "bfloat16"]:
    """The dtype to compute in: that of the matrices if it is bfloat16, or float32."""
    matrices = [tensor for tensor in tensors.values() if len(tensor.shape) > 1]
    return "bfloat16" if all(t.dtype.name == "bfloat16" for t in matrices) else "float32"


GGUF_LLAMA = Format(
    name="gguf",
    model_type=ARCHITECTURE,
    architecture="LlamaForCausalLM",
    outer=_OUTER,
    layer=layer_rows,
    read_config=read_config,
    write_config=None,
    layers_key=f"{ARCHITECTURE}.block_count",
    ignored=re.compile(re.escape(FREQUENCIES)),
    container="gguf",
)
