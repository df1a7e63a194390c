"""Prompts and their continuations are those of the transformers library, whatever files there are.

`tests/fixtures/tokenizers/make_fixtures.py` recorded what it makes of them.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from modbrick import load_model
from modbrick.checkpoints import Metadata, save_model
from modbrick.convert import (
    OpenedSource,
    export_checkpoint,
    format_named,
    import_checkpoint,
    open_checkpoint,
    prepare_export,
)
from modbrick.convert.gguf.source import open_gguf
from modbrick.convert.tokenizer import read_tokenizer
from modbrick.data import load_tokenizer
from modbrick.data.tokenizers.files import train_tokenizer
from modbrick.decoder.decoder import Decoder
from modbrick.errors import InputError
from modbrick.inference import GREEDY
from modbrick.inference.continuation import continue_texts, encode_prompts
from modbrick.models import open_model

pytestmark = pytest.mark.usefixtures("quick_compilation")
FIXTURES = Path(__file__).parents[2] / "fixtures" / "tokenizers"
SITUATIONS = json.loads((FIXTURES / "situations.json").read_text(encoding="utf-8"))
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def model() -> Decoder:
    return load_model(FIXTURES / "model")


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path) -> OpenedSource:
    """A checkpoint of the model with the files of a situation."""
    directory = tmp_path / "source"
    shutil.copytree(FIXTURES / "model", directory)
    return write(directory, SITUATIONS[request.param]["files"])


def write(directory: Path, files: dict[str, Any]) -> OpenedSource:
    for name, content in files.items():
        path = directory / name
        if isinstance(content, dict) and "base64" in content:
            path.write_bytes(base64.b64decode(content["base64"]))
            continue
        if name == "config.json":
            content = json.loads(path.read_text()) | content
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    opened = open_checkpoint(directory)
    if "file.gguf" in files:  # it has no weights
        tokenizer = open_gguf(directory / "file.gguf").tokenizer
        opened = dataclasses.replace(
            opened, source=dataclasses.replace(opened.source, tokenizer=tokenizer)
        )
    return opened


def every(*names: str) -> Any:
    chosen = names or tuple(SITUATIONS)
    return pytest.mark.parametrize(
        ("situation", "source"), [(name, name) for name in chosen], indirect=["source"], ids=chosen
    )


@every()
def test_ids_and_greedy_texts(
    situation: str, source: OpenedSource, model: Decoder, tmp_path: Path
) -> None:
    """In place, imported, and as documents are prepared."""
    expected = SITUATIONS[situation]
    found = read_tokenizer(source)
    assert found.tokenizer is not None, found.remarks
    import_checkpoint(source, tmp_path / "imported")
    imported = open_model(tmp_path / "imported").tokenizer()
    imported.identity.require_same(found.tokenizer.identity, "the import", "the source")
    assert imported.stop_tokens == found.tokenizer.stop_tokens
    texts = [record["prompt"] for record in expected["prompts"]]
    ids = [record["ids"] for record in expected["prompts"]]
    for tokenizer in (found.tokenizer, imported):
        assert encode_prompts(tokenizer, texts) == ids
        for marked in expected["marked"]:
            encoded = tokenizer.encode(marked["prompt"], special_tokens=True)
            assert encoded.tolist() == marked["ids"]
    if "file.gguf" not in expected["files"]:
        assert found.tokenizer.vocabulary == expected["vocabulary"]
        around = dict(zip(texts, ids, strict=True))[""]
        if situation == "two tokens":
            with pytest.raises(InputError, match=r"2 tokens before a text \(\[gMASK\], <sop>\)"):
                load_tokenizer(str(source.source.path))
        else:
            prepared = load_tokenizer(str(source.source.path))
            assert prepared.start_of_document == (around[0] if around else None)
    records = [record for record in expected["prompts"] if "tokens" in record]
    if records:
        made = continue_texts(
            model,
            imported,
            [record["prompt"] for record in records],
            max_new_tokens=NEW_TOKENS,
            sampling=GREEDY,
        )
        assert made.result.tokens == [record["tokens"] for record in records]
        assert list(made.texts) == [record["text"] for record in records]


CASES = {
    name: SITUATIONS[name]["files"]
    for name in ("none", "template", "pieces", "vocabulary and merges", "by the chat template")
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / "model", tmp_path / "source"))


def test_more_tokens_than_rows(directory: Path, tmp_path: Path) -> None:
    imported = import_checkpoint(write(directory, CASES["pieces"]), tmp_path / "ours")
    (remark,) = imported.remarks()
    assert remark == (
        f"{directory}: the tokenizer has 300 tokens, the model 47: texts with a token beyond are "
        "refused"
    )
    ours = open_model(tmp_path / "ours")
    with pytest.raises(InputError, match="token id 262 is not in a vocabulary of 47"):
        continue_texts(ours.load(), ours.tokenizer(), ["the"], max_new_tokens=1)


@pytest.mark.parametrize(
    ("files", "end"),
    [
        ({"added_tokens.json": {"<|im_end|>": 43}}, 43),
        ({"added_tokens.json": {"<x>": 43, "<y>": 44, "<z>": 45, "<|im_end|>": 46}}, 46),
        ({"added_tokens.json": {str(number): number for number in range(43, 60)}}, None),
        ({"special_tokens_map.json": {"eos_token": "<|im_end|>"}}, 43),
        ({}, 43),
    ],
)
def test_an_end_token_that_only_other_files_know(
    directory: Path, files: dict[str, Any], end: int | None
) -> None:
    config = {"tokenizer_config.json": {"eos_token": "<|im_end|>"}}
    found = read_tokenizer(write(directory, CASES["none"] | config | files))
    assert found.tokenizer is not None
    assert found.tokenizer.end_of_document == end
    lost = [remark for remark in found.remarks if "no row for the end token" in remark]
    assert len(lost) == (end is None)


def test_an_id_that_the_library_does_not_give(directory: Path) -> None:
    files = {"added_tokens.json": {"<x>": 45}, "tokenizer_config.json": {"eos_token": "<x>"}}
    found = read_tokenizer(write(directory, CASES["none"] | files))
    assert found.remarks == (
        f"{directory}: the added token '<x>' has the id 43 to its library, 45 in its file",
    )


def test_another_tokenizer_or_none(directory: Path, tmp_path: Path) -> None:
    files = CASES["none"] | {"generation_config.json": {"eos_token_id": [3, 4]}}
    source = write(directory, files | {"special_tokens_map.json": {"pad_token": "<|endoftext|>"}})
    other = Path(shutil.copytree(FIXTURES / "model", tmp_path / "other"))
    write(other, CASES["template"])
    for chosen, start in ((other, 0), (other / "tokenizer.json", 0)):
        found = read_tokenizer(source, str(chosen))
        assert found.tokenizer is not None
        assert found.tokenizer.start_of_document == start
        assert found.tokenizer.stop_tokens == (3, 4), "the model's, whatever the tokenizer"
        assert "special_tokens_map.json" not in found.files
    none = read_tokenizer(source, "none")
    assert (none.tokenizer, none.remarks) == (None, ())
    assert list(none.files) == ["generation_config.json"]
    with pytest.raises(InputError, match=r"--tokenizer=.*nowhere: no such file or directory"):
        read_tokenizer(source, str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"model: no tokenizer there; tokenizer\.json, "):
        read_tokenizer(source, str(FIXTURES / "model"))
    import_checkpoint(source, tmp_path / "again")
    again = read_tokenizer(write(other, CASES["template"]), str(tmp_path / "again"))
    assert again.tokenizer is not None
    assert again.tokenizer.start_of_document is None
    import_checkpoint(source, tmp_path / "ours", tokenizer="none")
    with pytest.raises(InputError, match="no tokenizer"):
        open_model(tmp_path / "ours").tokenizer()


DAMAGED = {
    "tokenizer.json": b"{",
    "tokenizer_config.json": b"[]",
    "special_tokens_map.json": b'{"eos_token": 3}',
    "added_tokens.json": b'{"<x>": "x"}',
    "generation_config.json": b'{"eos_token_id": "</s>"}',
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_tokenizer_leaves_the_weights(directory: Path, name: str, tmp_path: Path) -> None:
    source = write(directory, CASES["none"])
    (directory / name).write_bytes(DAMAGED[name])
    with pytest.raises(InputError, match=r"source.*\(--tokenizer=none leaves the tokenizer out"):
        import_checkpoint(source, tmp_path / "ours")
    assert import_checkpoint(source, tmp_path / "ours", tokenizer="none").values > 1000


def test_a_tokenizer_that_cannot_be_taken_out_of_its_file_leaves_the_weights(
    directory: Path,
) -> None:
    def broken() -> dict[str, bytes]:
        raise InputError("model.gguf: tokenizer.ggml.tokens has 'a' twice")

    opened = write(directory, CASES["none"])
    other = directory / "tokenizer.json"
    source = dataclasses.replace(
        opened, source=dataclasses.replace(opened.source, tokenizer=broken)
    )
    with pytest.raises(InputError, match="'a' twice"):
        read_tokenizer(source)
    for chosen in ("none", str(other)):
        found = read_tokenizer(source, chosen)
        assert (found.tokenizer is None) == (chosen == "none")
        assert found.remarks[0].startswith("its own tokenizer is left aside: model.gguf")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "has none"),
        ({"tokenizer.model": "IQ== 0\nIg== 1\n"}, "tokenizer.model is no SentencePiece model"),
        (
            CASES["vocabulary and merges"]
            | {"tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer"}},
            "how a RobertaTokenizer splits text is not known",
        ),
    ],
)
def test_a_tokenizer_that_is_not_read(
    directory: Path, tmp_path: Path, files: dict[str, Any], reason: str
) -> None:
    imported = import_checkpoint(write(directory, files), tmp_path / "ours")
    (remark,) = imported.remarks()
    assert remark.startswith("no tokenizer: ")
    assert reason in remark


def test_templates_and_all_other_files_come_along(directory: Path, tmp_path: Path) -> None:
    names = [
        *("chat_template.jinja", "additional_chat_templates/tools.jinja", "chat_template.json"),
        *("tekken.json", "vocab.txt", "tokenizer.model.v3", "qwen.tiktoken"),
    ]
    (directory / "additional_chat_templates").mkdir()
    source = write(directory, CASES["by the chat template"] | dict.fromkeys(names, "{}"))
    (directory / "training_args.bin").write_bytes(b"no tokenizer's")
    import_checkpoint(source, tmp_path / "ours")
    export_checkpoint(prepare_export(tmp_path / "ours", format_named("llama")), tmp_path / "theirs")
    for name in (*names, *CASES["by the chat template"]):
        assert (tmp_path / "theirs" / name).read_bytes() == (directory / name).read_bytes(), name
    assert not list(tmp_path.glob("*s/**/training_args.bin"))


@pytest.mark.parametrize("kind", ["bytes", "trained", "of others", "of others, none"])
def test_another_library_puts_what_a_model_was_trained_with(tmp_path: Path, kind: str) -> None:
    """Exported, a tokenizer puts the start token by itself, and comes back as what it was."""
    other = tmp_path / "other.json"
    other.write_text(json.dumps(CASES["template"]["tokenizer.json"]))
    tokenizer = {
        "bytes": lambda: load_tokenizer("bytes"),
        "trained": lambda: train_tokenizer(iter(["the cat sat on the mat"]), 260),
        "of others": lambda: load_tokenizer(str(other), start="</s>"),
        "of others, none": lambda: load_tokenizer(str(other), start=None),
    }[kind]()
    model = open_model(FIXTURES / "model")
    metadata = Metadata(model.config, tokenizer=dataclasses.asdict(tokenizer.identity))
    save_model(tmp_path / "ours", model.read_all(), metadata, tokenizer=tokenizer.to_json())
    export_checkpoint(prepare_export(tmp_path / "ours", format_named("llama")), tmp_path / "theirs")
    file = tmp_path / "theirs" / "tokenizer.json"
    assert [tokenizers.Tokenizer.from_file(str(file)).encode("cat").ids] == encode_prompts(
        tokenizer, ["cat"]
    )
    again = read_tokenizer(open_checkpoint(tmp_path / "theirs")).tokenizer
    assert again is not None
    assert again.start_of_document == tokenizer.start_of_document
    if kind == "bytes":
        assert again.identity == tokenizer.identity
