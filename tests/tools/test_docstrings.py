"""Plans in the docstrings of presets."""

from __future__ import annotations

from pathlib import Path

import pytest

from modbrick.parallel import MeshConfig
from tools.docstrings import planned_line, write_plans, write_presets

MESHES = {"v5p:4x4x4": MeshConfig(data=1, fsdp=64), "v5e:4x4": MeshConfig(data=2, fsdp=8)}
PLAN = {"hbm": {"total": 3 * 2**29, "limit": 16 * 2**30}, "time": {"step": 1.234}}
TOO_LARGE = {"hbm": {"total": 20 * 2**30, "limit": 16 * 2**30}}
TEXT = '''"""A preset.

    v5p:4x4x4, anything
    v5e:4x4, old: figures

    a command
"""

MESH = 1
'''


def test_lines_say_what_is_planned_and_what_is_not(tmp_path: Path) -> None:
    path = tmp_path / "preset.py"
    path.write_text(TEXT)
    write_plans(path, MESHES, {"v5p:4x4x4": PLAN})
    expected = TEXT.replace("anything", "fsdp 64: 1.5 of 16.0 GiB, 1.23 s a step").replace(
        "old: figures", "data 2 x fsdp 8: not planned yet"
    )
    assert path.read_text() == expected
    write_plans(path, MESHES, {"v5p:4x4x4": PLAN})
    assert path.read_text() == expected, "written again, it is the same"


def test_what_does_not_fit_has_no_time() -> None:
    line = planned_line("v5e:4x4", MESHES["v5e:4x4"], TOO_LARGE)
    assert line == "    v5e:4x4, data 2 x fsdp 8: 20.0 of 16.0 GiB: does not fit\n"


def test_a_file_without_such_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "preset.py"
    path.write_text("MESH = 1\n")
    with pytest.raises(ValueError, match="0 lines of plans, but 2 machines"):
        write_plans(path, MESHES, {})


def test_machines_are_read_from_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "preset.py"
    mesh = "MeshConfig(data=1, fsdp=64)"
    machines = f"MACHINES = {{'v5p:4x4x4': Machine({mesh})}}"
    imports = (
        "from modbrick.parallel import MeshConfig\nfrom modbrick.training.machines import Machine"
    )
    path.write_text(f'"""A preset.\n\n    v5p:4x4x4, old\n"""\n{imports}\n{machines}\n')
    write_presets(tmp_path, {"preset": {"v5p:4x4x4": PLAN}})
    assert "    v5p:4x4x4, fsdp 64: 1.5 of 16.0 GiB, 1.23 s a step\n" in path.read_text()
