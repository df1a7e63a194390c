"""A directory of weights: which files count, and what an index may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from modbrick.convert.huggingface.directory import open_directory
from modbrick.errors import InputError
from modbrick.formats.strict_json import LARGEST_FILE

ONE = {"one": np.ones(3, np.float32)}
TWO = {"two": np.zeros((2, 2), np.float16)}
MAP = {"one": "a.safetensors", "two": "b.safetensors"}


def directory(path: Path, index: Any = None) -> Path:
    """Two shards and their index, which says what `index` says instead of the truth."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text('{"model_type": "any"}')
    save_file(ONE, path / "a.safetensors")
    save_file(TWO, path / "b.safetensors")
    truth = {"weight_map": MAP}
    (path / "model.safetensors.index.json").write_text(json.dumps(index or truth))
    return path


def test_shards_are_joined(tmp_path: Path) -> None:
    source = open_directory(directory(tmp_path))
    assert source.config == {"model_type": "any"}
    assert source.tensors.keys() == {"one", "two"}
    assert np.array_equal(source.tensors["two"].read(), TWO["two"])


def test_shards_lie_in_directories_below(tmp_path: Path) -> None:
    places = {"one": "./a.safetensors", "two": "weights/of two/b.safetensors"}
    source = directory(tmp_path, {"weight_map": places})
    (source / "weights/of two").mkdir(parents=True)
    (source / "b.safetensors").rename(source / places["two"])
    assert np.array_equal(open_directory(source).tensors["two"].read(), TWO["two"])


def test_an_index_may_be_wrong_about_buffers(tmp_path: Path) -> None:
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    listed = {"weight_map": {**MAP, buffer: "a.safetensors"}}
    assert open_directory(directory(tmp_path / "a", listed)).tensors.keys() == MAP.keys()
    source = directory(tmp_path / "b")
    save_file({**ONE, buffer: np.ones(2, np.float32)}, source / "a.safetensors")
    assert open_directory(source).tensors.keys() == {*MAP, buffer}


def test_a_single_file_is_preferred_to_shards(tmp_path: Path) -> None:
    save_file(ONE, directory(tmp_path) / "model.safetensors")
    assert open_directory(tmp_path).tensors.keys() == {"one"}


def test_links_to_files_are_followed(tmp_path: Path) -> None:
    # The cache of the Hugging Face hub keeps files elsewhere, under their hashes.
    source, cache = directory(tmp_path / "cache"), tmp_path / "snapshot"
    cache.mkdir()
    for file in source.iterdir():
        (cache / file.name).symlink_to(file)
    assert open_directory(cache).tensors.keys() == {"one", "two"}


INDICES = {
    "no map": ({"metadata": {}}, "has no weight_map"),
    "empty map": ({"weight_map": {}}, "has no weight_map"),
    "map no map": ({"weight_map": ["a.safetensors"]}, "has no weight_map"),
    "file no name": ({"weight_map": {**MAP, "two": 2}}, "'two' in 2"),
    "parent": ({"weight_map": {**MAP, "two": "../b.safetensors"}}, "no file name"),
    "absolute": ({"weight_map": {**MAP, "two": "/etc/passwd"}}, "no file name"),
    "out by way of below": ({"weight_map": {**MAP, "two": "a/../../b.st"}}, "no file name below"),
    "nothing": ({"weight_map": {**MAP, "two": "./"}}, "no file name"),
    "missing below": ({"weight_map": {**MAP, "two": "sub/b.st"}}, "missing: sub/b.st"),
    "backwards": ({"weight_map": {**MAP, "two": "..\\b.safetensors"}}, "no file name"),
    "drive": ({"weight_map": {**MAP, "two": "C:b.safetensors"}}, "no file name"),
    "dots": ({"weight_map": {**MAP, "two": ".."}}, "no file name"),
    "zero byte": ({"weight_map": {**MAP, "two": "b\0.safetensors"}}, "no file name"),
    "missing shard": ({"weight_map": {**MAP, "two": "c.safetensors"}}, "missing: c.safetensors"),
    "missing tensor": ({"weight_map": {**MAP, "six": "b.safetensors"}}, "lacks six"),
    "unlisted tensor": ({"weight_map": {"one": "a.safetensors", "six": "b.safetensors"}}, "two"),
    "swapped": (
        {"weight_map": {"one": "b.safetensors", "two": "a.safetensors"}},
        "a.safetensors lacks two and holds one besides",
    ),
}


@pytest.mark.parametrize("case", INDICES)
def test_indices_that_lie(tmp_path: Path, case: str) -> None:
    index, message = INDICES[case]
    with pytest.raises(InputError, match=message):
        open_directory(directory(tmp_path, index))


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    directory(tmp_path)
    save_file({**TWO, **ONE}, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"b\.safetensors holds one besides"):
        open_directory(tmp_path)


def test_a_name_twice_in_the_index(tmp_path: Path) -> None:
    directory(tmp_path)
    text = '{"weight_map": {"one": "a.safetensors", "one": "b.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match="'one' stands there twice"):
        open_directory(tmp_path)


def test_directories_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such directory"):
        open_directory(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"config\.json: cannot be read"):
        open_directory(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds no weights; expected one of model\.safetensors"):
        open_directory(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="expected a JSON object"):
        open_directory(tmp_path)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(InputError, match="too many"):
        open_directory(tmp_path)
