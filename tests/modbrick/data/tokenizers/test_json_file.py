import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modbrick.data.tokenizers.byte import ByteTokenizer
from modbrick.data.tokenizers.files import load_tokenizer, train_tokenizer
from modbrick.data.tokenizers.tokenizer import END_OF_DOCUMENT

TEXTS = ["def f(x):\n    return x + 1\n" * 20, "Größe, 日本語 and the rest. " * 30, "x = 1\n" * 50]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(iter(TEXTS), 280)


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_trained_tokenizer_loses_nothing(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert ids.tolist() == trained.encode_batch(["other", text])[1].tolist()
    assert trained.end_of_document not in ids


def test_text_that_looks_like_a_special_token_is_text(trained):
    assert 256 not in ByteTokenizer().encode(END_OF_DOCUMENT)
    ids = trained.encode(f"a{END_OF_DOCUMENT}b")
    assert trained.end_of_document not in ids
    assert trained.decode(ids) == f"a{END_OF_DOCUMENT}b"


def test_bytes_of_the_first_token(trained):
    text = "return x"
    first = trained.decode(trained.encode(text)[:1])
    assert trained.first_token_bytes(text) == len(first.encode())
    assert ByteTokenizer().first_token_bytes("é") == 1


def test_ids_may_have_gaps(tmp_path):
    text = json.loads(ByteTokenizer().to_json())
    text["added_tokens"][0]["id"] = text["model"]["vocab"][END_OF_DOCUMENT] = 999
    (tmp_path / "t.json").write_text(json.dumps(text))
    assert load_tokenizer(str(tmp_path / "t.json")).vocabulary == 1000
