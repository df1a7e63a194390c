"""Sources are recognised, read in slices, and refused with one clear error if anything is wrong."""

from __future__ import annotations

import functools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from modbrick.convert import correspondence, open_checkpoint
from modbrick.errors import InputError

FIXTURES = Path(__file__).parents[2] / "fixtures/moduleformer"
SHARDED = FIXTURES / "mlp_top1_right_padded"
SINGLE = FIXTURES / "multihead_padded"
INDEX = "model.safetensors.index.json"


def copied(directory: Path, source: Path = SHARDED) -> Path:
    shutil.copytree(source, directory)
    return directory


@pytest.mark.parametrize("model_type", ["bert", None, 3, ["moduleformer"], "ModuleFormer"])
def test_what_is_not_recognised(tmp_path: Path, model_type: object) -> None:
    source = copied(tmp_path / "a")
    config = json.loads((source / "config.json").read_text()) | {"model_type": model_type}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"model_type is .* which is not read; .*moduleformer"):
        open_checkpoint(source)


@pytest.mark.parametrize("source", [SHARDED, SINGLE, FIXTURES / "molm_like"])
def test_slices_are_those_of_the_whole(source: Path) -> None:
    checkpoint = open_checkpoint(source)
    draw = random.Random(0)
    for info in checkpoint.correspondence.parameters:
        whole = checkpoint.read(info.path)
        assert whole.shape == info.shape
        for _ in range(4):
            edges = [sorted(draw.sample(range(n + 1), 2)) for n in info.shape]
            index = tuple(slice(start, stop) for start, stop in edges)
            found = checkpoint.read(info.path, index, dtype=jnp.float32)
            assert np.array_equal(found, whole[index].astype(np.float32)), info.path
        ends = tuple(slice(None, None) for _ in info.shape)
        assert np.array_equal(checkpoint.read(info.path, ends), whole)


def test_neighbours_of_different_dtypes_become_float32(tmp_path: Path) -> None:
    source = copied(tmp_path / "a", SINGLE)
    stored = load_file(source / "model.safetensors")
    name = "transformer.h.1.attn.k_proj.weight"
    halves: dict[str, Any] = stored | {name: stored[name].astype(np.float16)}
    save_file(halves, source / "model.safetensors")
    checkpoint = open_checkpoint(source)
    found = checkpoint.read("segments.0.attention.key.weight")
    assert found.dtype == np.float32
    assert np.array_equal(found[1].T, halves[name].astype(np.float32))
    assert np.array_equal(found[0].T, stored[name.replace("1", "0")])


def test_missing_and_truncated_shards(tmp_path: Path) -> None:
    source = copied(tmp_path / "a")
    shard = source / "model-00002-of-00003.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(InputError, match=shard.name):
        open_checkpoint(source)
    shard.unlink()
    with pytest.raises(InputError, match=f"shards are missing: {shard.name}"):
        open_checkpoint(source)


def test_files_that_shrink_after_they_were_opened(tmp_path: Path) -> None:
    source = copied(tmp_path / "a", SINGLE)
    checkpoint = open_checkpoint(source)
    (source / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoint.read("embedding")


ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 10**6, 2**31, 2**63, 10**15, 10**30, 0.5, 1e300, -2.0),
    *("", "mlp", "gmm", "float16", "transformer.wte.weight", "../x", "/etc/passwd", "\0"),
    *([], {}, [1, 2], {"a": 1}, [[]], float("nan"), float("inf")),
]


def mutated(draw: random.Random, text: str) -> str:
    """JSON with other values, keys or characters."""
    kind = draw.random()
    if kind < 0.3:  # characters
        position = draw.randrange(len(text))
        end = position + draw.choice([0, 1, 1, 5, 400])
        return (
            text[:position] + draw.choice(['"', "0", "9", "-", "{", "]", ",", "é", ""]) + text[end:]
        )
    data = json.loads(text)
    place = data["weight_map"] if "weight_map" in data and draw.random() < 0.8 else data
    key = draw.choice(list(place))
    if kind < 0.8:
        place[key] = draw.choice(ODD)
    elif kind < 0.9:
        del place[key]
    else:
        place[draw.choice(["n_embd", "dtype", key + "s", key[:-1]])] = place.pop(key)
    return json.dumps(data)


def fuzz(directory: Path, count: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = functools.cache(correspondence.parameter_table)  # most mutations change no shape
    monkeypatch.setattr(correspondence, "parameter_table", table)
    draw = random.Random(seed)
    source = copied(directory / "a")
    texts = {name: (source / name).read_text() for name in ("config.json", INDEX)}
    outcomes, messages = {"read": 0, "refused": 0}, []
    largest = sum(path.stat().st_size for path in source.iterdir())
    for _ in range(count):
        name = draw.choice(list(texts))
        (source / name).write_text(mutated(draw, texts[name]), encoding="utf-8")
        try:
            checkpoint = open_checkpoint(source)
        except InputError as error:
            outcomes["refused"] += 1
            messages.append(str(error))
        else:
            outcomes["read"] += 1
            infos = checkpoint.correspondence.parameters
            assert sum(info.size for info in infos) * 4 <= largest
        (source / name).write_text(texts[name])
    assert min(outcomes.values()) > 0, outcomes
    assert all(message.startswith(str(source)) for message in messages)


def test_mutated_json_is_read_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz(tmp_path, 1000, 1, monkeypatch)


@pytest.mark.verify
def test_much_mutated_json_is_read_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuzz(tmp_path, 30_000, 2, monkeypatch)


def test_thousands_of_tensors_make_one_short_line_with_the_path_once(tmp_path: Path) -> None:
    """All under other names: the message shows some of both, and how many more."""
    source = copied(tmp_path / "a", FIXTURES / "multihead_padded")
    stored = load_file(source / "model.safetensors")
    extra = {f"other.{number}": np.zeros(1, np.float32) for number in range(3000)}
    wrong = {f"wrapped.{name}": value for name, value in stored.items()}
    save_file(wrong | extra, source / "model.safetensors")
    with pytest.raises(InputError) as caught:
        open_checkpoint(source)
    message = str(caught.value)
    assert len(message) < 4000
    assert "\n" not in message
    assert message.count(str(tmp_path)) == 1
    assert "transformer.wte.weight is missing" in message
    assert "is not expected; and " in message
    assert message.endswith(" more")


def test_shards_by_the_thousand(tmp_path: Path) -> None:
    source = copied(tmp_path / "a")
    places = {f"tensor.{number}": f"model-{number}.safetensors" for number in range(3000)}
    (source / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(InputError, match=r"shards are missing: .*, and 2,980 more$"):
        open_checkpoint(source)


def test_unknown_keys_by_the_hundred_make_one_short_line(tmp_path: Path) -> None:
    source = copied(tmp_path / "a", FIXTURES.parent / "llama/bfloat16_yarn")
    config = json.loads((source / "config.json").read_text())
    odd = {f"odd_{number}": ["x" * 5000] for number in range(500)}
    (source / "config.json").write_text(json.dumps(config | odd))
    with pytest.raises(InputError, match=r"odd_0 \(.*, and 480 more; remove them") as caught:
        open_checkpoint(source)
    assert len(str(caught.value)) < 8000
