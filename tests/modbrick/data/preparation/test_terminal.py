"""What a preparation says at the terminal."""

from __future__ import annotations

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
