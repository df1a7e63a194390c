"""Data sets at paths of all kinds."""

import os
from pathlib import Path

import pytest
from etils import epath

from modbrick.data import load_tokenizer
from modbrick.data.dataset import Dataset
from modbrick.data.paths import data_path
from modbrick.data.writer import check_target
from modbrick.errors import InputError

NAMES = "a b", "a [old]", "lr=[1e-3]", "a[0:3]", "a\\b", "a*?b", "ü 日本", "a%20b", "a#b@3", "~x"


@pytest.mark.parametrize("name", NAMES)
def test_a_data_set_is_written_and_read(tmp_path, monkeypatch, write, name):
    monkeypatch.chdir(tmp_path)
    for path in (name, str(tmp_path / name / "within")):
        data = write(path, {"train": {"a": ["text"]}})
        assert data.documents("train").read(0, 0, 3).tolist() == [256, *b"te"]
        os.rename(path, f"{path}-moved")
        assert Dataset.open(f"{path}-moved", verify_hashes=True).domains("train")


def test_the_home_directory(tmp_path, monkeypatch, write):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("~/data", {"train": {"a": ["text"]}})
    assert (tmp_path / "data" / "dataset.json").exists()
    assert Dataset.open("~/data").directory == str(tmp_path / "data")
    for source in ("~/data", "~/data/tokenizer.json"):
        assert load_tokenizer(source).vocabulary == 257
    assert data_path("gs://bucket/~a") == "gs://bucket/~a"


@pytest.mark.parametrize(
    ("owner", "function", "use"),
    [
        (type(epath.Path("x")), "read_text", Dataset.open),
        (type(epath.Path("x")), "read_bytes", Dataset.open),
        (Path, "iterdir", lambda path: check_target(path, overwrite=False)),
    ],
    ids=["manifest", "index", "target"],
)
def test_what_cannot_be_read_is_told(tmp_path, monkeypatch, write, owner, function, use):
    write(tmp_path / "data", {"train": {"a": ["text"]}})

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "it")

    monkeypatch.setattr(owner, function, refuse)
    with pytest.raises(InputError, match=r"^it: cannot be read .Permission denied"):
        use(str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("name", "message"), [(b"caf\xe9", "the name is not UTF-8"), (b"a\nb", "holds a line break")]
)
def test_names_that_no_data_set_can_have(tmp_path, write, name, message):
    path = os.fsdecode(bytes(tmp_path) + b"/" + name)
    for place in (path, f"{path}/within"):
        with pytest.raises(InputError, match=message):
            write(place, {"train": {"a": ["text"]}})
        with pytest.raises(InputError, match=message):
            Dataset.open(place)
    assert not list(tmp_path.iterdir())
