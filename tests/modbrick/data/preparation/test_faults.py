"""Whatever is wrong with a record or a file, the others are prepared, and it is counted."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from modbrick.data.preparation.work_units import UNIT_BYTES
from modbrick.errors import InputError

GOOD = [f"good document {i}" for i in range(6)]
DEEP = b'{"text": "x", "y": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
# Records with what is wrong with them.
BAD = [
    (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "a number of too many digits"),
    (DEEP, "nested too deeply"),
    (b'{"text": "\xff\xfe"}', "not UTF-8"),
    (b'{"text": "\\ud800"}', "not Unicode (lone surrogates)"),
    (b'{"text": null}', "field 'text' is null"),
    (b'{"text": ["a", "b"]}', "field 'text' is not text"),
    (b'{"text": {"text": "x"}}', "field 'text' is not text"),
    (b'{"text": NaN}', "field 'text' is not text"),
    (b'{"text": "a", "text": "b"}', "field 'text' stands there twice"),
    (b'{"other": "x"}', "no field 'text'"),
    (b"[1, 2]", "not an object with fields"),
    (b'"text"', "not an object with fields"),
    (b"nonsense", "not JSON"),
    (b'{"text": ""}', "empty"),
    (b"{}", "no field 'text'"),
]
# Unusual ones with nothing wrong.
UNUSUAL = {
    b'{"text": "beside numbers", "a": NaN, "b": -Infinity, "c": 1e999}': "beside numbers",
    b'{"text": "with \\u0000 and \\ud83d\\ude00"}': "with \0 and \N{GRINNING FACE}",
    b' {"meta": {"text": 1}, "text": "outer"} ': "outer",
    b'\xef\xbb\xbf{"text": "marked"}': "marked",
    b'{"text": "]}\\\\\\",["}': ']}\\",[',
}


def record(text: str) -> bytes:
    return json.dumps({"id": 1, "text": text}).encode()


def mixed() -> list[bytes]:
    """Good records around every bad one."""
    records = [record(GOOD[0]), *UNUSUAL]
    for number, (bad, _) in enumerate(BAD):
        records += [bad, record(GOOD[number % len(GOOD)])]
    return records


def lines(records: list[bytes]) -> bytes:
    return b"\n".join(records) + b"\n"


def array(records: list[bytes]) -> bytes:
    return b"[" + b",\n".join(records) + b"]"


def reasons(report) -> dict[str, int]:
    found: dict[str, int] = {}
    for summary in report.manifest.sources.values():
        for reason, count in summary.skipped.items():
            found[reason] = found.get(reason, 0) + count
    return found


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.jsonl", lines),
        ("a.ndjson", lambda records: b"\xef\xbb\xbf" + lines(records).replace(b"\n", b"\r\n")),
        ("a.json", lines),
        ("a.json", array),
        ("a.json.gz", lambda records: gzip.compress(array(records))),
        ("a.jsonl.gz", lambda records: b"".join(gzip.compress(r + b"\n") for r in records)),
        ("a.jsonl.xz", lambda records: lzma.compress(lines(records))),
        ("a.jsonl.bz2", lambda records: bz2.compress(lines(records))),
        ("a.jsonl.zst", lambda records: zstandard.compress(lines(records))),
        ("misnamed.jsonl", lambda records: zstandard.compress(lines(records))),
        ("misnamed.jsonl.gz", lines),
    ],
)
def test_bad_records_are_skipped_and_counted(tmp_path, preparation, name, form):
    (tmp_path / name).write_bytes(form(mixed()))
    report = preparation(tmp_path)
    good = [*GOOD[:1], *UNUSUAL.values(), *(GOOD[i % len(GOOD)] for i in range(len(BAD)))]
    assert preparation.texts()["train"] == good
    expected: dict[str, int] = {}
    for _, reason in BAD:
        expected[reason] = expected.get(reason, 0) + 1
    assert reasons(report) == expected
    noun = "record" if b"[" in form([]) or "json.gz" in name else "line"
    (line,) = map(json.loads, (preparation.root / "set" / "sources.jsonl").read_text().splitlines())
    assert line["first"]["not UTF-8"] == f"{noun} {2 + len(UNUSUAL) + 2 * 2}"
    assert line["first"]["no field 'text'"].endswith("; found: other")


COLUMNS = {
    "string": pyarrow.string(),
    "large_string": pyarrow.large_string(),
    "string_view": pyarrow.string_view(),
    "binary": pyarrow.binary(),
    "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
}


def bad_column(kind: pyarrow.DataType) -> pyarrow.Array:
    """One with a null, an empty text and, where it can be written, a text that is no UTF-8."""
    values = pyarrow.array([b"one", None, b"bad \xff", b"", b"two"])
    if kind == pyarrow.string_view():
        return pyarrow.array(["one", None, "", "two"], kind)
    if kind == pyarrow.large_string():
        values = values.cast(pyarrow.large_binary())
    if pyarrow.types.is_dictionary(kind):
        values = values.drop_null()
        words = pyarrow.Array.from_buffers(pyarrow.string(), 4, values.buffers())
        indices = pyarrow.array([0, None, 1, 2, 3], pyarrow.int32())
        return pyarrow.DictionaryArray.from_arrays(indices, words)
    return pyarrow.Array.from_buffers(kind, 5, values.buffers())


@pytest.mark.parametrize("codec", ["snappy", "zstd", "gzip", "brotli", "lz4", "none"])
@pytest.mark.parametrize("kind", COLUMNS)
def test_bad_rows_of_columns_of_every_kind(tmp_path, preparation, kind, codec):
    if codec != "snappy" and kind != "string":
        return
    column = bad_column(COLUMNS[kind])
    rows = len(column)
    table = pyarrow.table({"n": list(range(rows)), "text": column})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression=codec)
    report = preparation(tmp_path)
    assert preparation.texts()["train"] == ["one", "two"]
    expected = {"null": 1, "empty": 1} | ({"not UTF-8": 1} if rows == 5 else {})
    assert reasons(report) == expected
    assert ("null (first: row 2)", 1) in [item[1:] for item in report.skipped]


def test_fields_of_fields(tmp_path, preparation):
    documents = [{"text": "a b"}, None, {"text": None}, {"text": "c d"}]
    table = pyarrow.table({"id": [1, 2, 3, 4], "doc": documents})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    rows = [{"doc": {"text": "e f"}}, {"doc": None}, {"doc.text": "g h"}, {"doc": {"id": 1}}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = preparation(tmp_path, text_field="doc.text")
    assert preparation.texts()["train"] == ["a b", "c d", "e f", "g h"]
    assert reasons(report) == {"null": 2, "no field 'doc.text'": 2}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"ab\0cd", "binary"),
        ("a.txt", "größer".encode("latin-1"), "not UTF-8"),
        ("a.txt", "wide".encode("utf-16"), "UTF-16 text (save it as UTF-8)"),
        ("a.jsonl", '{"text": "wide"}'.encode("utf-16"), "UTF-16 text (save it as UTF-8)"),
        ("a.json", b"\xff\xfe" + "[]".encode("utf-16-le"), "UTF-16 text (save it as UTF-8)"),
        ("a.txt.gz", gzip.compress(b"a" * 99)[:-9], "damaged or unreadable (ends in"),
        ("a.txt.gz", gzip.compress(b"a" * 99)[:-8] + bytes(8), "damaged or unreadable (Error -3"),
        ("a.parquet", b"", "damaged or unreadable (Parquet file size is 0"),
        ("a.parquet", b"PAR1 no", "damaged or unreadable (Parquet"),
        ("a.json", b'[{"text": "a b"}, {"text": "', "damaged or unreadable (ends in the middle"),
    ],
    ids=map(str, range(10)),
)
def test_a_bad_file_costs_no_other(tmp_path, preparation, name, content, reason):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / name).write_bytes(content)
    report = preparation(tmp_path)
    assert preparation.texts()["train"][-1] == "good"
    ((path, found, count),) = report.skipped
    assert (path, count) == (str(tmp_path / name), 1)
    assert found.startswith(reason)


def test_what_comes_before_the_damage_is_kept(tmp_path, preparation):
    text = b"".join(record(f"{i} " + os.urandom(30).hex()) + b"\n" for i in range(2000))
    packed = gzip.compress(text)
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    rows = [os.urandom(30).hex() for _ in range(100)]
    pyarrow.parquet.write_table(
        pyarrow.table({"text": rows}), tmp_path / "b.parquet", row_group_size=50
    )
    raw = bytearray((tmp_path / "b.parquet").read_bytes())
    group = pyarrow.parquet.ParquetFile(tmp_path / "b.parquet").metadata.row_group(1).column(0)
    raw[group.data_page_offset : group.data_page_offset + 20] = b"\xff" * 20
    (tmp_path / "b.parquet").write_bytes(raw)
    report = preparation(tmp_path)
    found = preparation.texts()["train"]
    lines_read = len(found) - 50
    assert 500 < lines_read < 1500
    assert found[:lines_read] == [
        json.loads(line)["text"] for line in text.split(b"\n")[:lines_read]
    ]
    assert found[lines_read:] == rows[:50]
    (lines_reason, rows_reason) = sorted(report.skipped)
    assert lines_reason[1:] == (
        "damaged or unreadable (ends in the middle of its compressed data)",
        1,
    )
    assert rows_reason[2] == 50
    assert rows_reason[1].endswith("(first: row 51)")


def test_a_file_that_was_named_is_looked_at_before_the_work(tmp_path, preparation, monkeypatch):
    monkeypatch.setattr("modbrick.data.preparation.preparation.encode", None)
    (tmp_path / "many.jsonl").write_bytes(lines([b'{"content": "x"}' + b" " * 999] * 5000))
    assert (tmp_path / "many.jsonl").stat().st_size > UNIT_BYTES
    table = pyarrow.table({"text": [["a"], ["b"]], "words": [{"text": 1}] * 2})
    pyarrow.parquet.write_table(table, tmp_path / "lists.parquet")
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    (tmp_path / "cut.jsonl.xz").write_bytes(lzma.compress(lines([record("x")] * 9))[:-4])
    (tmp_path / "one.json").write_text('{"data": [{"text": "a"}]}')
    (tmp_path / "columns.json").write_text('{"text": ["a", "b"]}')
    (tmp_path / "strings.json").write_text('["a", "b"]')
    for name in ("a.tar.gz", "a.zip", "a.jsonl.lz4", "a.parquet.gz"):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.txt")
    os.symlink("nowhere", tmp_path / "dangling.txt")
    for name, message in {
        "many.jsonl": r"none of its records could be used \(\d+ of them: no field 'text' \(found",
        "lists.parquet": "column 'text' holds list<.*>, not text; choose another with --text_field",
        "twice.parquet": "2 columns are called 'text'",
        "cut.jsonl.xz": "damaged or unreadable .*leave it out of --input",
        "one.json": "one JSON object, with no field 'text' .found: data.; make it lines or",
        "columns.json": "field 'text' is not text",
        "strings.json": "2 of them: not an object with fields",
        "a.tar.gz": "an archive; unpack it",
        "a.zip": "an archive; unpack it",
        "a.jsonl.lz4": "compressed in a way that is not read; unpack it, or use .gz",
        "a.parquet.gz": "Parquet compresses itself",
        "pipe.txt": "a pipe, a socket or a device; write it to a file first",
        "dangling.txt": "a link to nowhere, where nothing is",
    }.items():
        with pytest.raises(InputError, match=f"^{tmp_path}/{name}: .*{message}"):
            preparation(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"separator": ""}, "--document_separator is empty"),
        ({"text_field": ""}, "--text_field is empty"),
        ({"exclude": ("",)}, "--exclude: one of them is empty"),
        ({"held_out": 1.0}, "--held_out=1 leaves nothing to train on"),
        ({"held_out": float("nan")}, "--held_out must be from 0 to 1"),
        ({"deduplicate": "exat"}, "--deduplicate: unknown value 'exat'; did you mean 'exact'"),
        ({"tokenizer": "train", "vocabulary": 100}, "--vocab_size: .* at least 257, got 100"),
        (
            {"tokenizer": "train", "vocabulary": 300, "training_bytes": 0},
            "--tokenizer_training_bytes must be 1 or more, got 0",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_work(preparation, options, message):
    with pytest.raises(InputError, match=message):
        preparation("nowhere", **options)


def test_names_of_any_bytes(tmp_path, preparation):
    odd = [b"caf\xe9.txt", b"a\nb.txt", b"\xff.jsonl", "ü [1] \\ ?*.txt".encode()]
    for number, name in enumerate(odd):
        content = record(f"text {number}") if b"json" in name else f"text {number}".encode()
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_bytes(content)
    os.mkdir(bytes(tmp_path) + b"/d\xe9")
    Path(os.fsdecode(bytes(tmp_path) + b"/d\xe9/x.txt")).write_bytes(b"\xff")
    for inputs in ([tmp_path], [os.fsdecode(bytes(tmp_path) + b"/" + name) for name in odd]):
        report = preparation(*inputs, domain="d")
        assert sorted(preparation.texts()["train"]) == [f"text {number}" for number in range(4)]
    text = (preparation.root / "set" / "sources.jsonl").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 4
    assert any(
        name.endswith("caf\udce9.txt")
        for name in (json.loads(x)["path"] for x in text.splitlines())
    )
    assert report.manifest.sources["d"].files == 4


def test_a_very_long_line_is_read_and_one_beyond_reason_is_not(tmp_path, preparation, monkeypatch):
    long = "word " * 60_000
    (tmp_path / "a.jsonl").write_bytes(lines([record("before"), record(long), record("after")]))
    (tmp_path / "b.json").write_bytes(array([record("first"), record(long), record("last")]))
    preparation(tmp_path)
    found = preparation.texts()["train"]
    assert [text[:5] for text in found] == ["befor", "word ", "after", "first", "word ", "last"]
    monkeypatch.setattr("modbrick.data.preparation.formats.json_values.LARGEST_RECORD", 1 << 17)
    report = preparation(tmp_path)
    assert preparation.texts()["train"] == ["before", "after", "first"]
    assert [count for _, _, count in report.skipped] == [1, 1]
