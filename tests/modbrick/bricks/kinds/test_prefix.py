from __future__ import annotations

from typing import ClassVar

import pytest

from modbrick.bricks import BrickConfig, Prefix
from modbrick.bricks.attachment import attachments
from modbrick.errors import InputError
from tests.contracts.memory_brick import MemoryBrickContract
from tests.modbrick.bricks.tiny import MODEL


class TestPrefix(MemoryBrickContract):
    settings = (Prefix(length=3), Prefix(length=2))
    at_first: ClassVar = {"stickbreaking": {"values"}, "softmax": {"keys", "values"}}


def test_a_length_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="a prefix has a length of at least 1, got 0"):
        Prefix(length=0)


def test_it_stands_in_front_and_nowhere_else() -> None:
    (place,) = attachments(MODEL, BrickConfig(("layer.1-2",), Prefix()))
    assert (place.path, place.layers) == ("segments.0.attention.memory", (1, 2))
    with pytest.raises(InputError, match=r"prefix cannot be attached at 'layer.0.attention.key'"):
        attachments(MODEL, BrickConfig(("layer.0.attention.key",), Prefix()))
