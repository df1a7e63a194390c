import re
from pathlib import Path

import pytest
from absl import flags

from modbrick.command_line import (
    check_alone,
    check_known,
    check_output,
    print_table,
    progress_bars,
    read_texts,
    write_output,
)
from modbrick.errors import InputError
from tests import programs

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import dataclasses
from absl import flags
from modbrick.command_line import run
from modbrick.config.flag import DEFINE_config
from modbrick.errors import InputError

@dataclasses.dataclass(frozen=True)
class Config:
    width: int
    loud: bool = False

KIND = flags.DEFINE_string("kind", "none", "What happens.")
CONFIG = DEFINE_config("config", Config)

def main(argv):
    if KIND.value == "input":
        raise InputError("model.width: is 3,\\nmust be even")
    if KIND.value == "defect":
        raise RuntimeError("a defect")
    if KIND.value == "interrupt":
        raise KeyboardInterrupt
    if KIND.value == "remote":
        raise ImportError("install it") from ModuleNotFoundError(name="gcsfs")
    print(KIND.value, argv[1:], CONFIG.value.width if CONFIG.value else None)
    return 75 if KIND.value == "early" else None

run(main, positional={positional!r})
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n    return ConfigDict({'width': 8})\n"
    )

    (tmp_path / "empty.py").write_text("width = 3\n")
    (tmp_path / "wrong.py").write_text(
        "from modbrick.errors import InputError\n"
        "def get_config():\n    raise InputError('top_k must be at most 4, got 5')\n"
    )
    (tmp_path / "defect.py").write_text("def get_config():\n    return nothing.there\n")

    def call(*arguments, positional=None):
        path = tmp_path / "script.py"
        path.write_text(SCRIPT.format(root=str(ROOT), positional=positional))
        return programs.run([path, *arguments], cwd=tmp_path)

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--knd=x"], "--knd: unknown flag; did you mean --kind?"),
        (["--kind=input"], "model.width: is 3, must be even"),
        (["x"], "unexpected argument 'x'"),
        (["--config=config.py", "--config.widht=3"], "did you mean 'width'"),
        (["--config=config.py", "--config.width=wide"], "width: expected int, got 'wide'"),
        (["--config=config.py", "--config.width.of=1"], "width.of: unknown config key"),
        (["--config=config.py", "--config.loud.very=1"], "very does not exist"),
        (["--config=config.py", "--config.loud=much"], "--config.loud=much: "),
        (["--config=config.py:large"], "config.py: its get_config() takes no argument, got 'large"),
        (["--config=empty.py"], "error: empty.py: a config file defines get_config()"),
        (["--config=missing.py"], "error: missing.py: no such config file"),
        (["--config=missing.py", "--config.width=3"], "error: missing.py: no such config file"),
        (["--config=wrong.py"], "error: wrong.py: top_k must be at most 4, got 5"),
    ],
)
def test_bad_input_is_one_line_and_status_2(script, arguments, message):
    done = script(*arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1


def test_what_main_returns_is_the_status(script):
    done = script("--kind=early", "--config=config.py", "--config.width=3")
    assert (done.returncode, done.stdout) == (75, "early [] 3\n")
    assert script().returncode == 0


def test_positional_arguments_and_flags_mix(script):
    done = script("a", "--kind", "x", "b", positional="PATH")
    assert done.stdout == "x ['a', 'b'] None\n"


def test_an_interrupt_is_one_line(script):
    done = script("--kind=interrupt")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("argument", ["--kind=defect", "--config=defect.py"])
def test_a_defect_keeps_its_traceback(script, argument):
    done = script(argument)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_addresses_that_need_more_packages_are_answered_with_them(script):
    call = script("--kind=remote")
    assert call.returncode == 2
    assert call.stderr.count("\n") == 1
    assert "modbrick[gcs]" in call.stderr


def output(value):
    values = flags.FlagValues()
    flag = flags.DEFINE_string("json", value, "A file.", flag_values=values)
    values.mark_as_parsed()
    return flag


def test_a_file_that_can_be_written_passes(tmp_path):
    check_output(output(None))
    check_output(output("here.json"))
    check_output(output(str(tmp_path / "new.PNG")), endings=(".png",))
    (tmp_path / "old").write_text("kept")
    check_output(output(str(tmp_path / "old")), remote=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "kept"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "name a file, got an empty name"),
        ("{}", "is a directory; name a file"),
        ("{}/nowhere/it.png", "there is no directory {}/nowhere"),
        ("{}/it.foo", "must end in .png or .svg, got {}/it.foo"),
        ("gs://bucket/it.png", "must be a file of this machine, got gs://bucket/it.png"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(tmp_path, name, message):
    message = re.escape("--json: ") + ".*" + re.escape(message.format(tmp_path))
    endings = (".png", ".svg") if name.endswith("foo") else ()
    with pytest.raises(InputError, match=message):
        check_output(output(name.format(tmp_path)), endings=endings)


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(InputError, match=f"--json: {tmp_path} must not be written"):
        check_output(output(str(tmp_path / "new")))


def test_a_text_is_written_if_a_file_is_named(tmp_path):
    write_output(output(None), "text")
    assert list(tmp_path.iterdir()) == []
    write_output(output(str(tmp_path / "it")), "text")
    assert (tmp_path / "it").read_text() == "text\n"


def test_texts_are_read_from_the_files_that_are_named(tmp_path, monkeypatch):
    values = flags.FlagValues()
    flag = flags.DEFINE_multi_string("prompt_file", [], "Files.", flag_values=values)
    (tmp_path / "a").write_text("Grüße", encoding="utf-8")
    (tmp_path / "b").write_bytes(b"\xe4")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfdef f")
    monkeypatch.setenv("HOME", str(tmp_path))
    values(["program", f"--prompt_file={tmp_path / 'a'}", "--prompt_file=~/marked"])
    assert read_texts(flag) == ["Grüße", "def f"]
    values(["program", f"--prompt_file={tmp_path / 'b'}"])
    with pytest.raises(InputError, match=f"^--prompt_file {tmp_path}/b cannot be read as UTF-8"):
        read_texts(flag)


def test_a_flag_that_means_nothing_beside_another_is_refused():
    values = flags.FlagValues()
    greedy = flags.DEFINE_bool("greedy", False, "The likeliest.", flag_values=values)
    top = flags.DEFINE_integer("top_k", 5, "So many.", flag_values=values)
    values(["program", "--top_k=3"])
    check_alone(greedy, top, because="draws nothing")
    values(["program", "--greedy", "--top_k=3"])
    with pytest.raises(InputError, match=r"^--greedy draws nothing: leave out --top_k, or"):
        check_alone(greedy, top, because="draws nothing")


def test_what_is_not_known_is_named_with_the_nearest():
    check_known(output(None), ["forward"])
    check_known(output("forward"), ["forward"])
    with pytest.raises(InputError, match=r"^--json: unknown case 'froward'; .*'forward'"):
        check_known(output("froward"), ["forward", "backward"], "case")
    values = flags.FlagValues()
    several = flags.DEFINE_list("parts", ["a", "c"], "Parts.", flag_values=values)
    values.mark_as_parsed()
    with pytest.raises(InputError, match=r"^--parts: unknown value 'c'; known: a, b"):
        check_known(several, ["a", "b"])


def test_tables_go_to_standard_output_and_bars_do_not(capsys):
    with progress_bars() as bar:
        advance = bar("compiling", 2)
        advance()
        advance()
    print_table("times", ["kernel", "seconds"], [("matmul", "1.5")])
    printed = capsys.readouterr()
    assert "compiling" in printed.err
    assert "2/2" in printed.err
    assert "compiling" not in printed.out
    for text in ("times", "kernel", "matmul", "1.5"):
        assert text in printed.out


def test_every_script_checks_the_files_that_it_writes():
    checked = 0
    for path in sorted([*(ROOT / "scripts").glob("*.py"), *(ROOT / "tools").glob("*.py")]):
        text = path.read_text()
        for name in re.findall(r'(\w+) = flags\.DEFINE_string\(\s*"(?:json|picture)"', text):
            assert re.search(rf"check_output\({name}\b", text), f"{path.name}: {name}"
            checked += 1
    assert checked >= 10
