import numpy as np
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from modbrick.data.tokenizers.byte import ByteTokenizer
from modbrick.data.tokenizers.tokenizer import END_OF_DOCUMENT


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
