"""An imported checkpoint is one of modbrick, and bad input gets one line."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modbrick.addresses import flatten
from modbrick.checkpoints import describe, load_parameters, tokenizer_file
from modbrick.convert import open_checkpoint
from modbrick.data import load_tokenizer
from modbrick.errors import InputError

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests/fixtures/moduleformer"


SCRIPT = ROOT / "scripts" / "convert_checkpoint.py"


def main(*arguments: object) -> None:
    """Runs the script's `main` in this process."""
    spec = importlib.util.spec_from_file_location("convert_checkpoint", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(SCRIPT), *map(str, arguments)])


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_import_keeps_the_model_and_every_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = FIXTURES / "multihead_padded"
    main("import", source, tmp_path / "out")
    report = last_line(capsys)
    checkpoint = open_checkpoint(source)
    config, objective = checkpoint.model, checkpoint.translation.objective
    assert report["objective"] == objective == {"switch": 0.02, "router_z": pytest.approx(0.002)}
    found, description = load_parameters(tmp_path / "out")
    assert description.metadata.model == config
    assert description.metadata.extra == {"imported": "moduleformer", "objective": objective}
    wanted = {
        info.path: checkpoint.read(info.path) for info in checkpoint.correspondence.parameters
    }
    assert report["parameters"] == sum(value.size for value in wanted.values())
    assert flatten(found).keys() == wanted.keys()
    for path, value in flatten(found).items():
        assert np.array_equal(value, wanted[path]), path
    with pytest.raises(InputError, match="out"):
        main("import", source, tmp_path / "out")


def test_a_tokenizer_comes_along_if_it_fits(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(FIXTURES / "molm_like", source)
    tokenizer = load_tokenizer("byte")
    (source / "tokenizer.json").write_text(tokenizer.to_json())
    main("import", source, tmp_path / "out")
    kept = load_tokenizer(
        str(tokenizer_file(tmp_path / "out")),
        identity=describe(tmp_path / "out").metadata.tokenizer,
    )
    assert kept.identity == tokenizer.identity
    small = tmp_path / "small"
    shutil.copytree(FIXTURES / "gmm_top3_left_padded", small)
    shutil.copy(source / "tokenizer.json", small)
    with pytest.raises(InputError, match="the model 61"):
        main("import", small, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("arguments", [(), ("import", "a"), ("export", "a", "b")])
def test_arguments(arguments: tuple[str, ...]) -> None:
    with pytest.raises(
        InputError, match=r"^expected: convert_checkpoint\.py import SOURCE TARGET$"
    ):
        main(*arguments)


def test_bad_input_gets_one_line_and_status_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "import", str(tmp_path / "nowhere"), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no such directory" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
