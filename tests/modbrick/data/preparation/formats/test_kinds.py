import gzip
import json

import pytest

from modbrick.data.preparation.formats.kinds import (
    TEXT_EXTENSIONS,
    extension_of,
    kind_of,
    text_extensions,
    without_endings,
)
from modbrick.data.preparation.formats.streams import UnreadableError

RECORDS = [{"text": f"text {i}"} for i in range(5)]
LINES = "\n".join(map(json.dumps, RECORDS))
LONG = json.dumps({"text": "x" * (2 << 20)})


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (LINES, "json_lines"),
        (f"{{broken\n{LINES}\n", "json_lines"),
        (f"{LINES}\n{{broken", "json_lines"),
        (f"\n\n{LINES}\n", "json_lines"),
        (f"{LINES}\n{LONG}\n", "json_lines"),
        (f"{LONG}\n{LONG}", "json_values"),
        (json.dumps(RECORDS), "json_values"),
        (json.dumps(RECORDS, indent=2), "json_values"),
        ("\n".join(json.dumps(r, indent=1) for r in RECORDS), "json_values"),
        ("[]", "json_values"),
        ('["a", "b"]', "json_values"),
        (json.dumps(RECORDS[0]), "json_values"),
        (json.dumps(RECORDS[0], indent=2), "json_values"),
        ('{"name": "x",\n "scripts": {"a": 1}}', "text"),
        ('{"name": "x"}', "text"),
        ('{"a": [\n{"x": 1},\n{"x": 1}\n]}', "text"),
        ("// a comment\n{}", "text"),
        ("{broken", "text"),
        ('"only a string"', "text"),
        ("", "text"),
    ],
)
def test_what_a_json_file_holds(tmp_path, text, kind):
    for name, raw in (("a.json", text.encode()), ("a.json.gz", gzip.compress(text.encode(), 1))):
        (tmp_path / name).write_bytes(raw)
        path = str(tmp_path / name)
        assert kind_of(path, "text", TEXT_EXTENSIONS, named=False) == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.txt", "text"),
        ("a.TXT.GZ", "text"),
        ("a.py.xz", "text"),
        ("a.jsonl.zst", "json_lines"),
        ("a.ndjson.bz2", "json_lines"),
        ("A.Parquet", "parquet"),
        ("a.pq", "parquet"),
        ("a", None),
        ("a.gz", None),
        ("a.tar.gz", None),
        ("a.png", None),
        ("a.jsonl.lz4", None),
    ],
)
def test_what_a_search_reads(tmp_path, name, kind):
    (tmp_path / name).write_text("text")
    assert kind_of(str(tmp_path / name), "text", TEXT_EXTENSIONS, named=False) == kind


def test_a_file_whose_name_says_nothing_is_looked_into(tmp_path):
    extensions = text_extensions(["none"])
    for text, kind in (
        (LINES, "json_lines"),
        (json.dumps(RECORDS), "json_values"),
        ("[Chorus]", "text"),
        ('["a"]', "text"),
        ("PAR1", "parquet"),
        ("plain", "text"),
    ):
        (tmp_path / "part-00000").write_text(text)
        path = str(tmp_path / "part-00000")
        assert kind_of(path, "text", extensions, named=False) == kind
        assert kind_of(path, "text", TEXT_EXTENSIONS, named=True) == kind
        assert kind_of(path, "text", TEXT_EXTENSIONS, named=False) is None


def test_one_object_that_is_named_must_be_a_record(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"data": [{"text": "a"}]}')
    with pytest.raises(UnreadableError, match=r"with no field 'text' .found: data.; make it lines"):
        kind_of(str(path), "text", TEXT_EXTENSIONS, named=True)
    path.write_text('{"doc": {"text": "a"}}')
    assert kind_of(str(path), "doc.text", TEXT_EXTENSIONS, named=True) == "json_values"


def test_names():
    assert [extension_of(f"x/{n}") for n in ("a.TXT", "Makefile", "a.tar.gz")] == [
        ".txt",
        "(none)",
        ".gz",
    ]
    assert without_endings("c4.json.gz") == "c4"
    assert without_endings("part.0.parquet") == "part.0"
    assert without_endings("notes.md") == "notes.md"
