import json

import pytest

from modbrick.data.preparation.formats.json_values import (
    BadRecordError,
    split_lines,
    split_values,
    text_of,
)

VALUES = [
    {"text": 'a, b]} \\ " \n'},
    {"text": "größer", "meta": {"x": [1, {"y": "]"}, []]}},
    "a string, with ] and \\",
    1.5,
    True,
    None,
    {},
]


def chunks(text: bytes, size: int) -> list[bytes]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_values_are_found_wherever_the_file_is_cut(size):
    def values(text: str) -> list[bytes]:
        return list(split_values(chunks(text.encode(), size)))

    for indent in (None, 1):
        whole = json.dumps([*VALUES, [1, [2]]], indent=indent, ensure_ascii=False)
        assert [json.loads(value) for value in values(whole)] == [*VALUES, [1, [2]]]
        one_by_one = "\n".join(json.dumps(value, indent=indent) for value in VALUES)
        assert [json.loads(value) for value in values(one_by_one)] == VALUES
    assert values("[]") == values("") == values(" \n") == []
    assert values("[1, 2] [3]") == [b"1", b"2", b"3"]
    assert values("[1,,{broken}, 2,]") == [b"1", b"", b"{broken}", b"2"]
    assert values('[{"a": 1}}, 2]') == [b'{"a": 1}}', b"2"]


@pytest.mark.parametrize("text", [b"[1, 2", b'{"a": 1', b'"abc', b'[{"a": "x', b'["\\"]'])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_what_has_no_end_is_told_behind_what_has(text, size):
    found = split_values(chunks(b'[{"good": 1}, ' + text.lstrip(b"["), size))
    assert next(found) == b'{"good": 1}'
    with pytest.raises(EOFError, match="in the middle of an array or a value"):
        list(found)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_lines(size):
    text = b"one\n\ntwo\r\n" + b"x" * 50 + b"\nlast"
    assert list(split_lines(chunks(text, size))) == text.split(b"\n")
    assert list(split_lines(chunks(text + b"\n", size))) == text.split(b"\n")


def test_a_line_that_is_too_long_is_none(monkeypatch):
    monkeypatch.setattr("modbrick.data.preparation.formats.json_values.LARGEST_RECORD", 10)
    text = b"short\n" + b"x" * 11 + b"\n" + b"y" * 10 + b"\n" + b"z" * 11
    for size in (1, 4, 100):
        assert list(split_lines(chunks(text, size))) == [b"short", None, b"y" * 10, None]
    with pytest.raises(BadRecordError, match="longer than"):
        text_of(None, "text")


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"a.b": "found", "a": {"b": "not"}}, "a.b"),
        ({"a": {"b": "found"}}, "a.b"),
        ({"a": {"b.c": {"d": "found"}}}, "a.b.c.d"),
        ({"a.b": {"c": "found"}, "a": 1}, "a.b.c"),
        ({"": {"x": "found"}}, ".x"),
    ],
)
def test_fields_of_fields(record, field):
    assert text_of(json.dumps(record).encode(), field) == "found"
    with pytest.raises(BadRecordError, match=f"no field '{field}.y'"):
        text_of(json.dumps(record).encode(), f"{field}.y")
