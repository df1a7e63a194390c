"""`python -m modbrick summary` and `shardings`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from absl.testing import flagsaver

from modbrick.__main__ import command, model_config
from modbrick.analysis.summary import summarise
from modbrick.checkpoints import Metadata, save_model
from modbrick.decoder.functional import functional_decoder, parameter_table
from modbrick.errors import InputError

ROOT = Path(__file__).parents[2]
flags.FLAGS.mark_as_parsed()
QUICKSTART = ROOT / "configs" / "quickstart.py"
TINY = ROOT / "tests" / "configs" / "tiny.py"


def test_summary_of_a_config_counts_its_parameters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    assert command(["modbrick", "summary", str(QUICKSTART)]) == 0
    shown = capsys.readouterr().out
    summary = summarise(model_config(str(QUICKSTART)))
    assert f"{summary.total:,} parameters" in shown
    assert f"{summary.active:,} active" in shown
    for group in summary.groups:
        assert group.pattern in shown


def test_a_checkpoint_tells_the_config_it_was_made_with(tmp_path: Path) -> None:
    config = model_config(str(TINY))
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), functional_decoder(config).table.abstract()
    )
    save_model(tmp_path / "model", zeros, Metadata(config))
    assert model_config(str(tmp_path / "model")) == config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"usage: python -m modbrick summary\|shardings CONFIG\.py\|CHECKPOINT$"),
        (["summary"], r"usage: python -m modbrick summary\|shardings CONFIG\.py\|CHECKPOINT$"),
        (["sumary", "x.py"], r"usage: .* \(did you mean 'summary'\?\)"),
        (["summary", "a.py", "b.py"], "usage: "),
        (["summary", "missing.py"], "missing.py: no such config file"),
        (["summary", "nowhere"], "nowhere"),
        (["summary", "nothing.py"], r"nothing\.py: a config file defines get_config\(\)"),
        (["summary", "data.py"], r"data\.py: its config has no section model"),
        (["summary", "wrong.py"], r"model\.widht: unknown key; did you mean 'width'\?"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    head = "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict("
    Path("nothing.py").write_text("width = 3\n")
    Path("data.py").write_text(head + "{'data': {}})\n")
    Path("wrong.py").write_text(head + "{'model': {'widht': 3}})\n")
    with pytest.raises(InputError, match=message) as refused:
        command(["modbrick", *arguments])
    assert "\n" not in str(refused.value)


def test_shardings_of_a_config_by_a_mesh(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with flagsaver.flagsaver(mesh="expert=4,fsdp=2", devices=None):
        assert command(["modbrick", "shardings", str(TINY)]) == 0
    shown = capsys.readouterr().out
    assert "8 devices (fsdp 2 x expert 4)" in shown
    for info in parameter_table(model_config(str(TINY))):
        assert info.address() in shown
    assert "expert/expert, width/fsdp, hidden" in shown
    assert "expert/expert, hidden/fsdp, width" in shown


@pytest.mark.parametrize(
    ("mesh", "devices", "message"),
    [
        ("fsdp", None, "--mesh=fsdp: 'fsdp' is no NAME=SIZE"),
        ("fsdb=2", None, "mesh.fsdb: unknown key; did you mean 'fsdp'?"),
        ("fsdp=2", 3, "a mesh of fsdp 2 is 2 devices, but there are 3: "),
        ("expert=3", None, "expert 4 of layer.*.attention.expert.*.output.weight does not divide"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_line(mesh: str, devices: int | None, message: str) -> None:
    with (
        flagsaver.flagsaver(mesh=mesh, devices=devices),
        pytest.raises(InputError, match=re.escape(message)) as refused,
    ):
        command(["modbrick", "shardings", str(TINY)])
    assert "\n" not in str(refused.value)


def test_a_bad_path_ends_with_status_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "modbrick", "summary", str(tmp_path / "missing.py")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"error: {tmp_path / 'missing.py'}: no such config file\n"
