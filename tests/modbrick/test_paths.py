"""Paths as users write them, in every place that takes one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import flags

from modbrick import command_line
from modbrick.analysis.goodput import goodput
from modbrick.analysis.listing import of_path
from modbrick.analysis.pictures import draw_goodput
from modbrick.checkpoints import CheckpointStore, Metadata, describe, load_checkpoint, save_model
from modbrick.config.families import dense
from modbrick.config.files import load_config
from modbrick.convert import (
    export_checkpoint,
    format_named,
    import_checkpoint,
    open_checkpoint,
    prepare_export,
)
from modbrick.convert.gguf.header import is_gguf
from modbrick.data import ByteTokenizer, Dataset, load_tokenizer
from modbrick.data.tokenizers.files import save_tokenizer
from modbrick.decoder.functional import functional_decoder
from modbrick.errors import InputError
from modbrick.library import Library, open_brick, write_brick
from modbrick.models import open_model
from modbrick.paths import as_path, expanded
from modbrick.training.observe.metrics import MetricsWriter, read_metrics
from modbrick.training.observe.timeline import Timeline, read_timeline
from modbrick.training.run_config import RunConfig
from tests.modbrick.data.conftest import write_dataset
from tests.modbrick.library.tiny import described

LLAMA = Path(__file__).parents[1] / "fixtures/llama/tied_biased_llama3"
CONFIGS = Path(__file__).parents[1] / "configs"
PRESET = Path(__file__).parents[2] / "configs/dense_420m.py"
MODEL = dense(vocabulary=257, width=8, layers=1, heads=2, feed_forward_width=16, dtype="float32")
NAMES = {
    "spaces": " a  b ",
    "brackets": "lr=[1e-3] {x} (y)",
    "pattern": "a*b?[!c]",
    "backslash": "a\\[b]\\n",
    "Unicode": "ünï-模型-e\u0301",
    "undecodable": os.fsdecode(b"caf\xe9 \xff"),
    "percent": "a%20b:c#d&e",
    "home in the middle": "~",
    "quotes": 'it\'s "so"',
    "newline": "a\nb",
}


def test_a_home_directory_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expanded("~/run [1]") == f"{tmp_path}/run [1]"
    assert expanded(Path("~") / "run") == f"{tmp_path}/run"
    assert expanded("~nobody-of-this-name/run") == "~nobody-of-this-name/run"
    assert expanded("a/~") == "a/~"
    assert expanded("gs://bucket/~") == "gs://bucket/~"
    assert os.fspath(as_path("~/run")) == f"{tmp_path}/run"
    assert os.fspath(as_path("run\\x")) == f"{tmp_path}/run\\x"
    assert os.fspath(as_path("gs://bucket/run")) == "gs://bucket/run"


# ---------------------------------------- what is done at a path: a directory, as users give it


def a_model(place: str) -> None:
    values = {
        path: np.zeros(leaf.shape, np.float32)
        for path, leaf in functional_decoder(MODEL).table.abstract().items()
    }
    save_model(f"{place}/model", values, Metadata(MODEL))
    assert open_model(f"{place}/model").config == MODEL
    assert of_path(f"{place}/model").complaint is None


def checkpoints(place: str) -> None:
    with CheckpointStore(f"{place}/run") as store:
        store.save(1, {"w": np.ones(3, np.float32)}, None, Metadata(MODEL))
    assert describe(f"{place}/run").step == 1


def logs(place: str) -> None:
    with MetricsWriter(place) as writer, Timeline(place, 0) as timeline:
        writer.write({"step": 1, "loss": 2.0})
        timeline.saved(1)
        timeline.stopped(1, "finished")
    assert read_metrics(place) == [{"step": 1, "loss": 2.0}]
    draw_goodput(goodput(read_timeline(place)), expanded(f"{place}/picture.png"))


def a_data_set(place: str) -> None:
    write_dataset(Path(expanded(place)) / "data", {"train": {"text": ["abc"]}})
    dataset = Dataset.open(f"{place}/data")
    assert dataset.tokenizer().decode(dataset.documents("train").read(0, 1, 4)) == "abc"


def a_tokenizer(place: str) -> None:
    save_tokenizer(ByteTokenizer(), place)
    assert load_tokenizer(place).vocabulary == 257
    assert load_tokenizer(f"{place}/tokenizer.json").vocabulary == 257


def a_library(place: str) -> None:
    write_brick(f"{place}/one.brick", *described("de"))
    Library.create(f"{place}/library").add(f"{place}/one.brick")
    assert list(Library.open(f"{place}/library")) == ["de"]
    assert open_brick(f"{place}/one.brick").manifest.name == "de"
    assert of_path(f"{place}/one.brick").complaint is None


def conversion(place: str) -> None:
    shutil.copytree(LLAMA, Path(expanded(place)) / "theirs")
    import_checkpoint(open_checkpoint(f"{place}/theirs"), f"{place}/ours")
    loaded, _ = load_checkpoint(f"{place}/ours")
    assert "embedding" in loaded
    export_checkpoint(prepare_export(f"{place}/ours", format_named("llama")), f"{place}/again")
    assert open_model(f"{place}/again").config == open_model(f"{place}/theirs").config
    (Path(expanded(place)) / "x.gguf").write_bytes(b"GGUF")
    assert is_gguf(f"{place}/x.gguf")


def a_config(place: str) -> None:
    shutil.copy(CONFIGS / "tiny.py", Path(expanded(place)) / "my config.py")
    assert load_config(RunConfig, f"{place}/my config.py").training.steps == 12
    shutil.copy(PRESET, Path(expanded(place)) / "preset.py")
    run = load_config(RunConfig, f"{place}/preset.py:v5e:16x16")
    assert (run.mesh.data, run.mesh.fsdp) == (32, 8)


def flags_of_files(place: str) -> None:
    values = flags.FlagValues()
    output = flags.DEFINE_string("output", f"{place}/result.json", "", values)
    prompts = flags.DEFINE_multi_string("prompts", [f"{place}/result.json"], "", values)
    values(["test"])
    command_line.check_output(output)
    command_line.write_output(output, "text")
    assert command_line.read_texts(prompts) == ["text\n"]


PLACES: tuple[Callable[[str], Any], ...] = (
    a_model,
    checkpoints,
    logs,
    a_data_set,
    a_tokenizer,
    a_library,
    conversion,
    a_config,
    flags_of_files,
)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("name", [*NAMES, "home"])
def test_every_place_takes_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, place: Callable[[str], Any]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / NAMES.get(name, "home")
    directory.mkdir()
    if place is a_data_set and name in ("undecodable", "newline"):
        with pytest.raises(InputError, match=r"the name (is not UTF-8|holds a line break)"):
            place(str(directory))
        return
    place("~/home" if name == "home" else str(directory))
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert written == {directory.name}, "nothing lies beside it"
