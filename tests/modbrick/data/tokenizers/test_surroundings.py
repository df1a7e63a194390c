"""What stands around a text is what the library's own post-processor puts there."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
from tokenizers import processors

from modbrick.data.tokenizers.surroundings import Surroundings, with_surroundings
from modbrick.errors import InputError


def template(single: str) -> Any:
    special = [("<s>", 1), ("</s>", 2)]
    return processors.TemplateProcessing(single=single, pair=None, special_tokens=special)


@pytest.mark.parametrize(
    ("post_processor", "before", "behind"),
    [
        (None, (), ()),
        (processors.ByteLevel(trim_offsets=True), (), ()),
        (template("$A"), (), ()),
        (template("<s> $A"), (1,), ()),
        (template("</s> <s> $A </s>"), (2, 1), (2,)),
        (processors.BertProcessing(("</s>", 2), ("<s>", 1)), (1,), (2,)),
        (processors.RobertaProcessing(("</s>", 2), ("<s>", 1)), (1,), (2,)),
        (processors.Sequence([processors.ByteLevel(), template("<s> $A")]), (1,), ()),
        (processors.Sequence([template("<s> $A"), template("</s> $A </s>")]), (1,), ()),
    ],
)
def test_every_post_processor(
    post_processor: Any, before: tuple[int, ...], behind: tuple[int, ...]
) -> None:
    words = {"a": 0, "<s>": 1, "</s>": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    assert Surroundings.of_post_processor(tokenizer, "t") == Surroundings(before, behind)
    assert tokenizer.encode("a").ids == [*before, 0, *behind]
    tokenizer.enable_padding(length=8)
    tokenizer.enable_truncation(4)
    assert Surroundings.of_post_processor(tokenizer, "t") == Surroundings(before, behind)


def test_a_text_that_is_doubled_is_refused() -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.post_processor = template("$A <s> $A")
    with pytest.raises(InputError, match=r"^t: its post_processor does not keep a text"):
        Surroundings.of_post_processor(tokenizer, "t")


def test_others_can_be_asked_for() -> None:
    words = {"a": 0, "<s>": 1, "</s>": 2}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="a"))
    tokenizer.post_processor = template("</s> $A")
    before = tokenizer.to_str()
    assert with_surroundings(before, Surroundings((2,)), "t") == before
    for wanted in (Surroundings(), Surroundings((1,)), Surroundings((2, 1), (2,))):
        changed = tokenizers.Tokenizer.from_str(with_surroundings(before, wanted, "t"))
        assert changed.encode("a").ids == [*wanted.before, 0, *wanted.behind]
