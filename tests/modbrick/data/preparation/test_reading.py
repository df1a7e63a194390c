import json

import pytest
import zstandard

from modbrick.data.preparation import work_units
from modbrick.data.preparation.formats import streams
from modbrick.data.preparation.inputs import Input
from modbrick.data.preparation.reading import read_work_unit
from modbrick.data.preparation.sources import list_sources
from modbrick.data.preparation.splits import fraction_of
from modbrick.data.preparation.work_units import ReadingOptions, SourceRecord, cut_into_work_units

LINES = [json.dumps({"text": f"line {i} " + "x" * (i % 40)}) for i in range(200)]


def texts(path, **options):
    sources = list_sources([Input(str(path))]).sources
    records = {number: SourceRecord() for number in range(len(sources))}
    units = list(cut_into_work_units(sources, ReadingOptions(), records))
    found = [text for unit in units for text in read_work_unit(unit, sources, ReadingOptions())[0]]
    assert sum(unit.advance for unit in units) == sum(source.size for source in sources)
    return units, [(text.text, text.split, fraction_of(text.digest)) for text in found]


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("size", [10, 100, 1 << 20])
def test_the_cut_into_work_units_changes_nothing(tmp_path, monkeypatch, end, size):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(LINES) + end)
    _, whole = texts(path)
    assert [text for text, _, _ in whole] == [json.loads(line)["text"] for line in LINES]
    monkeypatch.setattr(work_units, "UNIT_BYTES", size)
    monkeypatch.setattr(streams, "CHUNK", 64)
    units, parts = texts(path)
    assert parts == whole
    assert (len(units) > 10) == (size < 1000)


def test_zstandard_frames_and_empty_files(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    compressed = [zstandard.compress((line + "\n").encode()) for line in LINES]
    path.write_bytes(b"".join(compressed))
    assert len(texts(path)[1]) == len(LINES)
    path.write_bytes(zstandard.compress(b""))
    assert texts(path)[1] == []


def test_the_split_is_by_hash_and_near_its_share(tmp_path):
    for i in range(2000):
        (tmp_path / f"{i}.txt").write_text(f"{i}")
    _, found = texts(tmp_path)
    fractions = [fraction for _, _, fraction in found]
    assert all((split == "held_out") == (fraction < 0.05) for _, split, fraction in found)
    assert 60 < sum(fraction < 0.05 for fraction in fractions) < 140
    assert len(set(fractions)) == 2000
