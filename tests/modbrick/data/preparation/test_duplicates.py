"""No text is in both splits, and copies are dropped where one asks for it."""

from __future__ import annotations

import os
import random
import sys

import pytest

from modbrick.data.preparation.duplicates import require_minhash
from modbrick.errors import InputError


def write(directory, texts):
    directory.mkdir(exist_ok=True)
    for name, text in texts.items():
        (directory / name).write_bytes(text.encode())


def test_a_held_out_file_within_the_input_is_not_trained_on(tmp_path, preparation):
    write(tmp_path / "docs", {f"{i}.txt": f"text {i}" for i in range(10)})
    os.symlink(tmp_path / "docs" / "2.txt", tmp_path / "docs" / "linked.txt")
    os.link(tmp_path / "docs" / "2.txt", tmp_path / "docs" / "hard.txt")
    write(tmp_path / "other", {"copy.txt": "text 2\r\n", "more.jsonl": '{"text": " text 2"}\n'})
    for named in (f"{tmp_path}/docs/2.txt", f"docs={tmp_path}/docs/2.txt", f"{tmp_path}/d*/2.txt"):
        report = preparation(tmp_path / "docs", tmp_path / "other", held_out_inputs=[named])
        found = preparation.texts()
        assert sorted(found["train"]) == sorted(f"text {i}" for i in range(10) if i != 2)
        assert found["held_out"] == ["text 2"]
        assert report.listing.held_out == 1
        summaries = report.manifest.sources.values()
        assert sum(s.skipped.get("copy of a held-out document", 0) for s in summaries) == 3


def test_a_held_out_input_that_is_the_whole_input_is_refused(tmp_path, preparation):
    write(tmp_path / "docs", {"a.txt": "a text", "b.txt": "b text"})
    with pytest.raises(InputError, match="names every file of --input: nothing is left to train"):
        preparation(tmp_path / "docs", held_out_inputs=[tmp_path / "docs"])
    preparation(held_out_inputs=[tmp_path / "docs"])
    assert preparation.texts() == {"train": [], "held_out": ["a text", "b text"]}


def test_equal_copies_stay_on_one_side(tmp_path, preparation):
    for domain in ("a", "b"):
        texts = {f"{i}-{copy}.txt": f"text {i}" for i in range(30) for copy in range(3)}
        write(tmp_path / domain, texts)
    preparation(tmp_path / "a", tmp_path / "b", held_out=0.3)
    found = preparation.texts()
    assert not set(found["train"]) & set(found["held_out"])
    assert all(len(texts) > 6 for texts in found.values())
    assert len(found["train"]) + len(found["held_out"]) == 180
    report = preparation(tmp_path / "a", tmp_path / "b", held_out=0.3, deduplicate="exact")
    kept = preparation.texts()
    assert {split: set(texts) for split, texts in kept.items()} == {
        split: set(texts) for split, texts in found.items()
    }
    assert sum(map(len, kept.values())) == 30
    skipped = {name: s.skipped for name, s in report.manifest.sources.items()}
    assert skipped == {
        "a": {"copy of an earlier document": 60},
        "b": {"copy of an earlier document": 90},
    }
    assert report.manifest.arguments["deduplicate"] == "exact"


def test_the_tokenizer_sees_no_held_out_text(tmp_path, preparation):
    secret = "zqzqzq " * 50
    write(tmp_path / "docs", {"a.txt": "some other words " * 50, "b.txt": secret})
    write(tmp_path / "more", {"copy.txt": secret + "\n"})
    for held_out in (tmp_path / "docs" / "b.txt", tmp_path / "more"):
        preparation(
            tmp_path / "docs",
            tmp_path / "more",
            f"rest={tmp_path}/docs/a.txt",
            held_out_inputs=[held_out],
            tokenizer="train",
            vocabulary=300,
        )
        text = (preparation.root / "set" / "tokenizer.json").read_text()
        assert '"some' in text
        assert "zq" not in text


def test_few_documents_are_not_left_to_chance(tmp_path, preparation):
    for count in range(1, 6):
        write(tmp_path / "docs", {f"{count}.txt": f"text {count}"})
        for held_out in (0.001, 0.999):
            preparation(tmp_path / "docs", held_out=held_out)
            found = preparation.texts()
            assert len(found["train"]) + len(found["held_out"]) == count
            assert found["train"]
            assert bool(found["held_out"]) == (count > 1)


def test_the_split_follows_the_text_and_not_the_name(tmp_path, preparation):
    texts = [f"text {i}" for i in range(60)]
    write(tmp_path / "docs", {f"{i}.txt": text for i, text in enumerate(texts)})
    preparation(tmp_path / "docs", held_out=0.3)
    before = preparation.texts()
    random.Random(0).shuffle(texts)
    (tmp_path / "lines.jsonl").write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    preparation(tmp_path / "lines.jsonl", held_out=0.3)
    after = preparation.texts()
    assert {split: set(found) for split, found in before.items()} == {
        split: set(found) for split, found in after.items()
    }


def test_near_copies(tmp_path, preparation):
    pytest.importorskip("datasketch")
    words = [f"word{number}" for number in range(1000)]
    draw = random.Random(0)
    texts = [[draw.choice(words) for _ in range(200)] for _ in range(20)]
    near = list(texts[0])
    near[100] = "changed"
    write(tmp_path / "docs", {f"{i:02}.txt": " ".join(text) for i, text in enumerate(texts)})
    write(tmp_path / "more", {"near.txt": " ".join(near).upper() + "!", "short.txt": "word1"})
    for workers in (1, 2):
        report = preparation(
            tmp_path / "docs", tmp_path / "more", deduplicate="near", workers=workers
        )
        found = preparation.texts()["train"]
        assert found == [*(" ".join(text) for text in texts), "word1"]
        skipped = report.manifest.sources["more"].skipped
        assert skipped == {"near copy of an earlier document": 1}
    preparation(tmp_path / "docs", held_out_inputs=[tmp_path / "more"], deduplicate="near")
    found = preparation.texts()
    assert found["train"] == [" ".join(text) for text in texts[1:]]
    assert len(found["held_out"]) == 2


def test_near_copies_need_their_library(preparation, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(InputError, match=r"needs datasketch: pip install \"modbrick\[deduplicate"):
        require_minhash()
    with pytest.raises(InputError, match="needs datasketch"):
        preparation("nowhere", deduplicate="near")
