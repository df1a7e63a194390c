import json

import pytest
import zstandard

from modbrick.data import tasks as cutting
from modbrick.data.reading import read_task
from modbrick.data.sources import Input, list_sources
from modbrick.data.tasks import ReadingOptions, SourceRecord, cut_into_tasks

LINES = [json.dumps({"text": f"line {i} " + "x" * (i % 40)}) for i in range(200)]


def texts(path, **options):
    sources, _ = list_sources([Input(str(path))])
    records = {number: SourceRecord() for number in range(len(sources))}
    tasks = list(cut_into_tasks(sources, ReadingOptions(), records))
    found = [text for task in tasks for text in read_task(task, sources, ReadingOptions())[0]]
    assert sum(task.advance for task in tasks) == sum(source.size for source in sources)
    return tasks, [(text.text, text.split, text.fraction) for text in found]


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("size", [10, 100, 1 << 20])
def test_the_cut_into_tasks_changes_nothing(tmp_path, monkeypatch, end, size):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(LINES) + end)
    _, whole = texts(path)
    assert [text for text, _, _ in whole] == [json.loads(line)["text"] for line in LINES]
    monkeypatch.setattr(cutting, "TASK_BYTES", size)
    monkeypatch.setattr(cutting, "_CHUNK", 64)
    tasks, parts = texts(path)
    assert parts == whole
    assert (len(tasks) > 10) == (size < 1000)


def test_zstandard_frames_and_empty_files(tmp_path):
    path = tmp_path / "a.jsonl.zst"
    compressed = [zstandard.compress((line + "\n").encode()) for line in LINES]
    path.write_bytes(b"".join(compressed))
    assert len(texts(path)[1]) == len(LINES)
    path.write_bytes(zstandard.compress(b""))
    assert texts(path)[1] == []


def test_the_split_is_by_hash_and_near_its_share(tmp_path):
    for i in range(2000):
        (tmp_path / f"{i}.txt").write_text("x")
    _, found = texts(tmp_path)
    fractions = [fraction for _, _, fraction in found]
    assert all((split == "held_out") == (fraction < 0.05) for _, split, fraction in found)
    assert 60 < sum(fraction < 0.05 for fraction in fractions) < 140
    assert len(set(fractions)) == 2000
