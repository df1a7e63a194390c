"""The figures of conversion are measured, and one that is wrong shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from safetensors.numpy import load_file, save_file

from modbrick.errors import InputError
from tools import check_conversion

ROOT = Path(__file__).parents[2]


def measured(fixtures: Path) -> dict:
    flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(fixtures=str(fixtures), json=str(fixtures / "result.json")):
        check_conversion.main([])
    return json.loads((fixtures / "result.json").read_text())


def test_right_and_wrong_figures(tmp_path: Path) -> None:
    name = "moduleformer/gmm_top3_left_padded"
    shutil.copytree(ROOT / "tests/fixtures" / name, tmp_path / name)
    result = measured(tmp_path)[name]
    assert result["logits_relative_error"] <= 1e-5
    assert result["same_experts"]
    assert result["tensors_byte_equal"]
    assert result["config_equal"]
    stored = load_file(tmp_path / name / "expected.safetensors")
    router = "router.transformer.h.1.mlpf.gate.indices"
    stored |= {"logits": stored["logits"] * np.float32(1.01), router: stored[router][::-1].copy()}
    save_file(stored, tmp_path / name / "expected.safetensors")
    result = measured(tmp_path)[name]
    assert result["logits_relative_error"] == pytest.approx(0.01, rel=0.1)
    assert not result["same_experts"]


def test_no_models(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no models"):
        measured(tmp_path)
