from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from modbrick.data import load_tokenizer
from modbrick.data.tokenizers.files import tokenizer_from_json, train_tokenizer
from modbrick.errors import InputError
from modbrick.inference.text import TextStream

BYTES = load_tokenizer("bytes")
SAMPLE = "Grüße, 日本語 and 🤗🧱 naïve bricks. "
BPE = train_tokenizer(iter([SAMPLE * 20]), 300)


def fallback_tokenizer():
    """A tokenizer that marks spaces with ▁ and writes unknown characters as bytes."""
    vocabulary = [
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁abcdefghijklmnoprstuvw.,",
    ]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {token: index for index, token in enumerate(vocabulary)},
            [],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer_from_json(tokenizer.to_str(), "fallback", start=None, end=None)


FALLBACK = fallback_tokenizer()


def pieces_of(tokenizer, ids, **options) -> list[str]:
    stream = TextStream(tokenizer, **options)
    return [*(stream.push([token]) for token in ids), stream.close()]


@pytest.mark.parametrize("tokenizer", [BYTES, BPE, FALLBACK], ids=["bytes", "bpe", "fallback"])
def test_no_character_comes_in_part(tokenizer):
    ids = tokenizer.encode(SAMPLE).tolist()
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(pieces)
    assert pieces[-1] == ""
    assert len([piece for piece in pieces if piece]) > 8


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_ids_join_to_their_text(tokenizer, data):
    """Bytes that are no text, too: what comes in pieces is what decoding at once gives."""
    tokens = st.integers(0, tokenizer.vocabulary - 1)
    if tokenizer is BYTES:  # favour the front of long characters
        tokens = st.one_of(
            tokens, st.sampled_from([0xF0, 0x9F, 0xA4, 0x97, 0xE2, 0x82, 0xEF, 0xBF, 0xBD])
        )
    ids = data.draw(st.lists(tokens, max_size=30))
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_that_never_ends_is_shown_at_the_end():
    assert pieces_of(BYTES, [65, 0xF0, 0x9F]) == ["A", "", "", "\ufffd"]


def test_context_makes_the_first_space_appear():
    """Alone, the first word loses its space; after a prompt it must not."""
    prompt, rest = FALLBACK.encode("a brick").tolist(), FALLBACK.encode("wall").tolist()
    assert FALLBACK.decode(rest) == "wall"
    assert "".join(pieces_of(FALLBACK, rest, context=prompt)) == " wall"
    assert FALLBACK.decode(prompt + rest) == "a brick wall"


@pytest.mark.parametrize("stop", [["END"], ["ND", "END", "zzz"], ["Z", "EN", "END"]])
def test_stop_texts_end_the_stream_unseen(stop):
    stream = TextStream(BYTES, stop=stop)
    text = ""
    for token in BYTES.encode("EEN, E and END, more").tolist():
        text += stream.push([token])
        assert not any(s in text for s in stop)
        if stream.stopped:
            break
    assert stream.stopped
    first = min("EEN, E and END, more".find(s) for s in stop if s in "EEN, E and END, more")
    assert text == "EEN, E and END, more"[:first]
    assert stream.push(BYTES.encode("x")) == stream.close() == ""


def test_only_what_may_become_a_stop_text_is_held_back():
    stream = TextStream(BYTES, stop=["abc"])
    got = [stream.push([token]) for token in BYTES.encode("xabxa").tolist()]
    assert got == ["x", "", "", "abx", ""]
    assert stream.close() == "a"


def test_an_empty_stop_text_is_refused():
    with pytest.raises(InputError, match="stop text is empty"):
        TextStream(BYTES, stop=["x", ""])
