"""Texts that grow at once are printed one after the other."""

from __future__ import annotations

import pytest

from modbrick.inference.printing import Printer


def test_the_first_unfinished_text_is_live(capsys: pytest.CaptureFixture[str]) -> None:
    printer = Printer(["a", "b"])
    printer.write(1, "later", last=False)
    assert capsys.readouterr().out == "--- 1 of 2\na"
    printer.write(0, "!", last=True)
    assert capsys.readouterr().out == "!\n--- 2 of 2\nblater"
    printer.write(1, ".", last=True)
    assert capsys.readouterr().out == ".\n"


def test_a_single_text_has_no_heading(capsys: pytest.CaptureFixture[str]) -> None:
    Printer(["a"]).write(0, "b", last=True)
    assert capsys.readouterr().out == "ab\n"
