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


def _json_tokenizer(path, special=(), words=("a", "b"), before=()):
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=words[0]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    ids = [(token, tokenizer.token_to_id(token)) for token in before]
    if before:
        template = [*before, "$A"]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=template, pair=None, special_tokens=ids
        )
    tokenizer.save(str(path))
    return str(path)


@pytest.mark.parametrize(
    ("special", "before", "arguments", "expected"),
    [
        ([], [], {}, (None, None)),
        (["<|endoftext|>"], [], {}, (None, 2)),
        (["<|endoftext|>"], ["<|endoftext|>"], {}, (2, 2)),
        (["<s>", "</s>"], [], {}, (None, 3)),
        (["<s>", "</s>"], ["<s>"], {}, (2, 3)),
        (["<s>", "</s>"], ["b"], {}, (1, 3)),
        (["<s>", "</s>"], ["<s>"], {"start": None}, (None, 3)),
        (["<s>", "</s>"], [], {"end": None, "start": "b"}, (1, None)),
        (["<s>", "</s>"], ["<s>", "b"], {"start": "b"}, (1, 3)),
        ([], [], {"end": "b"}, (None, 1)),
        (["<|end_of_document|>"], [], {}, (2, 2)),
    ],
)
def test_boundary_tokens(tmp_path, special, before, arguments, expected):
    path = _json_tokenizer(tmp_path / "t.json", special, before=before)
    tokenizer = load_tokenizer(path, **arguments)
    assert (tokenizer.start_of_document, tokenizer.end_of_document) == expected
    start = expected[0]
    assert tokenizer.around_prompts.before == (() if start is None else (start,))


def test_special_tokens_in_texts_are_such_on_request(tmp_path, trained):
    for tokenizer in (trained, ByteTokenizer()):
        end = tokenizer.end_of_document
        text = "x<|end_of_document|>x<|end_of_document|>"
        assert end not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        x = tokenizer.encode("x").tolist()
        assert tokenizer.encode(text, special_tokens=True).tolist() == [*x, end, *x, end]
        assert end not in tokenizer.encode(text)


def test_a_directory_says_which_token_ends_documents(tmp_path):
    _json_tokenizer(tmp_path / "tokenizer.json", ["<s>", "</s>", "<|im_end|>"], before=["<s>"])
    assert load_tokenizer(str(tmp_path)).end_of_document == 3
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    found = load_tokenizer(str(tmp_path))
    assert (found.start_of_document, found.end_of_document) == (2, 4)
    assert found.stop_tokens == (4,)
    assert load_tokenizer(str(tmp_path), end="</s>").end_of_document == 3


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
