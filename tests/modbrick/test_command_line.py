import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from absl import flags
from ml_collections import config_flags
from modbrick.command_line import run
from modbrick.errors import InputError

KIND = flags.DEFINE_string("kind", "none", "What happens.")
CONFIG = config_flags.DEFINE_config_file("config", None, "A config.")

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
        "def get_config():\n    return ConfigDict({'width': 8, 'name': 'x'})\n"
    )

    (tmp_path / "wrong.py").write_text(
        "from modbrick.errors import InputError\n"
        "def get_config():\n    raise InputError('top_k must be at most 4, got 5')\n"
    )
    (tmp_path / "defect.py").write_text("def get_config():\n    return nothing.there\n")

    def call(*arguments, positional=None):
        path = tmp_path / "script.py"
        path.write_text(SCRIPT.format(root=str(ROOT), positional=positional))
        return subprocess.run(
            [sys.executable, str(path), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--knd=x"], "--knd: unknown flag; did you mean --kind?"),
        (["--kind=input"], "model.width: is 3, must be even"),
        (["x"], "unexpected argument 'x'"),
        (["--config=config.py", "--config.widht=3"], "did you mean 'width'"),
        (["--config=config.py", "--config.width=wide"], "wide"),
        (["--config=missing.py"], "--config: [Errno 2] No such file or directory: 'missing.py'"),
        (["--config=missing.py", "--config.width=3"], "No such file or directory: 'missing.py'"),
        (["--config=wrong.py"], "flag --config=wrong.py: top_k must be at most 4, got 5"),
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
