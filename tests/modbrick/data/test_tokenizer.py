import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from modbrick.data.tokenizer import (
    END_OF_DOCUMENT,
    ByteTokenizer,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from modbrick.errors import InputError

TEXTS = ["def f(x):\n    return x + 1\n" * 20, "Größe, 日本語 and the rest. " * 30, "x = 1\n" * 50]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(iter(TEXTS), 280)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_bytes_there_and_back(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert bytes(ids.tolist()) == text.encode()
    assert tokenizer.decode([256, *ids, 256]) == text


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_the_file_of_the_byte_tokenizer_is_it_for_everyone_else(text):
    other = tokenizers.Tokenizer.from_str(ByteTokenizer().to_json())
    assert other.encode(text).ids == ByteTokenizer().encode(text).tolist()
    assert other.token_to_id(END_OF_DOCUMENT) == 256
    assert other.get_vocab_size() == 257


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_trained_tokenizer_loses_nothing(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert ids.tolist() == trained.encode_batch(["other", text])[1].tolist()
    assert trained.end_of_document not in ids


def test_training_depends_on_the_texts_alone(trained):
    again = train_tokenizer(iter(TEXTS), 280)
    assert again.identity == trained.identity
    assert trained.vocabulary == 280
    assert trained.start_of_document == trained.end_of_document == 0
    assert train_tokenizer(iter(TEXTS[:1]), 280).identity != trained.identity
    assert len(trained.encode(TEXTS[0])) < 0.9 * len(TEXTS[0])


def test_text_that_looks_like_a_special_token_is_text(trained):
    assert 256 not in ByteTokenizer().encode(END_OF_DOCUMENT)
    ids = trained.encode(f"a{END_OF_DOCUMENT}b")
    assert trained.end_of_document not in ids
    assert trained.decode(ids) == f"a{END_OF_DOCUMENT}b"


def test_it_is_kept_and_found_again(trained, tmp_path):
    for tokenizer in (trained, ByteTokenizer()):
        save_tokenizer(tokenizer, str(tmp_path / "kept"))
        for place in (tmp_path / "kept", tmp_path / "kept" / "tokenizer.json"):
            again = load_tokenizer(str(place), identity=tokenizer.identity)
            assert again.identity == tokenizer.identity
            assert again.encode("x = 1").tolist() == tokenizer.encode("x = 1").tolist()
        assert type(load_tokenizer(str(place))) is type(tokenizer)


def _json_tokenizer(path, special=(), words=("a", "b")):
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=words[0]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(path))
    return str(path)


@pytest.mark.parametrize(
    ("special", "arguments", "expected"),
    [
        ([], {}, (None, None)),
        (["<|endoftext|>"], {}, (2, 2)),
        (["<s>", "</s>"], {}, (2, 3)),
        (["<s>", "</s>"], {"start": None}, (None, 3)),
        (["<s>", "</s>"], {"end": None, "start": "b"}, (1, None)),
        ([], {"end": "b"}, (1, 1)),
    ],
)
def test_boundary_tokens(tmp_path, special, arguments, expected):
    tokenizer = load_tokenizer(_json_tokenizer(tmp_path / "t.json", special), **arguments)
    assert (tokenizer.start_of_document, tokenizer.end_of_document) == expected


def test_ids_may_have_gaps(tmp_path):
    text = json.loads(ByteTokenizer().to_json())
    text["added_tokens"][0]["id"] = text["model"]["vocab"][END_OF_DOCUMENT] = 999
    (tmp_path / "t.json").write_text(json.dumps(text))
    assert load_tokenizer(str(tmp_path / "t.json")).vocabulary == 1000


def test_bytes_of_the_first_token(trained):
    text = "return x"
    first = trained.decode(trained.encode(text)[:1])
    assert trained.first_token_bytes(text) == len(first.encode())
    assert ByteTokenizer().first_token_bytes("é") == 1


def test_errors_name_the_remedy(tmp_path, trained):
    with pytest.raises(InputError, match=r"nowhere: no tokenizer there; give 'byte'"):
        load_tokenizer("nowhere")
    (tmp_path / "text.json").write_text("no tokenizer")
    with pytest.raises(InputError, match=r"text\.json: not a tokenizer\.json"):
        load_tokenizer(str(tmp_path / "text.json"))
    (tmp_path / "raw.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        load_tokenizer(str(tmp_path / "raw.json"))
    path = _json_tokenizer(tmp_path / "t.json", ["</s>"])
    with pytest.raises(InputError, match=r"no token '</e>'.*did you mean '</s>'"):
        load_tokenizer(path, end="</e>")
    with pytest.raises(InputError, match=r"its hash is .* is needed"):
        load_tokenizer(path, identity=trained.identity)
    with pytest.raises(InputError, match="at least 257, got 100"):
        train_tokenizer(iter(TEXTS), 100)
    with pytest.raises(InputError, match=r"the checkpoint .* is not the one of the data .*sha256"):
        trained.identity.require_same(ByteTokenizer().identity, "the checkpoint", "the data")
