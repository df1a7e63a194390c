"""Config files: what they may return, and one line for each thing that can be wrong with them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modbrick.config import NormConfig
from modbrick.config.files import load_config, read_config_file
from modbrick.errors import InputError

NORM = NormConfig("rms", 1e-6, bias=False)
FIELDS = '{"kind": "rms", "epsilon": 1e-6, "bias": False}'
IMPORTS = """
from __future__ import annotations
import dataclasses
from ml_collections import ConfigDict
from modbrick.config import NormConfig, RopeConfig
from modbrick.errors import InputError
"""


def written(path: Path, body: str, signature: str = "") -> str:
    path.write_text(f"{IMPORTS}\ndef get_config({signature}):\n    {body}\n")
    return str(path)


@pytest.mark.parametrize(
    "result", [f"NormConfig(**{FIELDS})", f"ConfigDict({FIELDS})", FIELDS], ids=["r", "c", "m"]
)
def test_a_record_a_config_dict_and_a_mapping_are_read(tmp_path: Path, result: str) -> None:
    place = written(tmp_path / "a.py", f"return {result}")
    assert load_config(NormConfig, place) == NORM


def test_what_stands_after_the_colon_is_given_to_it(tmp_path: Path) -> None:
    body = "return NormConfig(epsilon=float(of.split(':')[1]))"
    place = written(tmp_path / "a b.py", body, "of='x:3'")
    assert load_config(NormConfig, place).epsilon == 3
    assert load_config(NormConfig, place + ":v5p:4").epsilon == 4


def test_a_file_may_define_records_of_its_own(tmp_path: Path) -> None:
    body = "return NormConfig(epsilon=Own().epsilon)\n\n@dataclasses.dataclass\nclass Own:\n"
    place = written(tmp_path / "a.py", body + "    epsilon: float = 2.0")
    assert load_config(NormConfig, place).epsilon == 2


def test_the_home_directory_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "a.py", "return NormConfig()")
    assert load_config(NormConfig, "~/a.py") == NormConfig()


@pytest.mark.parametrize(
    ("body", "signature", "argument", "message"),
    [
        ("return None", "", "", "get_config() returned NoneType, expected NormConfig"),
        ("return 3", "", "", "get_config() returned int, expected NormConfig"),
        (
            "return RopeConfig()",
            "",
            "",
            "get_config() returned RopeConfig, expected NormConfig",
        ),
        ("return NormConfig()", "", ":v5p", "its get_config() takes no argument, got 'v5p'"),
        ("return NormConfig()", "of", "", "its get_config(of) needs an argument: "),
        ("raise InputError('x is 3')", "", "", "a.py: x is 3"),
        ("return NormConfig(epsilon=-1.0)", "", "", "norm epsilon must be positive, got -1"),
        ("return NormConfig(width=3)", "", "", "a.py:9: NormConfig.__init__() got an unexpected"),
        ("return float('a')", "", "", "a.py:9: could not convert string to float: 'a'"),
        ("return {'kind': 'rsm'}", "", "", "a.py: kind: 'rsm' is not one of"),
        ("return (", "", "", "a.py:9: this is no Python: '(' was never closed"),
    ],
)
def test_bad_files_are_refused_in_one_line(
    tmp_path: Path, body: str, signature: str, argument: str, message: str
) -> None:
    place = written(tmp_path / "a.py", body, signature) + argument
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        load_config(NormConfig, place)
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "a.py"))


def test_a_file_without_get_config_and_no_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    with pytest.raises(InputError, match=rf"^{path}: no such config file$"):
        read_config_file(str(path), NormConfig)
    with pytest.raises(InputError, match=rf"^{tmp_path}: no such config file$"):
        read_config_file(str(tmp_path), NormConfig)
    for text in ("width = 3\n", "get_config = 3\n"):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"^{path}: a config file defines get_config\(\)$"):
            read_config_file(str(path), NormConfig)
    text_file = tmp_path / "a.json"
    text_file.write_text('{"model": null}\nand more\n')
    with pytest.raises(InputError, match=rf"^{text_file}:2: this is no Python"):
        read_config_file(str(text_file), NormConfig)


def test_a_defect_of_a_file_stays_one(tmp_path: Path) -> None:
    with pytest.raises(NameError, match="nothing"):
        read_config_file(written(tmp_path / "a.py", "return nothing.there"), NormConfig)
