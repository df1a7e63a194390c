"""One brick is one file: bit-equal after reading, strict about what is not what it says."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from modbrick.bricks import Brick, BrickConfig, SparseDelta
from modbrick.errors import InputError
from modbrick.library import Manifest, open_brick, read_brick, write_brick
from modbrick.library.file import HEADER
from tests import remote_store
from tests.modbrick.bricks.tiny import BRICKS, MODEL, random_bricks
from tests.modbrick.library.tiny import described


@pytest.mark.parametrize("name", BRICKS)
def test_written_and_read_again(name: str, tmp_path: Path) -> None:
    brick, manifest = described(name)
    write_brick(tmp_path / "a.brick", brick, manifest)
    again, of_file = read_brick(tmp_path / "a.brick")
    assert of_file == manifest
    assert again.config == brick.config
    assert again.values.keys() == brick.values.keys()
    for address, value in brick.values.items():
        assert again.values[address].tobytes() == np.asarray(value).tobytes()
        assert again.values[address].flags.writeable
    assert os.listdir(tmp_path) == ["a.brick"]
    # A file of the format for others, and the same bytes whoever writes it.
    assert load_file(tmp_path / "a.brick").keys() == brick.values.keys()
    shuffled = Brick(brick.config, dict(reversed(list(brick.values.items()))))
    write_brick(tmp_path / "b.brick", shuffled, manifest)
    assert (tmp_path / "a.brick").read_bytes() == (tmp_path / "b.brick").read_bytes()


def test_halves_keep_their_dtype(tmp_path: Path) -> None:
    brick, manifest = described("gain")
    halves = {a: v.astype(jnp.bfloat16) for a, v in brick.values.items()}
    write_brick(tmp_path / "a.brick", Brick(brick.config, halves), manifest)
    for address, value in open_brick(tmp_path / "a.brick").read().values.items():
        assert value.dtype == jnp.bfloat16
        assert np.array_equal(value, halves[address])


def test_on_a_remote_store(monkeypatch: pytest.MonkeyPatch) -> None:
    place = remote_store.install(monkeypatch) / "a.brick"
    brick, manifest = described("de")
    write_brick(place, brick, manifest)
    again, of_file = read_brick(str(place))
    assert of_file == manifest
    assert all(np.array_equal(again.values[a], v) for a, v in brick.values.items())
    with pytest.raises(InputError, match=r"^gs://bucket/run/a\.brick is there already"):
        write_brick(place, brick, manifest)
    with pytest.raises(InputError, match=r"^gs://bucket/run/b\.brick: cannot be read"):
        open_brick(place.parent / "b.brick")


def test_every_mismatch_is_named(tmp_path: Path) -> None:
    brick, manifest = described("de")
    values = dict(brick.values)
    del values["layer.1.attention.key.up"]
    values["layer.9.attention.key.up"] = np.zeros((2, 8), np.float32)
    values["head.up"] = np.zeros((3, 31), np.float32)
    values["head.down"] = values["head.down"].astype(np.float64)
    file = tmp_path / "a.brick"
    wanted = (
        f"{file}: missing: layer.1.attention.key.up; unexpected: layer.9.attention.key.up; "
        "head.up: has shape [3, 31], the manifest says [2, 31]; "
        "head.down: is of float64, not one of float32, float16, bfloat16"
    )
    with pytest.raises(InputError) as refused:
        write_brick(file, Brick(brick.config, values), manifest)
    assert str(refused.value) == wanted
    assert not file.exists()
    save_file(values, file, {HEADER: manifest.to_json()})
    with pytest.raises(InputError) as refused:
        open_brick(file)
    assert str(refused.value) == wanted


def test_indices_stay_what_they_are(tmp_path: Path) -> None:
    """Those of a sparse delta are 32-bit integers that lie in the weight."""
    config = BrickConfig(("layer.1.attention.key.weight",), SparseDelta(0.1))
    values = random_bricks({"few": config})
    brick = Brick.of_parameters("few", config, MODEL, values)
    manifest = Manifest.of("few", config, MODEL)
    write_brick(tmp_path / "brick", brick, manifest)
    found, read = read_brick(tmp_path / "brick")
    assert read == manifest
    address = "layer.1.attention.key.weight.positions"
    assert found.values[address].dtype == np.int32
    np.testing.assert_array_equal(found.values[address], brick.values[address])
    beyond = {**brick.values, address: brick.values[address] + 128}
    with pytest.raises(InputError, match=rf"{address}: holds indices from \d+ to \d+, there are"):
        write_brick(tmp_path / "beyond", Brick(config, beyond), manifest)
    floats = {**brick.values, address: brick.values[address].astype(np.float32)}
    with pytest.raises(InputError, match=f"{address}: is of float32, not one of int32"):
        write_brick(tmp_path / "floats", Brick(config, floats), manifest)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    brick, manifest = described("de")
    values = {address: np.array(value) for address, value in brick.values.items()}
    values["head.up"][0, :2] = np.nan
    values["head.down"][0, 0] = -np.inf
    file = tmp_path / "a.brick"
    save_file(values, file, {HEADER: manifest.to_json()})
    message = r"brick: head\.down: 1 values are not finite; head\.up: 2 values are not finite$"
    with pytest.raises(InputError, match=message):
        open_brick(file).read()
    with pytest.raises(InputError, match=message):
        write_brick(tmp_path / "b.brick", Brick(brick.config, values), manifest)
    assert os.listdir(tmp_path) == ["a.brick"]


def test_a_header_of_another_kind_of_brick(tmp_path: Path) -> None:
    """The shapes follow from the manifest: a rank that is claimed allocates nothing."""
    brick, manifest = described("de")
    data = json.loads(manifest.to_json())
    data["brick"]["settings"]["rank"] = 10**15
    file = tmp_path / "a.brick"
    save_file(dict(brick.values), file, {HEADER: json.dumps(data)})
    with pytest.raises(InputError, match=r"the manifest says \[16, 1000000000000000\]"):
        open_brick(file)


def test_what_is_no_brick(tmp_path: Path) -> None:
    file = tmp_path / "a.brick"
    brick, manifest = described("gain")
    with pytest.raises(InputError, match=r"a\.brick: cannot be read"):
        open_brick(file)
    save_file(dict(brick.values), file, {"format": "pt"})
    with pytest.raises(InputError, match="is no file of a brick, its header has no manifest"):
        open_brick(file)
    save_file(dict(brick.values), file, {HEADER: "[]"})
    with pytest.raises(InputError, match="manifest: expected a JSON object, got list"):
        open_brick(file)
    with pytest.raises(InputError, match=r"a\.brick is there already"):
        write_brick(file, brick, manifest)
    file.unlink()
    write_brick(file, brick, manifest)
    whole = file.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"a\.brick"):
            open_brick(file)
    with pytest.raises(InputError, match="cannot be written"):
        write_brick(tmp_path / "nowhere" / "a.brick", brick, manifest)


def test_any_damage_is_refused_or_does_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "a.brick"
    write_brick(file, *described("gain"))
    whole, random = file.read_bytes(), np.random.default_rng(0)
    refusals = []
    for _ in range(300):
        content = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 4)):
            content[place] = random.integers(256)
        file.write_bytes(content)
        try:
            read_brick(file)
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 150
    assert all(message.startswith(str(file)) for message in refusals)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    file = tmp_path / "a.brick"
    write_brick(file, *described("de"))
    stored = open_brick(file)
    os.truncate(file, 64)
    with pytest.raises(InputError, match=r"a\.brick: cannot be read"):
        stored.read()


def test_a_manifest_tells_size_without_reading(tmp_path: Path) -> None:
    brick, manifest = described("tone", notes="")
    write_brick(tmp_path / "a.brick", brick, dataclasses.replace(manifest, base=None))
    stored = open_brick(tmp_path / "a.brick")
    assert stored.parameters == sum(value.size for value in brick.values.values())
    assert stored.nbytes == 4 * stored.parameters
