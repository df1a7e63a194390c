"""The script as a user runs it: in, out again, and one line for bad input."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from safetensors.numpy import load_file, save_file

from modbrick import load_parameters
from modbrick.checkpoints import describe, tokenizer_file
from modbrick.convert import open_checkpoint
from modbrick.data import load_tokenizer
from modbrick.errors import InputError

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests/fixtures/moduleformer"
SCRIPT = ROOT / "scripts" / "convert_checkpoint.py"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("convert_checkpoint", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = set(flags.FLAGS)
    spec.loader.exec_module(module)
    flags.FLAGS.mark_as_parsed()
    yield module
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


@pytest.fixture
def main(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the script's `main` in this process; returns the object in the last line."""

    def run(*arguments: object, **settings: object) -> dict[str, Any]:
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with flagsaver.flagsaver(**settings):
                script.main([str(SCRIPT), *map(str, arguments)])
        finally:
            signal.signal(signal.SIGTERM, handler)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


def test_import_keeps_the_model_and_every_value(tmp_path: Path, main: Any) -> None:
    source = FIXTURES / "multihead_padded"
    report = main("import", source, tmp_path / "out")
    checkpoint = open_checkpoint(source)
    config, objective = checkpoint.model, checkpoint.translation.objective
    assert report["objective"] == objective == {"switch": 0.02, "router_z": pytest.approx(0.002)}
    found, description = load_parameters(tmp_path / "out"), describe(tmp_path / "out")
    assert description.metadata.model == config
    assert description.metadata.extra["imported"] == "moduleformer"
    assert description.metadata.extra["objective"] == objective
    wanted = {
        info.path: checkpoint.read(info.path) for info in checkpoint.correspondence.parameters
    }
    assert report["parameters"] == sum(value.size for value in wanted.values())
    assert found.keys() == wanted.keys()
    for path, value in found.items():
        assert np.array_equal(value, wanted[path]), path
    with pytest.raises(InputError, match="out holds something"):
        main("import", source, tmp_path / "out")


def test_out_again(tmp_path: Path, main: Any) -> None:
    source = FIXTURES / "molm_like"
    main("import", source, tmp_path / "ours")
    report = main(
        *("export", tmp_path / "ours", tmp_path / "out"),
        format="moduleformer",
        max_shard_size="0.5MB",
    )
    assert report["format"] == "moduleformer"
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert report["files"] == len(shards) > 1
    assert all(sum(v.nbytes for v in load_file(s).values()) <= 500_000 for s in shards)
    written, before = open_checkpoint(tmp_path / "out"), open_checkpoint(source)
    assert written.tensors.keys() == before.tensors.keys()
    for name, tensor in before.tensors.items():
        assert written.tensors[name].read().tobytes() == tensor.read().tobytes(), name
    with pytest.raises(InputError, match="out holds something"):
        main("export", tmp_path / "ours", tmp_path / "out", format="moduleformer")
    with pytest.raises(InputError, match=r"no format 'moduleforme' .*did you mean 'moduleformer'"):
        main("export", tmp_path / "ours", tmp_path / "other", format="moduleforme")
    with pytest.raises(InputError, match="max_shard_size=5 bananas"):
        main(
            *("export", tmp_path / "ours", tmp_path / "other"),
            format="moduleformer",
            max_shard_size="5 bananas",
        )


def test_another_dtype(tmp_path: Path, main: Any) -> None:
    main("import", FIXTURES / "multihead_padded", tmp_path / "ours", dtype="bfloat16")
    assert {leaf.dtype for leaf in describe(tmp_path / "ours").parameters.values()} == {"bfloat16"}
    main("export", tmp_path / "ours", tmp_path / "out", format="moduleformer", dtype="float16")
    written = open_checkpoint(tmp_path / "out")
    assert {tensor.dtype for tensor in written.tensors.values()} == {np.dtype(np.float16)}
    assert written.source.config["torch_dtype"] == "float16"


def test_a_tokenizer_comes_along(tmp_path: Path, main: Any) -> None:
    source = tmp_path / "source"
    shutil.copytree(FIXTURES / "molm_like", source)
    tokenizer = load_tokenizer("byte")
    (source / "tokenizer.json").write_text(tokenizer.to_json())
    (source / "special_tokens_map.json").write_text('{"eos_token": "<|end_of_document|>"}')
    main("import", source, tmp_path / "out")
    kept = load_tokenizer(
        str(tokenizer_file(tmp_path / "out")),
        identity=describe(tmp_path / "out").metadata.tokenizer,
    )
    assert kept.identity == tokenizer.identity
    main("export", tmp_path / "out", tmp_path / "back", format="moduleformer")
    for name in ("tokenizer.json", "special_tokens_map.json"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()
    assert (tmp_path / "back" / "tokenizer_config.json").exists()
    small = tmp_path / "small"
    shutil.copytree(FIXTURES / "gmm_top3_left_padded", small)
    shutil.copy(source / "tokenizer.json", small)
    assert main("import", small, tmp_path / "other")["tokenizer"]
    assert describe(tmp_path / "other").metadata.tokenizer["vocabulary"] == 257
    assert not main("import", small, tmp_path / "bare", tokenizer="none")["tokenizer"]
    assert describe(tmp_path / "bare").metadata.tokenizer == {}
    assert main("import", small, tmp_path / "again", tokenizer=str(source))["tokenizer"]
    assert (tmp_path / "again/tokenizer/special_tokens_map.json").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(tmp_path: Path, main: Any, value: float) -> None:
    source = tmp_path / "source"
    shutil.copytree(FIXTURES / "multihead_padded", source)
    stored = load_file(source / "model.safetensors")
    stored["transformer.h.1.mlpf.experts.weight"][2, 3, 4:6] = value
    save_file(stored, source / "model.safetensors")
    with pytest.raises(InputError, match=r"2 in transformer\.h\.1\.mlpf\.experts\.weight"):
        main("import", source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
    main("import", source, tmp_path / "out", allow_not_finite=True)
    main("export", tmp_path / "out", tmp_path / "back", format="moduleformer")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() <= stored.keys()  # constant buffers are left out
    assert all(back[name].tobytes() == stored[name].tobytes() for name in back)


@pytest.mark.parametrize("arguments", [(), ("import", "a"), ("convert", "a", "b")])
def test_arguments(main: Any, arguments: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"^expected: convert_checkpoint\.py import SOURCE TARGET"):
        main(*arguments)


def command(*arguments: object) -> dict[str, Any]:
    return {
        "args": [sys.executable, str(SCRIPT), *map(str, arguments)],
        "env": {**os.environ, "PYTHONPATH": str(ROOT)},
        "text": True,
    }


def test_bad_input_gets_one_line_and_status_2(tmp_path: Path) -> None:
    done = subprocess.run(
        **command("import", tmp_path / "nowhere", tmp_path / "out"),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no such directory" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_interrupted_the_target_is_left_as_it_was(
    tmp_path: Path, main: Any, number: signal.Signals
) -> None:
    # Large enough that it takes a while.
    source = tmp_path / "source"
    shutil.copytree(FIXTURES / "multihead_padded", source)
    config = json.loads((source / "config.json").read_text()) | {"vocab_size": 200_000}
    (source / "config.json").write_text(json.dumps(config))
    stored = load_file(source / "model.safetensors")
    large = np.zeros((200_000, 40), np.float32)
    save_file(
        stored | {"transformer.wte.weight": large, "lm_head.weight": large},
        source / "model.safetensors",
    )
    (tmp_path / "above").mkdir()
    target = tmp_path / "above" / "out"
    with subprocess.Popen(**command("import", source, target), stderr=subprocess.DEVNULL) as child:
        limit = time.monotonic() + 120
        while time.monotonic() < limit and not any((tmp_path / "above").glob(".out.*/*/*/*/d/*")):
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(number)
        child.wait(60)
    assert child.returncode != 0
    assert not target.exists()
    left = list((tmp_path / "above").iterdir())
    assert len(left) == (1 if number == signal.SIGKILL else 0)
    if left:  # what a killed process could not remove goes with the next attempt
        main("import", FIXTURES / "multihead_padded", target)
        assert [path.name for path in (tmp_path / "above").iterdir()] == ["out"]
