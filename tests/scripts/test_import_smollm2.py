"""A real model, from a GGUF file to text, and out again for another library.

It is downloaded once, into the user's cache; `MODBRICK_SMOLLM2` names a file that is there already.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import statistics
import subprocess
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from absl import flags
from flax import nnx
from safetensors.numpy import load_file, save_file

from modbrick import load_model
from modbrick.checkpoints import describe, tokenizer_file
from modbrick.convert.gguf.header import read_gguf
from modbrick.convert.packaged import UnreachableError
from modbrick.data import Tokenizer, load_tokenizer
from modbrick.decoder.decoder import Decoder
from modbrick.inference import GREEDY, generate
from tests import programs

pytestmark = pytest.mark.verify

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "modbrick"
TRANSFORMERS = os.environ.get("MODBRICK_TRANSFORMERS_PYTHON")

ENGLISH = (
    "The history of the bicycle is a story of many small inventions. In the early nineteenth "
    "century a German baron built a machine with two wooden wheels, which the rider pushed along "
    "with his feet on the ground. It was not until the eighteen sixties that pedals were added to "
    "the front wheel, in a workshop in Paris. The new machines were heavy and uncomfortable, and "
    "on the cobbled streets of the time they soon earned the name of boneshakers. Later makers "
    "found that a larger wheel would carry the rider farther with each turn of the pedals, and so "
    "the front wheel grew until it was as tall as a man. Falls from such a height were dangerous, "
    "and in the eighteen eighties the modern form appeared at last: two wheels of equal size, a "
    "chain that drives the rear wheel, and tyres filled with air."
)
PYTHON = inspect.getsource(statistics)[:4000]
LENGTH = 160

KNOWN_IDS = {
    "Hello, we can use": [19556, 28, 392, 416, 722],
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
}
"""As llama.cpp encodes them with this vocabulary."""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = set(flags.FLAGS)
    spec.loader.exec_module(module)
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    return module


def convert(*arguments: object) -> dict:
    done = programs.run([SCRIPTS / "convert_checkpoint.py", *arguments], timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def file() -> Path:
    given = os.environ.get("MODBRICK_SMOLLM2")
    if given:
        return Path(given)
    fetching = script("fetch_smollm2")
    try:
        return fetching.MODEL.fetch(CACHE, timeout=120)
    except UnreachableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def imported(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("smollm2") / "imported"
    report = convert("import", file, directory)
    assert report["format"] == "gguf"
    assert report["parameters"] == 134_515_008
    assert report["layers"] == 30
    assert report["tokenizer"]
    return directory


@pytest.fixture(scope="module")
def tokenizer(imported: Path) -> Tokenizer:
    identity = describe(imported).metadata.tokenizer
    return load_tokenizer(str(tokenizer_file(imported)), identity=identity)


@pytest.fixture(scope="module")
def model(imported: Path) -> Decoder:
    return load_model(imported)


@pytest.fixture(scope="module")
def tokens(tokenizer: Tokenizer) -> np.ndarray:
    return np.stack([tokenizer.encode(text)[:LENGTH] for text in (ENGLISH, PYTHON)])


@pytest.fixture(scope="module")
def logits(model: Decoder, tokens: np.ndarray) -> np.ndarray:
    graph, parameters = nnx.split(model)
    run = jax.jit(lambda parameters, tokens: nnx.merge(graph, parameters)(tokens).logits)
    return np.asarray(run(parameters, tokens))


def test_ids_are_those_of_llama_cpp(tokenizer: Tokenizer) -> None:
    for text, ids in KNOWN_IDS.items():
        assert tokenizer.encode(text).tolist() == ids
        assert tokenizer.decode(ids) == text


def test_perplexity_is_that_of_a_trained_model(tokens: np.ndarray, logits: np.ndarray) -> None:
    """Measured: 27.9 for the English text and 8.1 for the Python source, without any context."""
    scores = jax.nn.log_softmax(logits[:, :-1])
    found = np.take_along_axis(np.asarray(scores), tokens[:, 1:, None], axis=-1)
    english, python = np.exp(-found.mean(axis=(1, 2)))
    assert 10 < english < 40
    assert 2 < python < 20


@pytest.mark.parametrize(
    ("prompt", "continuation"),
    [("The capital of France is", " Paris."), ("def add(a, b):\n    return", " a + b")],
)
def test_greedy_completions(
    model: Decoder, tokenizer: Tokenizer, prompt: str, continuation: str
) -> None:
    ids = tokenizer.encode(prompt).tolist()
    found = generate(model, [ids], max_new_tokens=4, sampling=GREEDY)
    assert tokenizer.decode(found.tokens[0]).startswith(continuation)


def test_exported_for_transformers(
    file: Path, imported: Path, tokens: np.ndarray, logits: np.ndarray, tmp_path: Path
) -> None:
    exported = tmp_path / "exported"
    convert("export", imported, exported, "--format=llama")
    config = json.loads((exported / "config.json").read_text())
    assert config["rope_theta"] == 100_000.0
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"]
    weights, stored = load_file(exported / "model.safetensors"), read_gguf(file).tensors
    assert len(weights) == len(stored)
    plain = {"self_attn.v_proj": "attn_v", "mlp.down_proj": "ffn_down", "mlp.up_proj": "ffn_up"}
    for theirs, ours in plain.items():
        found = weights[f"model.layers.29.{theirs}.weight"]
        assert found.tobytes() == stored[f"blk.29.{ours}.weight"].read().tobytes()
    for theirs, ours, heads in (("q_proj", "attn_q", 9), ("k_proj", "attn_k", 3)):
        rows = stored[f"blk.7.{ours}.weight"].read().reshape(heads, 32, 2, 576)
        found = weights[f"model.layers.7.self_attn.{theirs}.weight"].reshape(heads, 2, 32, 576)
        for half in range(2):  # rows 2i and 2i + 1 of a head become i and i + 32
            assert np.array_equal(found[:, half], rows[:, :, half])
    if TRANSFORMERS is not None:
        compare_with_transformers(exported, tokens, logits, tmp_path)


def compare_with_transformers(
    exported: Path, tokens: np.ndarray, logits: np.ndarray, directory: Path
) -> None:
    """Where MODBRICK_TRANSFORMERS_PYTHON names a Python that has torch and transformers."""
    inputs, result = directory / "inputs.safetensors", directory / "result.safetensors"
    ids = tokens.astype(np.int64)
    save_file({"input_ids": ids, "attention_mask": np.ones_like(ids)}, inputs)
    command = ROOT / "tests" / "fixtures" / "make_transformers_fixtures.py"
    subprocess.run(
        list(map(str, [TRANSFORMERS, command, "evaluate", exported, inputs, result])),
        check=True,
        timeout=600,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    wanted = load_file(result)["logits"]
    assert np.linalg.norm(logits - wanted) <= 1e-5 * np.linalg.norm(wanted)
    assert np.array_equal(logits.argmax(-1), wanted.argmax(-1))
