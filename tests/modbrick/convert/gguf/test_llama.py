"""The Llama family in GGUF files: what others compute with a file, and what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from modbrick import load_model
from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    Llama3Scaling,
    ModelConfig,
    NormConfig,
    RopeConfig,
    RouterConfig,
    SegmentConfig,
)
from modbrick.convert import open_checkpoint
from modbrick.convert.gguf.llama import KNOWN, NEUTRAL
from modbrick.errors import InputError
from tests.modbrick.convert.gguf import gguf_files as files
from tests.modbrick.convert.gguf.gguf_files import TYPES, Tensor, Typed

FIXTURES = Path(__file__).parents[3] / "fixtures" / "gguf"
NORM = NormConfig("rms", 1e-6, bias=False)

MODELS = {
    "dense": ModelConfig(
        vocabulary=50,
        width=64,
        segments=(
            SegmentConfig(
                LayerConfig(
                    AttentionConfig(
                        heads=4,
                        head_width=16,
                        kind="softmax",
                        key_value_heads=2,
                        rope=RopeConfig(base=1000.0),
                    ),
                    FeedForwardConfig(96, "silu", gated=True),
                    NORM,
                ),
                2,
            ),
        ),
        norm=NORM,
        context=128,
        tied_head=True,
        dtype="float32",
    ),
    "rope_freqs": ModelConfig(
        vocabulary=50,
        width=32,
        segments=(
            SegmentConfig(
                LayerConfig(
                    AttentionConfig(
                        heads=4,
                        head_width=16,
                        kind="softmax",
                        key_value_heads=1,
                        biases=("query", "key", "value", "output"),
                        rope=RopeConfig(
                            base=500.0, scaling=Llama3Scaling(factor=4.0, original_context=64)
                        ),
                    ),
                    FeedForwardConfig(48, "silu", gated=True, bias=True),
                    NormConfig("rms", 1e-5, bias=False),
                ),
                2,
            ),
        ),
        norm=NormConfig("rms", 1e-5, bias=False),
        context=256,
        dtype="float32",
    ),
    "experts": ModelConfig(
        vocabulary=50,
        width=32,
        segments=(
            SegmentConfig(
                LayerConfig(
                    AttentionConfig(
                        heads=4,
                        head_width=8,
                        kind="softmax",
                        key_value_heads=2,
                        rope=RopeConfig(base=1e6),
                    ),
                    FeedForwardConfig(
                        24,
                        "silu",
                        gated=True,
                        experts=ExpertsConfig(4, 2, RouterConfig("linear", gates="renormalised")),
                    ),
                    NormConfig("rms", 1e-5, bias=False),
                ),
                2,
            ),
        ),
        norm=NormConfig("rms", 1e-5, bias=False),
        context=128,
        dtype="float32",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_metadata_and_tensors_become_a_model(name: str) -> None:
    assert open_checkpoint(FIXTURES / f"{name}.gguf").model == MODELS[name]


@pytest.mark.parametrize("name", MODELS)
def test_computes_what_others_do(name: str) -> None:
    wanted = load_file(FIXTURES / f"{name}.safetensors")
    model = load_model(FIXTURES / f"{name}.gguf")
    found = np.asarray(jax.jit(lambda tokens: model(tokens).logits)(jnp.asarray(wanted["tokens"])))
    error = np.linalg.norm(found - wanted["logits"]) / np.linalg.norm(wanted["logits"])
    assert np.isfinite(found).all()
    assert error < 1e-5
    assert np.array_equal(found.argmax(-1), wanted["logits"].argmax(-1))


METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 12,
    "llama.attention.head_count": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def tensors(kind: str = "F32", width: int = 8, hidden: int = 12) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (10, width), "output": (10, width)}
    shapes["output_norm"] = (width,)
    for layer in range(2):
        for name in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{layer}.{name}"] = (width,)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{name}"] = (width, width)
        for name in ("ffn_gate", "ffn_up"):
            shapes[f"blk.{layer}.{name}"] = (hidden, width)
        shapes[f"blk.{layer}.ffn_down"] = (width, hidden)
    return {f"{n}.weight": files.random_blocks(kind, shape) for n, shape in shapes.items()}


Change = Callable[[dict[str, Any], dict[str, Tensor]], object]


def opened(path: Path, change: Change = lambda metadata, tensors: None) -> ModelConfig:
    metadata, stored = dict(METADATA), tensors()
    change(metadata, stored)
    return open_checkpoint(files.write(path / "a.gguf", metadata, stored)).model


def test_a_small_file_is_a_model(tmp_path: Path) -> None:
    model = opened(tmp_path)
    attention = model.layers[1].attention
    assert (attention.heads, attention.grouped_heads, attention.head_width) == (2, 2, 4)
    assert attention.rope == RopeConfig()
    assert not model.tied_head
    assert model.dtype == "float32"


def test_bfloat16_files_are_computed_in_bfloat16(tmp_path: Path) -> None:
    path = files.write(tmp_path / "a.gguf", METADATA, tensors("BF16"))
    assert open_checkpoint(path).model.dtype == "bfloat16"


def test_mixtures_of_encodings(tmp_path: Path) -> None:
    """As writers mix them: most in one encoding, the head and some others in better ones."""
    stored = tensors("Q4_0", 256, 256)
    better = {"output": "Q6_K", "blk.0.attn_v": "Q5_K", "blk.1.ffn_down": "Q5_0"}
    for name, kind in better.items():
        shape = stored[f"{name}.weight"].shape
        stored[f"{name}.weight"] = files.random_blocks(kind, shape)
    sizes = {"llama.embedding_length": 256, "llama.feed_forward_length": 256}
    found = open_checkpoint(files.write(tmp_path / "a.gguf", METADATA | sizes, stored))
    plain = {name: tensor.read() for name, tensor in found.source.tensors.items()}
    assert np.array_equal(found.read("head.weight"), plain["output.weight"].T)
    value, down = "segments.0.attention.value.weight", "segments.0.feed_forward.down.weight"
    assert np.array_equal(found.read(value)[0], plain["blk.0.attn_v.weight"].T)
    columns = found.read(down, (slice(1, 2), slice(None), slice(7, 90)))
    assert np.array_equal(columns[0], plain["blk.1.ffn_down.weight"].T[:, 7:90])


def test_without_a_head_it_is_the_embedding(tmp_path: Path) -> None:
    assert opened(tmp_path, lambda m, t: t.pop("output.weight")).tied_head


def test_the_scale_of_attention(tmp_path: Path) -> None:
    scale = opened(tmp_path, lambda m, t: m.update({"llama.attention.scale": 0.25}))
    assert scale.layers[0].attention.scale == 0.25


def test_neutral_settings_change_nothing(tmp_path: Path) -> None:
    neutral = {f"llama.{name}": value for name, value in NEUTRAL.items()}
    assert opened(tmp_path, lambda m, t: m.update(neutral)) == opened(tmp_path)
    assert set(NEUTRAL) < set(KNOWN)


def test_keys_that_are_ignored(tmp_path: Path) -> None:
    metadata = METADATA | {"llama.odd": [1, 2], "llama.odder": 3}
    path = files.write(tmp_path / "a.gguf", metadata, tensors())
    with pytest.raises(InputError, match=r"llama\.odd, llama\.odder .*--ignore_keys"):
        open_checkpoint(path)
    found = open_checkpoint(path, ignore_keys=["llama.odd", "llama.odder"])
    assert found.ignored_keys == {"llama.odd": "an array of 2 values", "llama.odder": "3"}
    with pytest.raises(InputError, match="no key 'tensors' to ignore"):
        open_checkpoint(path, ignore_keys=["tensors"])


def setting(name: str, value: Any) -> Change:
    return lambda m, t: m.update({f"llama.{name}": value})


REFUSED: dict[str, tuple[Change, str]] = {
    "another architecture": (
        lambda m, t: m.update({"general.architecture": "qwen2"}),
        "model_type is 'qwen2', which is not read",
    ),
    "no architecture": (lambda m, t: m.pop("general.architecture"), "model_type is 'None'"),
    "an unknown setting": (setting("embedding_scale", 2.0), "not supported: llama.embedding_scale"),
    "a window": (setting("attention.sliding_window", 4096), r"window is 4096; only 0 is"),
    "windows": (setting("attention.sliding_window", [4, 4]), "window is an array of 2 values"),
    "no causality": (setting("attention.causal", False), "causal is False; only True"),
    "clipping": (setting("attention.clamp_kqv", 8.0), "clamp_kqv is 8.0; only 0.0"),
    "shared experts": (setting("expert_shared_count", 1), "expert_shared_count is 1; only 0"),
    "other gates": (setting("expert_gating_func", 2), "expert_gating_func is 2; only 1"),
    "partial rotation": (setting("rope.dimension_count", 2), "only the head width, 4"),
    "other values": (setting("attention.value_length", 2), "value_length is 2; only that of keys"),
    "heads by layer": (setting("attention.head_count", [2, 2]), "an array of 2 values; expected"),
    "no heads": (setting("attention.head_count", 0), "does not divide"),
    "odd heads": (setting("attention.head_count", 3), "the width 8 does not divide into it"),
    "odd groups": (
        setting("attention.head_count_kv", 3),
        "2 heads do not divide into 3 key_value_heads",
    ),
    "no width": (lambda m, t: m.pop("llama.embedding_length"), "embedding_length is missing"),
    "no epsilon": (
        lambda m, t: m.pop("llama.attention.layer_norm_rms_epsilon"),
        "layer_norm_rms_epsilon is missing",
    ),
    "no layers": (setting("block_count", 0), "repeats must be at least 1"),
    "layers without end": (setting("block_count", 2**31), "block_count is 2147483648"),
    "a width beyond the file": (setting("embedding_length", 2**31), "no tensor is larger than 12"),
    "heads without end": (setting("attention.head_count", 2**31), "no tensor is larger than 12"),
    "a hidden width beyond the file": (
        setting("feed_forward_length", 2**31),
        "no tensor is larger than 12",
    ),
    "experts beyond the file": (setting("expert_count", 2**31), "no tensor is larger than 12"),
    "another vocabulary": (setting("vocab_size", 11), "vocab_size is 11; token_embd.weight has 10"),
    "no embedding": (lambda m, t: t.pop("token_embd.weight"), "no matrix token_embd.weight"),
    "tensors of other names": (
        lambda m, t: t.update({"blk.0.attn_q_norm.weight": files.floats(4)}),
        "blk.0.attn_q_norm.weight is not expected",
    ),
    "a tensor missing": (
        lambda m, t: t.pop("blk.1.ffn_up.weight"),
        "blk.1.ffn_up.weight is missing",
    ),
    "a bias in one layer": (
        lambda m, t: t.update({"blk.1.attn_q.bias": files.floats(8)}),
        "blk.0.attn_q.bias is missing",
    ),
    "another shape": (
        lambda m, t: t.update({"blk.1.ffn_up.weight": files.floats(8, 12)}),
        r"blk.1.ffn_up.weight has shape \[8, 12\], expected \[12, 8\]",
    ),
    "experts of their own": (
        lambda m, t: t.update({"blk.0.ffn_up.3.weight": files.floats(12, 8)}),
        "every expert has tensors of its own",
    ),
    "experts without their number": (setting("expert_count", 4), "expert_used_count is missing"),
    "other blocks": (
        lambda m, t: t.update({"output.weight": Tensor((10, 8), b"", TYPES["IQ4_NL"])}),
        "'output.weight' is stored as IQ4_NL, which is not read",
    ),
    "a count that is a number": (setting("block_count", Typed(files.F32, 2.0)), "expected a count"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path: Path, case: str) -> None:
    change, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path, change)
    assert str(tmp_path / "a.gguf") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
