"""Programs that start prepared are as those that Python starts."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests import programs
from tests.programs import Program

TELL = """
import json, os, sys
import jax

print(json.dumps([sys.argv, os.getcwd(), os.environ["NUMBER"], jax.device_count()]))
print("and more", file=sys.stderr)
sys.exit(7)
"""


def test_arguments_environment_streams_and_status_are_those_asked_for(tmp_path: Path) -> None:
    environment = {"NUMBER": "3", "JAX_NUM_CPU_DEVICES": "5"}
    done = programs.run(["-c", TELL, "é", 1], cwd=tmp_path, environment=environment)
    assert done.stdout == f'[["-c", "\\u00e9", "1"], "{tmp_path}", "3", 5]\n'
    assert (done.stderr, done.returncode) == ("and more\n", 7)


def test_a_script_ends_as_python_ends_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import neighbour\nraise RuntimeError(neighbour.__file__)\n")
    (tmp_path / "neighbour.py").write_text("")
    done = programs.run([script])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"RuntimeError: {tmp_path / 'neighbour.py'}"


def test_programs_run_beside_each_other_and_get_signals() -> None:
    waiting = [Program(["-c", "import time; time.sleep(100)"]) for _ in range(2)]
    assert [program.poll() for program in waiting] == [None, None]
    assert programs.run(["-c", "pass"]).returncode == 0
    waiting[0].send_signal(signal.SIGTERM)
    waiting[1].kill()
    assert [program.wait() for program in waiting] == [-signal.SIGTERM, -signal.SIGKILL]


def test_a_program_that_takes_too_long_is_ended() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        programs.run(["-c", "import time; time.sleep(100)"], timeout=0.1)


def test_processor_time_of_programs_is_counted() -> None:
    programs.run(["-c", "pass"])
    before = programs.processor_seconds()
    programs.run(["-c", "import time\nwhile time.process_time() < 0.3: pass"])
    assert programs.processor_seconds() - before >= 0.3
