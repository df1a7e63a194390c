import pytest
import tokenizers

from modbrick.data.tokenizers.byte import ByteTokenizer
from modbrick.data.tokenizers.files import load_tokenizer, save_tokenizer, train_tokenizer
from modbrick.errors import InputError

TEXTS = ["def f(x):\n    return x + 1\n" * 20, "Größe, 日本語 and the rest. " * 30, "x = 1\n" * 50]


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(iter(TEXTS), 280)


def test_training_depends_on_the_texts_alone(trained):
    again = train_tokenizer(iter(TEXTS), 280)
    assert again.identity == trained.identity
    assert trained.vocabulary == 280
    assert trained.start_of_document == trained.end_of_document == 0
    assert train_tokenizer(iter(TEXTS[:1]), 280).identity != trained.identity
    assert len(trained.encode(TEXTS[0])) < 0.9 * len(TEXTS[0])


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
