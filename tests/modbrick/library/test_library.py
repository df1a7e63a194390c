"""A directory of bricks: the files are the truth, the index follows them, nobody loses anything."""

from __future__ import annotations

import builtins
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modbrick.errors import InputError
from modbrick.library import Library, open_brick, write_brick
from modbrick.library import index as index_module
from tests import programs, remote_store
from tests.modbrick.bricks.tiny import BRICKS
from tests.modbrick.library.tiny import described


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    found = {name: folder / f"{name}_from_somewhere.brick" for name in BRICKS}
    for name, file in found.items():
        write_brick(file, *described(name, tags=(f"kind:{name}", "all"), notes=f"About {name}."))
    return found


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "local":
        return tmp_path / "library"
    monkeypatch.setattr("modbrick.checkpoints.workdir.lock.BEAT", 0.03)
    return remote_store.install(monkeypatch)


def names(entries: list[index_module.Entry]) -> list[str]:
    return [entry.name for entry in entries]


def test_bricks_come_and_go(place: Any, files: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="there is no library"):
        Library.open(place)
    library = Library.create(place)
    assert list(library) == []
    with pytest.raises(InputError, match=r"nowhere\.brick: cannot be read"):
        library.add("nowhere.brick")
    assert not library.path.exists()
    for name in ("law", "de", "gain"):
        library.add(files[name])
    library.add(files["tone"], tags=["x", "all"])
    library = Library.open(place)
    assert list(library) == ["de", "gain", "law", "tone"]
    assert len(library) == 4
    assert "de" in library
    assert "../de" not in library
    brick, manifest = described("de")
    for address, value in library["de"].values.items():
        assert np.array_equal(value, brick.values[address])
    assert library.stored("de").manifest.base == manifest.base
    assert library.stored("tone").manifest.tags == ("kind:tone", "all", "x")
    with pytest.raises(InputError, match="has no brick 'ton'; did you mean 'tone'"):
        library["ton"]
    with pytest.raises(InputError, match="has a brick 'de' already"):
        library.add(files["de"])
    library.rename("de", "german")
    assert library.stored("german").manifest.name == "german"
    assert np.array_equal(library["german"].values["head.up"], brick.values["head.up"])
    with pytest.raises(InputError, match="has a brick 'law' already"):
        library.rename("german", "law")
    with pytest.raises(InputError, match="'a b' is no name"):
        library.rename("german", "a b")
    library.remove("law")
    with pytest.raises(InputError, match="has no brick 'law'"):
        library.remove("law")
    assert names(library.entries()) == ["gain", "german", "tone"]
    entry = library.entries()[1]
    assert (entry.kind, entry.tags, entry.licence) == ("lora", ("kind:de", "all"), "Apache-2.0")
    assert entry.parameters == sum(value.size for value in brick.values.values())
    for name in list(library):
        library.remove(name)
    assert Library.open(place).entries() == []


def test_finding(tmp_path: Path, files: dict[str, Path]) -> None:
    library = Library.create(tmp_path / "library")
    for file in files.values():
        library.add(file)
    assert names(library.find()) == sorted(BRICKS)
    assert names(library.find(tag="all")) == sorted(BRICKS)
    assert names(library.find(tag="kind:law")) == ["law"]
    assert library.find(tag="kind") == []
    assert names(library.find(like="LAW about")) == ["law", *sorted(BRICKS.keys() - {"law"})]
    assert names(library.find(like="kind, tone!", tag="kind:law")) == ["law"]
    assert library.find(like="nothing of that") == []


def spoil(index: Path) -> None:
    index.write_text("{")


def forget(index: Path) -> None:
    data = json.loads(index.read_text())
    del data["bricks"]["de"]
    index.write_text(json.dumps(data))


def come_from_a_newer_version(index: Path) -> None:
    data = json.loads(index.read_text()) | {"format": 2}
    data["bricks"]["de"]["kind"] = "what this version calls otherwise"
    index.write_text(json.dumps(data))


@pytest.mark.parametrize("act", [os.unlink, spoil, forget, come_from_a_newer_version])
def test_the_index_is_made_again(
    tmp_path: Path, files: dict[str, Path], act: Callable[[Path], None]
) -> None:
    library = Library.create(tmp_path)
    for name in ("de", "law", "gain"):
        library.add(files[name])
    before = (tmp_path / "index.json").read_text()
    act(tmp_path / "index.json")
    assert names(Library.open(tmp_path).entries()) == ["de", "gain", "law"]
    assert (tmp_path / "index.json").read_text() == before


def test_files_may_change_behind_the_index(tmp_path: Path, files: dict[str, Path]) -> None:
    library = Library.create(tmp_path)
    for name in ("de", "law"):
        library.add(files[name])
    (tmp_path / "law.brick").unlink()
    shutil.copy(files["gain"], tmp_path / "gain.brick")
    (tmp_path / "de.brick").unlink()
    write_brick(tmp_path / "de.brick", *described("de", tags=("new",)))
    assert [(entry.name, entry.tags) for entry in library.entries()] == [
        ("de", ("new",)),
        ("gain", ("kind:gain", "all")),
    ]
    shutil.copy(files["gain"], tmp_path / "other.brick")
    with pytest.raises(InputError, match=r"other\.brick holds a brick 'gain'"):
        library.entries()
    (tmp_path / "other.brick").write_bytes(b"spoiled")
    with pytest.raises(InputError, match=r"other\.brick: 7 bytes are no safetensors file"):
        library.find(tag="new")
    library.remove("other")
    assert len(library.find(tag="new")) == 1


def test_one_of_many_is_read_alone(
    tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library.create(tmp_path)
    library.add(files["de"])
    for number in range(30):
        shutil.copy(tmp_path / "de.brick", tmp_path / f"copy{number}.brick")
    opened = []
    original = Path.open

    def recorded(self: Path, *arguments: Any, **options: Any) -> Any:
        opened.append(self.name)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", recorded)
    monkeypatch.setattr(builtins, "open", recorded)
    library["de"]
    assert set(opened) == {"de.brick"}
    monkeypatch.undo()
    for number in range(30):
        (tmp_path / f"copy{number}.brick").unlink()
    # Finding opens none that the index knows.
    monkeypatch.setattr(index_module, "open_brick", None)
    assert names(library.find(tag="all")) == ["de"]


def test_what_is_no_library(tmp_path: Path, files: dict[str, Path]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").touch()
    for act in (Library.open, Library.create):
        with pytest.raises(InputError, match=r"other is no library, it holds .*\(notes\.txt\)"):
            act(other)
        with pytest.raises(InputError, match="is no library, but a file"):
            act(files["de"])
    (other / "notes.txt").rename(other / "index.json")
    with pytest.raises(InputError, match=r"\(index\.json, of no library\)"):
        Library.open(other)


def test_a_library_that_must_not_be_written(
    tmp_path: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(files["de"], tmp_path / "de.brick")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert names(Library.open(tmp_path).entries()) == ["de"]
    assert os.listdir(tmp_path) == ["de.brick"]


def test_what_killed_writers_left_is_no_brick_and_goes(
    tmp_path: Path, files: dict[str, Path]
) -> None:
    library = Library.create(tmp_path)
    (tmp_path / ".de.brick.0011aabb.unfinished").write_text("x")
    assert Library.open(tmp_path).entries() == []
    library.add(files["de"])
    assert sorted(os.listdir(tmp_path)) == ["de.brick", "index.json"]


ADD = """
import sys
from modbrick.library import Library
library = Library.create(sys.argv[1])
for file in sys.argv[2:]:
    library.add(file)
    library.find(tag="all")
"""


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    brick, _ = described("gain")
    wanted, started = [], []
    for process in range(4):
        files = []
        for number in range(4):
            name = f"brick-{process}-{number}"
            files.append(tmp_path / f"{name}.brick")
            wanted.append(name)
            write_brick(files[-1], *described("gain", name=name, tags=("all",)))
        started.append(programs.Program(["-c", ADD, tmp_path / "library", *files]))
    outputs = [program.communicate() for program in started]
    assert [program.returncode for program in started] == [0] * 4, outputs
    library = Library.open(tmp_path / "library")
    assert list(library) == wanted
    index = json.loads((tmp_path / "library/index.json").read_text())
    assert list(index["bricks"]) == wanted
    assert names(library.entries()) == wanted
    for name in wanted:
        assert np.array_equal(
            library[name].values["layer.0.attention.value.factor"],
            brick.values["layer.0.attention.value.factor"],
        )
    left = sorted(os.listdir(tmp_path / "library"))
    assert left == [*(f"{name}.brick" for name in wanted), "index.json"]


def test_of_two_that_add_one_name_one_is_told(tmp_path: Path, files: dict[str, Path]) -> None:
    started = [programs.Program(["-c", ADD, tmp_path / "library", files["de"]]) for _ in range(3)]
    errors = [program.communicate()[1] for program in started]
    assert sorted(program.returncode or 0 for program in started) == [0, 1, 1]
    assert sum("has a brick 'de' already" in error for error in errors) == 2
    open_brick(tmp_path / "library/de.brick").read()
