import errno
import shutil
from pathlib import Path

import numpy as np
import pytest

from modbrick.data import domain_writer, writer
from modbrick.data.dataset import Dataset
from modbrick.data.tokenizers.byte import ByteTokenizer
from modbrick.data.writer import DatasetWriter
from modbrick.errors import InputError
from tests import programs


def entries(path):
    return sorted(p.name for p in path.iterdir())


def interrupted(directory, **options):
    with DatasetWriter(directory, **options) as writer:
        writer.set_tokenizer(ByteTokenizer())
        writer.add("train", "a", np.asarray([256, 1, 256]), 1)
        raise KeyboardInterrupt


def test_nothing_is_left_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(str(tmp_path / "set"))
    assert entries(tmp_path) == []


def test_nothing_written_is_refused(tmp_path, write):
    with pytest.raises(InputError, match="no document"):
        write(tmp_path / "set", {"train": {}})
    assert entries(tmp_path) == []


def test_what_a_killed_writer_left_is_removed(tmp_path, write):
    (tmp_path / ".set.preparing" / "train").mkdir(parents=True)
    (tmp_path / ".set.preparing" / "train" / "half").write_text("x")
    write(tmp_path / "set", {"train": {"a": ["text"]}})
    assert entries(tmp_path) == ["set"]
    assert entries(tmp_path / "set") == ["dataset.json", "sources.jsonl", "tokenizer.json", "train"]


def test_two_writers_do_not_meet(tmp_path):
    with DatasetWriter(str(tmp_path / "set")):
        second = DatasetWriter(str(tmp_path / "set"))
        with pytest.raises(InputError, match="another process is preparing it"), second:
            pass


def test_what_is_there_is_kept(tmp_path, write):
    texts = {"train": {"a": ["text"]}}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for place, message in (("full", "holds something else"), ("file", "is a file")):
        for overwrite in (False, True):
            with pytest.raises(InputError, match=message):
                write(tmp_path / place, texts, overwrite=overwrite)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", texts)
    with pytest.raises(InputError, match="already holds a finished data set"):
        write(tmp_path / "empty", texts)


def test_overwrite_replaces_a_data_set_whole(tmp_path, write):
    write(tmp_path / "set", {"train": {"a": ["text"]}, "held_out": {"a": ["more"]}})
    with pytest.raises(KeyboardInterrupt):
        interrupted(str(tmp_path / "set"), overwrite=True)
    assert set(Dataset.open(str(tmp_path / "set")).domains("held_out")) == {"a"}
    write(tmp_path / "set", {"train": {"b": ["other"]}}, overwrite=True)
    assert set(Dataset.open(str(tmp_path / "set")).domains("train")) == {"b"}
    assert entries(tmp_path) == ["set"]


def test_shards_are_closed_at_their_size(tmp_path, write):
    texts = ["x" * 100] * 50
    data = write(tmp_path / "set", {"train": {"a": texts}}, shard_bytes=1000)
    shards = data.domains("train")["a"].shards
    assert len(shards) == 10
    documents = data.documents("train")
    assert [len(documents.read(i, 0, 102)) for i in range(50)] == [102] * 50


def test_a_replacement_that_was_killed_halfway_is_undone(tmp_path, write):
    write(tmp_path / "set", {"train": {"a": ["text"]}})
    (tmp_path / "set").rename(tmp_path / ".set.replaced")
    with pytest.raises(KeyboardInterrupt):
        interrupted(str(tmp_path / "set"), overwrite=True)
    assert set(Dataset.open(str(tmp_path / "set")).domains("train")) == {"a"}
    assert entries(tmp_path) == ["set"]


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize("error", [NO_SPACE, READ_ONLY], ids=["full", "read-only"])
@pytest.mark.parametrize(
    ("owner", "function", "ending"),
    [
        (Path, "write_text", "tokenizer.json"),
        (Path, "mkdir", "train/a"),
        (domain_writer, "ArrayRecordWriter", ".array_record"),
        (domain_writer, "sync", ".array_record"),
        (domain_writer, "file_sha256", ".array_record"),
        (np, "save", "documents.npy"),
        (Path, "write_text", "sources.jsonl"),
        (Path, "write_text", "dataset.json"),
        (writer, "sync", "dataset.json"),
        (Path, "unlink", ".lock"),
        (Path, "rename", "/set"),
        (Path, "rename", ".set.preparing"),
    ],
)
def test_whatever_cannot_be_written_is_told_and_what_was_there_stays(
    tmp_path, write, monkeypatch, owner, function, ending, error
):
    write(tmp_path / "set", {"train": {"a": ["before"]}})
    original = getattr(owner, function)

    def refuse(path, *arguments, **options):
        if str(path).endswith(ending):
            raise error
        return original(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, refuse)
        with pytest.raises(InputError, match=rf"cannot be written .*{error.strerror}.*--output"):
            write(tmp_path / "set", {"train": {"a": ["after"]}}, overwrite=True)
    data = Dataset.open(str(tmp_path / "set"), verify_hashes=True)
    assert data.manifest.splits["train"]["a"].bytes == 6
    assert entries(tmp_path) == ["set"]
    write(tmp_path / "set", {"train": {"a": ["afterwards"]}}, overwrite=True)


@pytest.mark.parametrize("early", [True, False])
def test_a_directory_that_vanishes_is_told(tmp_path, early):
    ids = np.asarray([256, 1, 256])

    def vanish(into):
        into.set_tokenizer(ByteTokenizer())
        for remove in (early, not early):
            if remove:
                shutil.rmtree(tmp_path / ".set.preparing")
            into.add("train", "a", ids, 1)
        into.commit(sources={}, source_lines="", arguments={})

    with (
        DatasetWriter(str(tmp_path / "set")) as into,
        pytest.raises(InputError, match="cannot be written"),
    ):
        vanish(into)
    assert entries(tmp_path) == []


FULL = """
import resource, sys
import numpy as np
from modbrick.data.tokenizers.byte import ByteTokenizer
from modbrick.data.writer import DatasetWriter
from modbrick.errors import InputError

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
ids = np.random.default_rng(0).integers(0, 256, 50_000)
try:
    with DatasetWriter(sys.argv[1]) as writer:
        writer.set_tokenizer(ByteTokenizer())
        for _ in range(20):
            writer.add("train", "a", ids, 1)
        writer.commit(sources={}, source_lines="", arguments={})
except InputError as error:
    print(error)
"""


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    done = programs.run(["-c", FULL, tmp_path / "set"])
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stdout, done.stderr
    assert "File too large" in done.stdout
    assert entries(tmp_path) == []
