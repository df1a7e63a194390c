"""The committed picture is what its text gives, and its text is true."""

from __future__ import annotations

import pytest

from tools.draw_architecture import TEXT, draw, read

ROOT = TEXT.parents[2]
SAID = TEXT.read_text(encoding="utf-8")


def test_the_picture_is_what_the_text_gives() -> None:
    picture = TEXT.with_suffix(".svg").read_text(encoding="utf-8")
    assert picture == draw(SAID), "draw it again: python -m tools.draw_architecture"


def test_boxes_name_rooms_that_exist_and_are_connected() -> None:
    _, boxes, flows = read(SAID)
    assert not [box.room for box in boxes.values() if not (ROOT / box.room).exists()]
    assert {name for flow in flows for name in (flow.start, flow.end)} == set(boxes)


def test_the_picture_shows_every_word_and_follows_the_reader_s_colours() -> None:
    picture = draw(SAID)
    lanes, boxes, flows = read(SAID)
    for words in (*(box.title for box in boxes.values()), *(flow.label for flow in flows)):
        assert f">{words}</text>" in picture
    assert len(lanes) == 3
    assert "prefers-color-scheme: dark" in picture


def test_a_line_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="neither lane, box nor flow: bxo files"):
        read("bxo files 0 files | x | y")
