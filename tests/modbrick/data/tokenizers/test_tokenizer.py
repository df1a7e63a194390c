import dataclasses

import pytest

from modbrick.data.tokenizers.byte import ByteTokenizer
from modbrick.data.tokenizers.files import train_tokenizer
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


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), train_tokenizer(iter(["abc"]), 257)])
def test_bytes_that_are_no_text_are_refused(tokenizer):
    assert tokenizer.encode("\N{GRINNING FACE}").size == 4
    with pytest.raises(InputError, match=r"^'gr\\xfc\\xdf \\udcff': not Unicode text; write it as"):
        tokenizer.encode("grüß \udcff")
    with pytest.raises(InputError, match="not Unicode text"):
        tokenizer.encode_batch(["good", "\ud800 half a pair"])
