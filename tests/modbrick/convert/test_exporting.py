"""What a format cannot say is refused by name; what can be said is exact, in pieces of any size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from modbrick.checkpoints import Metadata, save_model
from modbrick.config import ModelConfig, NormConfig
from modbrick.config.families import moduleformer
from modbrick.convert import (
    export_checkpoint,
    exporting,
    format_named,
    import_checkpoint,
    open_checkpoint,
    prepare_export,
)
from modbrick.decoder.functional import functional_decoder
from modbrick.errors import InputError

FIXTURES = Path(__file__).parents[2] / "fixtures/moduleformer"
FORM = format_named("moduleformer")
MODEL = moduleformer(
    vocabulary=31,
    width=12,
    layers=2,
    heads=2,
    attention_width=8,
    feed_forward_width=10,
    attention_experts=3,
    feed_forward_experts=4,
    router_width=6,
)


def saved(directory: Path, model: ModelConfig) -> Path:
    draw = np.random.default_rng(0)
    parameters = jax.tree.map(
        lambda leaf: draw.normal(size=leaf.shape).astype(np.float32),
        functional_decoder(model).table.abstract(),
    )
    save_model(directory, parameters, Metadata(model=model))
    return directory


def changed(model: ModelConfig, **layer: Any) -> ModelConfig:
    (segment,) = model.segments
    return model.replace(
        segments=(dataclasses.replace(segment, layer=dataclasses.replace(segment.layer, **layer)),)
    )


LAYER = MODEL.layers[0]
REFUSED = {
    "segments[0].layer.attention.kind": changed(
        MODEL, attention=dataclasses.replace(LAYER.attention, kind="softmax")
    ),
    "segments[0].layer.attention.window": changed(
        MODEL, attention=dataclasses.replace(LAYER.attention, window=5)
    ),
    "segments[0].layer.feed_forward.gated": changed(
        MODEL, feed_forward=dataclasses.replace(LAYER.feed_forward, gated=True)
    ),
    "segments[0].layer.residual_multiplier": changed(MODEL, residual_multiplier=0.5),
    "norm.kind": MODEL.replace(norm=NormConfig(kind="rms", bias=False)),
    "embedding_multiplier": MODEL.replace(embedding_multiplier=2.0),
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_the_format_cannot_say_is_named(tmp_path: Path, field: str) -> None:
    directory = saved(tmp_path / "ours", REFUSED[field])
    with pytest.raises(InputError, match="moduleformer cannot express it") as caught:
        prepare_export(directory, FORM)
    assert field in str(caught.value)


def test_layers_that_differ_are_refused(tmp_path: Path) -> None:
    other = changed(MODEL, residual_multiplier=0.5)
    model = MODEL.replace(segments=MODEL.segments + other.segments)
    with pytest.raises(InputError, match="cannot express it"):
        prepare_export(saved(tmp_path / "ours", model), FORM)


@pytest.mark.parametrize("piece", [1, 100, 1 << 30])
def test_pieces_of_any_size_give_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    directory = saved(tmp_path / "ours", MODEL)
    monkeypatch.setattr(exporting, "SLICE", piece)
    monkeypatch.setattr(exporting, "_IN_FLIGHT", 500)
    written: list[int] = []
    export = prepare_export(directory, FORM)
    export_checkpoint(export, tmp_path / "out", progress=written.append)
    assert sum(written) == export.nbytes
    checkpoint = open_checkpoint(tmp_path / "out")
    import_checkpoint(checkpoint, tmp_path / "again")
    assert checkpoint.model == MODEL.replace(router_statistics="all", dtype="float32")
    before, after = (
        prepare_export(path, FORM).description.parameters
        for path in (directory, tmp_path / "again")
    )
    assert before == after  # shapes, dtypes and checksums of all values


def test_a_model_that_changed_since_its_import_has_a_config_of_its_own(tmp_path: Path) -> None:
    source = FIXTURES / "multihead_padded"
    checkpoint = open_checkpoint(source)
    import_checkpoint(checkpoint, tmp_path / "ours")
    description = prepare_export(tmp_path / "ours", FORM).description
    deeper = checkpoint.model.replace(
        segments=(dataclasses.replace(checkpoint.model.segments[0], repeats=4),)
    )
    metadata = dataclasses.replace(description.metadata, model=deeper)
    config = exporting.foreign_config(FORM, metadata, "float32", "here")
    original = json.loads((source / "config.json").read_text())
    assert config["n_layer"] == 4
    assert FORM.read_config(config, "").model.segments == deeper.segments
    kept = set(original) - set(config)
    assert not kept


def test_damaged_checkpoints_leave_nothing(tmp_path: Path) -> None:
    directory = saved(tmp_path / "ours", MODEL)
    data = (directory / "checkpoints" / "0" / "parameters" / "d").iterdir()
    largest = max(data, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 3] ^= 4
    largest.write_bytes(content)
    export = prepare_export(directory, FORM)
    with pytest.raises(InputError, match="is damaged"):
        export_checkpoint(export, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_values_beyond_a_dtype_are_refused(tmp_path: Path) -> None:
    values = Metadata(model=MODEL)
    state = functional_decoder(MODEL).table.abstract()
    parameters = jax.tree.map(lambda leaf: np.full(leaf.shape, 1e5, np.float32), state)
    save_model(tmp_path / "ours", parameters, values)
    export = prepare_export(tmp_path / "ours", FORM, dtype="float16")
    with pytest.raises(InputError, match=r"transformer\.wte\.weight has values beyond the range"):
        export_checkpoint(export, tmp_path / "out")
    with pytest.raises(InputError, match="max_shard_size must be at least 1"):
        export_checkpoint(export, tmp_path / "out", max_shard_size=0)
