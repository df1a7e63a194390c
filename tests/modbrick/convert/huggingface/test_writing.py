"""Exports for the transformers library, where it is at hand read by the library itself."""

from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    RouterConfig,
    SegmentConfig,
)
from modbrick.convert import (
    export_checkpoint,
    import_checkpoint,
    open_checkpoint,
    prepare_export,
)
from modbrick.convert.format import Translation
from modbrick.convert.huggingface.writing import write_experts, write_heads, write_objective
from modbrick.convert.registry import FORMATS, recognise
from modbrick.errors import InputError
from modbrick.formats.safetensors import read_safetensors
from modbrick.formats.strict_json import read_object
from tests.contracts.transformers_parity import ROOT, relative_error

PYTHON = os.environ.get("MODBRICK_TRANSFORMERS_PYTHON")
MODELS = Path(os.environ.get("MODBRICK_TRANSFORMERS_MODELS", ROOT))
FAMILIES = ("llama", "mistral", "mixtral", "granitemoe", "olmoe", "jetmoe", "qwen3_moe")
FIXTURES = [
    path.parent
    for path in sorted(MODELS.glob("*/*/config.json"))
    if read_object(path).get("model_type") in FAMILIES
]
RMS = NormConfig("rms", bias=False)


def model_of(attention: AttentionConfig, feed_forward: FeedForwardConfig) -> ModelConfig:
    layer = LayerConfig(attention, feed_forward, RMS)
    return ModelConfig(31, 16, (SegmentConfig(layer, 2),), RMS)


def test_fields_of_heads_and_experts() -> None:
    experts = ExpertsConfig(5, 2, RouterConfig("linear"))
    model = model_of(
        AttentionConfig(4, 6, "softmax", key_value_heads=2, rope=RopeConfig(base=77.0)),
        FeedForwardConfig(12, "silu", gated=True, experts=experts),
    )
    written = write_heads(model)
    assert (written["num_attention_heads"], written["num_key_value_heads"]) == (4, 2)
    assert (written["head_dim"], written["intermediate_size"]) == (6, 12)
    assert (written["hidden_act"], written["rope_theta"]) == ("silu", 77.0)
    assert written["rope_scaling"] is None
    assert written["eos_token_id"] is None
    assert write_experts(experts, count="many") == {"many": 5, "num_experts_per_tok": 2}
    assert write_experts(None, count="many") == {}
    on, off = Translation(model, {"pooled_switch": 0.5}), Translation(model)
    assert write_objective(on) == {"output_router_logits": True, "router_aux_loss_coef": 0.5}
    assert write_objective(off) == {"output_router_logits": False, "router_aux_loss_coef": 0.0}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "attention",
    [
        AttentionConfig(4, 4),  # stick-breaking
        AttentionConfig(4, 4, "softmax"),  # no positions
        AttentionConfig(4, 4, "softmax", rope=RopeConfig(fraction=0.5)),
        AttentionConfig(4, 4, "softmax", rope=RopeConfig(), biases=("query",)),
    ],
    ids=["stick-breaking", "no positions", "partial positions", "one bias"],
)
def test_what_a_family_cannot_say_does_not_read_back(
    family: str, attention: AttentionConfig
) -> None:
    form = FORMATS[family]
    assert form.write_config is not None
    model = model_of(attention, FeedForwardConfig(12, "silu", gated=True))
    try:
        back = form.read_config(form.write_config(Translation(model)), "config.json").model
    except InputError:
        return
    assert back.segments != model.segments


@pytest.mark.skipif(
    PYTHON is None,
    reason="MODBRICK_TRANSFORMERS_PYTHON names no Python that has torch and transformers",
)
@pytest.mark.parametrize("directory", FIXTURES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_library_computes_the_same_from_an_export(directory: Path, tmp_path: Path) -> None:
    """From an export with its original config, and from one whose config is written anew."""
    opened = open_checkpoint(directory)
    config = read_object(directory / "config.json")
    form = recognise("directory", config["model_type"], "config.json")
    assert form.write_config is not None
    import_checkpoint(opened, tmp_path / "ours")
    export = prepare_export(tmp_path / "ours", form, dtype="float32")
    export_checkpoint(export, tmp_path / "original", max_shard_size=5000)
    export.config.clear()
    export.config.update(form.write_config(opened.translation))
    names = {"model_type": form.model_type, "architectures": [form.architecture]}
    export.config.update(names | {"torch_dtype": "float32"})
    export_checkpoint(export, tmp_path / "written")
    inputs = directory / "expected.safetensors"
    want = {name: tensor.read() for name, tensor in read_safetensors(inputs).items()}
    mask = want["attention_mask"] == 1
    results = {name: tmp_path / f"{name}.safetensors" for name in ("original", "written")}
    triples = [(tmp_path / name, inputs, result) for name, result in results.items()]
    assert PYTHON is not None
    subprocess.run(
        [PYTHON, ROOT / "make_transformers_fixtures.py", "evaluate", *itertools.chain(*triples)],
        check=True,
        timeout=300,
        env={key: v for key, v in os.environ.items() if key != "PYTHONPATH"},
    )
    for result in results.values():
        logits = read_safetensors(result)["logits"].read()
        assert relative_error(logits[mask], np.asarray(want["logits"])[mask]) <= 1e-6
