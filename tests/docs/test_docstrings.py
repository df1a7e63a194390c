"""The examples in docstrings run, in a directory with what they speak of."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import numpy as np
import pytest

import modbrick
from modbrick.checkpoints import Metadata, save_model
from modbrick.config import families
from modbrick.data import ByteTokenizer, DatasetWriter
from modbrick.decoder.functional import functional_decoder
from modbrick.parameters import nest

ROOT = Path(__file__).resolve().parents[2]
THEIR_LLAMA = ROOT / "tests/fixtures/llama/tied_biased_llama3"
TEXT = "the quick brown fox jumps over the lazy dog"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("modbrick", "pallas_kernels")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model `run`, a data set `data`, and a Llama of others."""
    folder = tmp_path_factory.mktemp("house")
    config = families.moduleformer(
        vocabulary=256,
        width=16,
        layers=2,
        heads=1,
        attention_width=16,
        feed_forward_width=32,
        attention_experts=4,
        feed_forward_experts=4,
        router_width=8,
        dtype="float32",
    )
    draw = np.random.default_rng(0)
    parameters = {
        path: 0.1 * draw.standard_normal(leaf.shape, np.float32)
        for path, leaf in functional_decoder(config).table.abstract().items()
    }
    save_model(folder / "run", nest(parameters), Metadata(config))
    tokenizer = ByteTokenizer()
    with DatasetWriter(str(folder / "data")) as writer:
        writer.set_tokenizer(tokenizer)
        ids = np.asarray(tokenizer.encode(TEXT), np.int32)
        for split in ("train", "held_out"):
            writer.add(split, "text", ids, len(TEXT), 1)
        writer.commit(sources={}, source_lines="", arguments={})
    (folder / "their_llama").symlink_to(THEIR_LLAMA)
    return folder


@pytest.fixture(autouse=True)
def _inside(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(house)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert results.attempted > 0
    assert results.failed == 0, "the captured output says which"


@pytest.mark.parametrize("name", sorted(set(modbrick.__all__) - {"__version__"}))
def test_a_public_name_has_an_example(name: str) -> None:
    value = getattr(modbrick, name)
    home = getattr(value, "__module__", None) or value.__name__
    assert ">>> " in (value.__doc__ or ""), f"{name} ({home}) has no example in its docstring"
    assert home in MODULES
