"""Files whose tensors have other names or another layout than the table: the same model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from modbrick.checkpoints import describe
from modbrick.convert import (
    OpenedSource,
    export_checkpoint,
    format_named,
    import_checkpoint,
    open_checkpoint,
    prepare_export,
)
from modbrick.errors import InputError

FIXTURES = Path(__file__).parents[2] / "fixtures"
LIVE = sorted(FIXTURES.glob("*/*/live.safetensors"))
FAMILIES = ("llama", "mistral", "mixtral", "granitemoe", "olmoe", "jetmoe", "qwen3_moe")
Tensors = dict[str, np.ndarray]


def model(family: str) -> Path:
    return min(FIXTURES.glob(f"{family}/*/config.json")).parent


def tensors_of(source: Path) -> Tensors:
    files = source.glob("model*.safetensors")
    return {name: value for file in files for name, value in load_file(file).items()}


def written(directory: Path, source: Path, tensors: Tensors, **changes: Any) -> Path:
    """A checkpoint with the config of another, changed, and these tensors."""
    directory.mkdir()
    config = json.loads((source / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return directory


def assert_same(found: OpenedSource, wanted: OpenedSource) -> None:
    """Byte for byte the same parameters."""
    assert found.model == wanted.model
    for info in wanted.correspondence.parameters:
        values = found.read(info.path)
        assert values.dtype == wanted.read(info.path).dtype
        assert values.tobytes() == wanted.read(info.path).tobytes(), info.path
        halves = tuple(slice(size // 2, size) for size in info.shape)
        assert np.array_equal(found.read(info.path, halves), values[halves])


@pytest.mark.parametrize("live", LIVE, ids=lambda path: path.parts[-3])
def test_what_the_library_holds_in_memory(tmp_path: Path, live: Path) -> None:
    """Saved as it is, release 5 reads it; its banks of experts are one tensor each."""
    assert len(LIVE) == 4
    wanted = open_checkpoint(live.parent)
    source = written(tmp_path / "live", live.parent, load_file(live))
    found = open_checkpoint(source)
    assert_same(found, wanted)
    import_checkpoint(found, tmp_path / "ours")
    export = prepare_export(tmp_path / "ours", found.form)
    export_checkpoint(export, tmp_path / "theirs")
    again = tensors_of(tmp_path / "theirs")
    assert again.keys() == {*wanted.source.tensors} - {*wanted.correspondence.aliases}
    assert all(again[name].tobytes() == t.read().tobytes() for name, t in wanted.tensors.items())


MIXED: dict[str, Callable[[str], str]] = {
    "new block": lambda name: name.replace("block_sparse_moe", "mlp"),
    "old block": lambda name: name.replace("mlp", "block_sparse_moe"),
}


@pytest.mark.parametrize("case", MIXED)
def test_the_block_of_a_mixtral_has_two_names(tmp_path: Path, case: str) -> None:
    source = model("mixtral")
    fused = load_file(source / "live.safetensors")
    for number, tensors in enumerate((tensors_of(source), fused)):
        named = {MIXED[case](name): values for name, values in tensors.items()}
        directory = written(tmp_path / str(number), source, named)
        assert_same(open_checkpoint(directory), open_checkpoint(source))


def test_layers_that_differ_in_layout_are_refused(tmp_path: Path) -> None:
    source = model("olmoe")
    fused = {n: v for n, v in load_file(source / "live.safetensors").items() if ".layers.0." in n}
    apart = {n: v for n, v in tensors_of(source).items() if ".layers.0." not in n}
    with pytest.raises(InputError, match=r"layers\.\d\.mlp\.experts\.\S+ is missing"):
        open_checkpoint(written(tmp_path / "a", source, fused | apart))


def test_transposed_banks_are_refused_by_shape(tmp_path: Path) -> None:
    source = model("mixtral")
    tensors = load_file(source / "live.safetensors")
    for name in [name for name in tensors if ".experts." in name]:
        tensors[name] = np.ascontiguousarray(tensors[name].swapaxes(1, 2))
    with pytest.raises(InputError, match=r"gate_up_proj has shape \[5, 16, 20\], expected"):
        open_checkpoint(written(tmp_path / "a", source, tensors))


def test_one_tensor_under_two_names(tmp_path: Path) -> None:
    source = model("granitemoe")
    tensors = tensors_of(source)
    name = "model.layers.1.block_sparse_moe.router.layer.weight"
    other = name.replace(".layer.", ".")
    same = written(tmp_path / "same", source, tensors | {other: tensors[name]})
    assert_same(open_checkpoint(same), open_checkpoint(source))
    differs = written(tmp_path / "differs", source, tensors | {other: tensors[name] + 1})
    with pytest.raises(InputError, match=f"{name} and {other} are one tensor, and differ"):
        open_checkpoint(differs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_its_head(tmp_path: Path, family: str) -> None:
    """Names leave the beginning out; the head is there, or tied to the embedding, or missed."""
    source = model(family)
    wanted = open_checkpoint(source)
    tensors = {name.removeprefix("model."): value for name, value in tensors_of(source).items()}
    classes = {"architectures": [wanted.form.architecture.replace("ForCausalLM", "Model")]}
    assert_same(open_checkpoint(written(tmp_path / "a", source, tensors, **classes)), wanted)
    alone = {name: value for name, value in tensors.items() if name != "lm_head.weight"}
    headless = written(tmp_path / "b", source, alone, **classes)
    if wanted.model.tied_head:
        assert_same(open_checkpoint(headless), wanted)
    else:
        with pytest.raises(InputError, match=r"1 tensors do not fit: lm_head\.weight is missing"):
            open_checkpoint(headless)
    more = written(tmp_path / "c", source, tensors | {"odd.weight": alone["norm.weight"]})
    with pytest.raises(InputError, match=r"model\.odd\.weight is not expected"):
        open_checkpoint(more)


@pytest.mark.parametrize("family", FAMILIES)
def test_buffers_come_along(tmp_path: Path, family: str) -> None:
    source = model(family)
    frequencies = np.ones(2, np.float32)
    names = ["model.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq"]
    tensors = tensors_of(source) | dict.fromkeys(names, frequencies)
    assert_same(open_checkpoint(written(tmp_path / "a", source, tensors)), open_checkpoint(source))


def test_neighbours_of_different_dtypes_are_exported_as_they_were(tmp_path: Path) -> None:
    source = model("mixtral")
    tensors = load_file(source / "live.safetensors")
    name = "model.layers.1.mlp.experts.gate_up_proj"
    halves: dict[str, Any] = tensors | {name: tensors[name].astype(np.float16)}
    import_checkpoint(open_checkpoint(written(tmp_path / "a", source, halves)), tmp_path / "ours")
    export_checkpoint(prepare_export(tmp_path / "ours", format_named("mixtral")), tmp_path / "b")
    found = {name: str(value.dtype) for name, value in tensors_of(tmp_path / "b").items()}
    block = "model.layers.{}.block_sparse_moe.experts.4.{}.weight"
    assert found[block.format(1, "w1")] == found[block.format(1, "w3")] == "float16"
    assert found[block.format(0, "w1")] == found[block.format(1, "w2")] == "float32"


def test_float64_is_rounded_and_said(tmp_path: Path) -> None:
    source = model("llama")
    wide = {name: value.astype(np.float64) + 1e-12 for name, value in tensors_of(source).items()}
    config = {"dtype": "float64"}
    found = open_checkpoint(written(tmp_path / "a", source, wide, **config))
    assert found.model.dtype == "float32"
    assert found.remarks == (f"{len(wide)} tensors are float64, and rounded to float32",)
    for info in found.correspondence.parameters:
        assert found.dtype(info.path) == found.read(info.path).dtype == np.float32
    wide["model.norm.weight"][0] = 1e200
    large = open_checkpoint(written(tmp_path / "b", source, wide, **config))
    with pytest.raises(InputError, match=r"1 weights are not finite: 1 in model\.norm\.weight"):
        import_checkpoint(large, tmp_path / "ours")


def test_keys_that_are_ignored_are_remembered(tmp_path: Path) -> None:
    source = model("mistral")
    odd = {"mystery": [1, 2], "rope_parameters": {"rope_type": "default", "odd": 3}}
    directory = written(tmp_path / "a", source, tensors_of(source), **odd, resid_pdrop=0.5)
    with pytest.raises(InputError, match=r"mystery \(\[1, 2\]\).*--ignore_keys=mystery$"):
        open_checkpoint(directory)
    found = open_checkpoint(directory, ignore_keys=["mystery", "rope_parameters.odd"])
    assert found.ignored_keys == {"mystery": [1, 2], "rope_parameters.odd": 3}
    result = import_checkpoint(found, tmp_path / "ours")
    remarks = list(result.remarks())
    assert "mystery is ignored; it is [1, 2]" in remarks
    assert "resid_pdrop is 0.5 in the original's training; nothing is dropped here" in remarks
    extra = describe(tmp_path / "ours").metadata.extra
    assert extra["ignored_keys"] == found.ignored_keys
    assert "mystery" not in extra["config"]
    assert prepare_export(tmp_path / "ours", found.form).config["resid_pdrop"] == 0.5
    with pytest.raises(InputError, match="there is no key 'riddle' to ignore"):
        open_checkpoint(directory, ignore_keys=["riddle"])


def test_the_index_of_shards_below(tmp_path: Path) -> None:
    source = FIXTURES / "llama" / "tied_biased_llama3"
    shutil.copytree(source, tmp_path / "a")
    index = tmp_path / "a/model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    (tmp_path / "a/weights").mkdir()
    for file in set(places.values()):
        (tmp_path / "a" / file).rename(tmp_path / "a/weights" / file)
    below = {name: f"weights/{file}" for name, file in places.items()}
    index.write_text(json.dumps({"weight_map": below}))
    assert_same(open_checkpoint(tmp_path / "a"), open_checkpoint(source))
