import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import tokenizers
import zstandard

from modbrick.data.dataset import Dataset
from modbrick.data.preparation import encoding, work_units
from modbrick.data.preparation.formats import streams
from modbrick.data.preparation.inputs import Input
from modbrick.data.preparation.preparation import PreparationConfig, prepare
from modbrick.data.preparation.work_units import ReadingOptions
from modbrick.errors import InputError

TEXTS = [f"Document {i}: " + "größer 日本 " * (i % 7) + "end.\n" for i in range(60)]


def write_lines(path: Path, field: str = "text") -> None:
    text = "".join(json.dumps({"id": i, field: t}) + "\n" for i, t in enumerate(TEXTS)).encode()
    if path.suffix == ".gz":
        text = gzip.compress(text)
    elif path.suffix == ".zst":  # two frames, as tools that append write them
        half = len(text) // 2
        text = b"".join(zstandard.compress(part) for part in (text[:half], text[half:]))
    path.write_bytes(text)


def write_files(path: Path) -> None:
    for i, text in enumerate(TEXTS):
        file = path / f"part{i % 3}" / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def write_parquet(path: Path) -> None:
    table = pyarrow.table({"n": list(range(len(TEXTS))), "text": TEXTS})
    pyarrow.parquet.write_table(table, path, row_group_size=16)


def make(tmp_path, *inputs, name="set", tokenizer="byte", reading=None, **options):
    config = PreparationConfig(
        tuple(Input.parse(str(text)) for text in inputs),
        tokenizer,
        str(tmp_path / name),
        reading=reading or ReadingOptions(held_out=0.2),
        **{"workers": 1, **options},
    )
    return prepare(config)


def read_all(directory):
    data = Dataset.open(str(directory), verify_hashes=True)
    tokenizer = data.tokenizer()
    found = {}
    for split in ("train", "held_out"):
        if data.domains(split):
            documents = data.documents(split)
            found[split] = [
                tokenizer.decode(documents.read(i, 0, int(documents.targets[i]) + 1))
                for i in range(len(documents))
            ]
    return found


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("files", write_files),
        ("records.jsonl", write_lines),
        ("records.jsonl.gz", write_lines),
        ("records.jsonl.zst", write_lines),
        ("records.parquet", write_parquet),
    ],
)
@pytest.mark.parametrize("tokenizer", ["byte", "train"])
def test_every_kind_of_input_comes_back(tmp_path, monkeypatch, name, write, tokenizer):
    monkeypatch.setattr(work_units, "UNIT_BYTES", 700)  # several units, cut within the input
    monkeypatch.setattr(streams, "CHUNK", 100)
    write(tmp_path / name)
    options = {"vocabulary": 280} if tokenizer == "train" else {}
    report = make(tmp_path, tmp_path / name, tokenizer=tokenizer, **options)
    found = read_all(tmp_path / "set")
    assert sorted(found["train"] + found["held_out"]) == sorted(TEXTS)
    assert 2 <= len(found["held_out"]) <= 30
    assert not report.skipped
    for split, texts in found.items():
        (described,) = report.manifest.splits[split].values()
        assert described.bytes == sum(len(text.encode()) for text in texts)
        assert described.unscored_bytes == 0


@pytest.mark.parametrize("tokenizer", ["byte", "train"])
def test_the_number_of_workers_changes_nothing(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(work_units, "UNIT_BYTES", 700)
    write_files(tmp_path / "files")
    (tmp_path / "files" / os.fsdecode(b"bad\xe9.txt")).write_bytes(b"\xff\xfe")
    write_lines(tmp_path / "records.jsonl.gz")
    write_parquet(tmp_path / "records.parquet")
    options = {"vocabulary": 280} if tokenizer == "train" else {}
    inputs = [tmp_path / n for n in ("files", "records.jsonl.gz", "records.parquet")]
    for workers in (1, 2):
        make(
            tmp_path, *inputs, name=f"set{workers}", tokenizer=tokenizer, workers=workers, **options
        )
    one, two = (
        {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
        for root in (tmp_path / "set1", tmp_path / "set2")
    )
    assert one.keys() == two.keys()
    for file in one:
        assert one[file] == two[file], file


def test_the_split_is_stable(tmp_path):
    write_files(tmp_path / "files")
    make(tmp_path, tmp_path / "files", name="before")
    before = read_all(tmp_path / "before")
    for i in range(40):
        (tmp_path / "files" / f"new{i}.txt").write_text(f"new {i}")
    (tmp_path / "files").rename(tmp_path / "moved")
    make(tmp_path, f"d={tmp_path / 'moved'}", name="after")
    after = read_all(tmp_path / "after")
    for split, texts in before.items():
        assert set(texts) < set(after[split])


def test_domains_counts_and_sources(tmp_path):
    write_files(tmp_path / "files")
    write_lines(tmp_path / "web.jsonl")
    inputs = (f"books={tmp_path / 'files'}", tmp_path / "web.jsonl")
    manifest = make(tmp_path, *inputs).manifest
    assert set(manifest.splits["train"]) == {"books", "web"}
    for name, files in (("books", 60), ("web", 1)):
        assert manifest.sources[name].files == files
        counts = [manifest.splits[s][name].documents for s in ("train", "held_out")]
        assert sum(counts) == 60
    lines = [
        json.loads(line) for line in (tmp_path / "set" / "sources.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 61
    assert all(len(line["sha256"]) == 64 for line in lines)
    assert lines[-1]["bytes"] == (tmp_path / "web.jsonl").stat().st_size


def test_held_out_inputs(tmp_path):
    write_files(tmp_path / "files")
    write_lines(tmp_path / "valid.jsonl")
    config = PreparationConfig(
        (
            Input(str(tmp_path / "files"), "a"),
            Input(str(tmp_path / "valid.jsonl"), "a", "held_out"),
        ),
        "byte",
        str(tmp_path / "set"),
        reading=ReadingOptions(held_out=0),
        workers=1,
    )
    with pytest.raises(InputError, match=r"left to train on .60 copy of a held-out document"):
        prepare(config)
    (tmp_path / "files" / "more.txt").write_text("more")
    prepare(config)
    found = read_all(tmp_path / "set")
    assert found["train"] == ["more"]
    assert sorted(found["held_out"]) == sorted(TEXTS)


def test_what_is_skipped_is_reported(tmp_path):
    root = tmp_path / "files"
    root.mkdir()
    (root / "good.txt").write_text("good")
    (root / "latin.txt").write_bytes("größer".encode("latin-1"))
    (root / "binary.txt").write_bytes(b"ab\0cd")
    (root / "empty.txt").write_text("")
    (root / "gone.txt").symlink_to(root / "nowhere")
    lines = [b'{"text": "good"}', b"{broken", b'{"other": 1}', b'{"text": 5}', b"", b'{"text": ""}']
    lines += [b'{"text": "\\ud800"}', b'{"text": "\xff"}']
    (tmp_path / "some.jsonl").write_bytes(b"\n".join(lines))
    report = make(tmp_path, root, tmp_path / "some.jsonl", reading=ReadingOptions(held_out=0))
    skipped = {
        (Path(path).name, reason.split(" (")[0]): count for path, reason, count in report.skipped
    }
    assert skipped == {
        ("latin.txt", "not UTF-8"): 1,
        ("binary.txt", "binary"): 1,
        ("empty.txt", "empty"): 1,
        ("gone.txt", "unreadable"): 1,
        ("some.jsonl", "not JSON"): 1,
        ("some.jsonl", "no field 'text'"): 1,
        ("some.jsonl", "field 'text' is not text"): 1,
        ("some.jsonl", "empty"): 1,
        ("some.jsonl", "not Unicode"): 1,
        ("some.jsonl", "not UTF-8"): 1,
    }
    assert read_all(tmp_path / "set")["train"] == ["good", "good"]


def test_a_separator_cuts_files_into_documents(tmp_path):
    (tmp_path / "all.txt").write_text("one\n<|end|>\ntwo\nlines\n<|end|>\n\n<|end|>\nthree")
    options = ReadingOptions(held_out=0, separator="<|end|>")
    make(tmp_path, tmp_path / "all.txt", reading=options)
    assert read_all(tmp_path / "set")["train"] == ["one", "two\nlines", "three"]
    for separator, cut in (("<|end|>", True), (r"\n", False), (None, True)):
        options = ReadingOptions(held_out=0, separator=separator)
        assert make(tmp_path, tmp_path / "all.txt", reading=options, overwrite=True).cut == cut


@pytest.mark.parametrize("tokenizer", ["byte", "train"])
def test_long_texts_are_encoded_in_sections(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(encoding, "SECTION", 50)
    text = "word and more\n" * 40 + "x" * 300 + "日本" * 200
    (tmp_path / "long.txt").write_text(text)
    options = {"vocabulary": 300} if tokenizer == "train" else {}
    make(
        tmp_path,
        tmp_path / "long.txt",
        reading=ReadingOptions(held_out=0),
        tokenizer=tokenizer,
        **options,
    )
    assert read_all(tmp_path / "set")["train"] == [text]


def test_a_tokenizer_without_boundaries_leaves_the_first_token_unscored(tmp_path):
    model = tokenizers.models.WordLevel({"aé": 0, "b": 1, "c": 2}, unk_token="c")
    plain = tokenizers.Tokenizer(model)
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    plain.save(str(tmp_path / "t.json"))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("aé b c b")
    (tmp_path / "files" / "b.txt").write_text("b")
    report = make(
        tmp_path,
        tmp_path / "files",
        tokenizer=str(tmp_path / "t.json"),
        reading=ReadingOptions(held_out=0),
    )
    described = report.manifest.splits["train"]["files"]
    assert (described.documents, described.tokens) == (1, 3)
    assert (described.bytes, described.unscored_bytes) == (9, 3)
    assert [reason for _, reason, _ in report.skipped] == ["nothing to predict (a single token)"]


def test_inputs_that_yield_nothing_are_refused(tmp_path):
    def refused(message, *inputs, **options):
        with pytest.raises(InputError, match=message):
            make(tmp_path, *inputs, **options)
        assert not [p for p in tmp_path.iterdir() if "set" in p.name]

    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    refused("no document could be used in 1 files .1 empty", tmp_path / "empty")
    write_lines(tmp_path / "other.jsonl", field="content")
    refused(
        "none of its records could be used .*no field 'text' .found: id, content",
        tmp_path / "other.jsonl",
    )
    write_parquet(tmp_path / "t.parquet")
    refused(
        "no column 'txt'; did you mean 'text'",
        tmp_path / "t.parquet",
        reading=ReadingOptions("txt"),
    )
    refused("column 'n' holds int64", tmp_path / "t.parquet", reading=ReadingOptions("n"))
    for name in ("cut.jsonl.gz", "cut.jsonl.zst"):
        write_lines(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
        refused(f"{name}: damaged or unreadable", tmp_path / name)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-20])
    refused("damaged or unreadable", tmp_path / "cut.parquet")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": ()}, "no --input"),
        ({"reading": ReadingOptions(held_out=-0.1)}, "--held_out must be from 0 to 1, got -0.1"),
        ({"tokenizer": "train"}, "needs --vocab_size"),
        ({"vocabulary": 300}, "--vocab_size=300 is for --tokenizer=train"),
        ({"workers": -1}, "--workers"),
    ],
)
def test_a_bad_config_names_the_value(fields, message):
    with pytest.raises(InputError, match=message):
        PreparationConfig(**{"inputs": (Input("x"),), "tokenizer": "byte", "output": "y", **fields})
