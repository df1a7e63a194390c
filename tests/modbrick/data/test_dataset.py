import json
import shutil

import numpy as np
import pytest

from modbrick.data.dataset import Dataset, check_vocabulary
from modbrick.errors import InputError


@pytest.fixture
def copy(dataset, tmp_path):
    shutil.copytree(dataset.directory, tmp_path / "set")
    return tmp_path / "set"


def test_it_counts_and_reads_what_was_written(dataset, texts):
    assert dataset.tokenizer_identity == dataset.tokenizer().identity
    for split, domains in texts.items():
        documents = dataset.documents(split)
        assert documents.domains == ("code", "prose")
        number = 0
        for name in documents.domains:
            described = dataset.domains(split)[name]
            assert described.documents == len(domains[name])
            assert described.bytes == sum(len(text.encode()) for text in domains[name])
            assert described.tokens == described.bytes + described.documents
            for text in domains[name]:
                stop = int(documents.targets[number]) + 1
                ids = documents.read(number, 0, stop)
                assert ids.dtype == np.int32
                assert ids.tolist() == [256, *text.encode(), 256]
                assert documents.read(number, 2, 4).tolist() == ids[2:4].tolist()
                assert documents.domains[documents.domain_of(number)] == name
                number += 1
        assert number == len(documents)


def test_the_vocabulary_is_checked(dataset):
    check_vocabulary(dataset, 257)
    with pytest.raises(
        InputError, match="token ids up to 256, beyond the model's vocabulary of 256"
    ):
        check_vocabulary(dataset, 256)


def test_no_directory(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such directory; .*prepare_data"):
        Dataset.open(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="not a data set"):
        Dataset.open(str(tmp_path))


SHARD = "train/code/00000.array_record"


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


def _zero_tail(path):
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (SHARD, lambda p: p.unlink(), "missing shard"),
        (SHARD, lambda p: p.write_bytes(b""), "empty shard"),
        (SHARD, _truncate, "truncated shard"),
        (SHARD, _zero_tail, "damaged shard"),
        ("train/code/documents.npy", lambda p: p.unlink(), "missing"),
        ("held_out/prose/documents.npy", _truncate, "damaged"),
        ("dataset.json", _truncate, "not valid JSON"),
        ("tokenizer.json", lambda p: p.unlink(), "no tokenizer"),
        ("tokenizer.json", lambda p: p.write_text(p.read_text() + " "), "its hash is"),
    ],
)
def test_damage_is_named_with_the_remedy(copy, file, damage, message):
    damage(copy / file)
    with pytest.raises(InputError, match=message) as error:
        Dataset.open(str(copy))
    assert str(copy) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", ["documents", "tokens", "bytes", "unscored_bytes"])
def test_counts_that_do_not_match_are_refused(copy, field):
    manifest = json.loads((copy / "dataset.json").read_text())
    manifest["splits"]["train"]["prose"][field] += 1
    (copy / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"train/prose/documents\.npy: counts"):
        Dataset.open(str(copy))


def test_other_formats_and_unknown_keys_are_refused(copy):
    manifest = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(InputError, match="format version 99"):
        Dataset.open(str(copy))
    (copy / "dataset.json").write_text(json.dumps({**manifest, "splitz": {}}))
    with pytest.raises(InputError, match="splitz: unknown key; did you mean 'splits'"):
        Dataset.open(str(copy))
