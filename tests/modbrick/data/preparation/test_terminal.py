"""What a preparation says at the terminal."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from modbrick.data.preparation.inputs import Input
from modbrick.data.preparation.preparation import PreparationConfig, prepare
from modbrick.data.preparation.terminal import preparation_progress, print_report


def test_the_report_tells_what_is_in_and_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "good.txt").write_text("1234")
    (texts / "picture.png").write_text("x")
    for number in range(21):
        (texts / f"latin{number:02}.txt").write_bytes(b"\xe4")
    config = PreparationConfig((Input(str(texts), "ours", "train"),), "byte", str(tmp_path / "out"))
    with preparation_progress() as progress:
        report = prepare(config, progress)
    assert "tokenizing" in capsys.readouterr().err
    print_report(report, config)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "train ours 1 5 4 0.80" in lines
    assert "skipped: 21 files or records" in lines
    assert f"{texts}/latin19.txt: not UTF-8 (1)" in lines
    assert not any("latin20.txt" in line for line in lines)
    assert f"... all of them are in {tmp_path}/out/sources.jsonl" in lines
    assert "left aside, by extension: 1 .png" in lines
    assert any(line.startswith("no document is held out") for line in lines)
    assert lines[-1].startswith(f"{tmp_path}/out: tokenizer bytes, vocabulary 257; ")


def test_no_bar_is_begun_before_there_is_something_to_show(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with preparation_progress():
        pass
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_what_it_can_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in (b"good.txt", b"bad\xe9.txt", b"bad\n\x1b[31m.txt", "bad\N{SNOWMAN}.txt".encode()):
        (texts / os.fsdecode(name)).write_bytes(b"text" if name == b"good.txt" else b"\xff")
    config = PreparationConfig((Input(str(texts), "d"),), "byte", str(tmp_path / "out"))
    report = prepare(config)
    for encoding, snowman in (("ascii", r"\u2603"), ("utf-8", "\N{SNOWMAN}")):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        print_report(report, config)
        stream.flush()
        shown = raw.getvalue().decode(encoding)
        lines = [line.strip().removeprefix(f"{texts}/") for line in shown.splitlines()]
        for shown in (r"bad\udce9.txt", r"bad\n\x1b[31m.txt", f"bad{snowman}.txt"):
            assert f"{shown}: not UTF-8 (1)" in lines


def test_the_report_tells_what_a_search_did_not_look_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts"
    (texts / "made").mkdir(parents=True)
    for name in ("dataset.json", "sources.jsonl", "tokenizer.json"):
        (texts / "made" / name).write_text("{}")
    (texts / "a.txt").write_text("text")
    (texts / "b.txt").write_text("text")
    (texts / "c.txt").write_text("other")
    (texts / "package.json").write_text('{"name": "x"}')
    (texts / "lines.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    config = PreparationConfig(
        (Input(str(texts), "d"), Input(str(texts / "c.txt"), "d", "held_out")),
        "byte",
        str(tmp_path / "out"),
        exclude=("*.log",),
        deduplicate="exact",
    )
    print_report(prepare(config), config)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "dropped: 1 documents, each a copy of an earlier document",
        "held out, and not trained on: 1 files of --held_out_input",
        "skipped: 2 files or records",
        f"{texts}/lines.jsonl: no field 'text' (found: step; first: line 1) (2)",
        "read as text, one document each: 1 .json files that hold no records",
        "excluded by *.log: 0 files or directories",
        f"passed over: {texts}/made (a prepared data set)",
    ):
        assert line in lines
