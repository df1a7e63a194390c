import dataclasses

import pytest

from modbrick.data.tokenizers.tokenizer import TokenizerIdentity
from modbrick.errors import InputError

MINE = TokenizerIdentity("here.json", "a" * 64, 300, None, 0)


def test_the_name_is_no_part_of_the_identity():
    MINE.require_same(dataclasses.replace(MINE, name="there.json"), "mine", "yours")


@pytest.mark.parametrize(
    ("field", "value"),
    [("sha256", "b" * 64), ("vocabulary", 301), ("start_of_document", 0), ("end_of_document", 7)],
)
def test_a_difference_is_named(field, value):
    other = dataclasses.replace(MINE, **{field: value})
    with pytest.raises(InputError, match=rf"tokenizer of mine .* of yours .*: {field} "):
        MINE.require_same(other, "mine", "yours")
