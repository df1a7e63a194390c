"""Launch files: what they pass exists, and every exit status has the answer that it should.

Neither TPUs, nor Kubernetes, nor Slurm are here: their commands are played by shell scripts.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import signal
import string
import subprocess
import textwrap
import time
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from modbrick.command_line import BAD_INPUT
from modbrick.training.preemption import EXIT_PREEMPTED
from modbrick.training.run_config import RunConfig

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "scripts" / "launch"
SHELL = sorted(LAUNCH.glob("*.sh"))
STARTING = [LAUNCH / name for name in ("tpu_vm.sh", "slurm_gpu.sh", "tpu_jobset.yaml")]
VALUES = {"SLICES": "2", "VMS": "16", "CHIPS": "4", "NAME": "molm"}


def jobset() -> dict[str, Any]:
    """The manifest, with values for its variables."""
    text = (LAUNCH / "tpu_jobset.yaml").read_text()
    names = set(re.findall(r"\$\{(\w+)\}", text))
    filled = string.Template(text).substitute({n: VALUES.get(n, f"gs://{n}") for n in names})
    loaded = yaml.safe_load(filled)
    assert isinstance(loaded, dict)
    return loaded


def train_command(path: Path) -> str:
    """Arguments that a launch file passes to scripts/train.py."""
    if path.suffix == ".yaml":
        (job,) = jobset()["spec"]["replicatedJobs"]
        (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
        whole = " ".join(container["command"])
    else:
        whole = re.sub(r"\\+\n", " ", path.read_text())
    (command,) = re.findall(r"python scripts/train\.py(.*)", whole)
    return str(command)


def exists(flag: str) -> bool:
    """Returns whether train.py has a flag, or its config a key."""
    name, *keys = flag.split(".")
    files = (ROOT / "scripts/train.py", ROOT / "modbrick/parallel/process_flags.py")
    defined = {
        ast.literal_eval(node.args[0])
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2][:6] == "DEFINE"
    }
    kinds: tuple[Any, ...] = (RunConfig,)
    for key in keys:
        hints = [typing.get_type_hints(kind) for kind in kinds if dataclasses.is_dataclass(kind)]
        found = [of_kind[key] for of_kind in hints if key in of_kind]
        if not found:
            return False
        kinds = tuple(kind for hint in found for kind in typing.get_args(hint) or (hint,))
    return name in defined


def test_flags_are_recognised() -> None:
    assert exists("workdir")
    assert exists("config.data.path")
    assert not exists("workdirr")
    assert not exists("config.data.pathh")


@pytest.mark.parametrize("path", STARTING, ids=lambda path: path.name)
def test_every_flag_exists(path: Path) -> None:
    flags = re.findall(r"--([\w.]+)", train_command(path))
    assert {"config", "config.data.path", "workdir"} <= set(flags)
    assert [flag for flag in flags if not exists(flag)] == []


def test_the_guide_names_what_is_there() -> None:
    text = (ROOT / "docs" / "pods.md").read_text()
    files = set(re.findall(r"(?:scripts|configs|docs)/[\w/]+\.\w+", text))
    assert {str(path.relative_to(ROOT)) for path in STARTING} <= files
    assert [name for name in files if not (ROOT / name).is_file()] == []
    for flag in re.findall(r"--(config\.[\w.]+|\w+_\w+|process|processes|coordinator)\b", text):
        assert exists(flag), flag


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shell_files_parse_and_explain_themselves(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert len(lines[1]) > 20
    assert lines[1].startswith("# ")
    assert os.access(path, os.X_OK)


@pytest.mark.parametrize("path", STARTING, ids=lambda path: path.name)
def test_every_variable_is_explained(path: Path) -> None:
    text = path.read_text()
    comment = text[: re.search(r"(?m)^(?!#)", text).start()]  # type: ignore[union-attr]
    code = re.sub(r"(?m)^ *#.*", "", text)
    outside = set(re.findall(r"\$\{?([A-Z_]+)\b", code)) - set(re.findall(r"([A-Z_]+)=", code))
    assert outside
    unknown = {
        name for name in outside - {"SLURM_JOB_ID"} if not re.search(rf"\b{name}\b", comment)
    }
    assert not unknown


def test_exit_statuses_are_those_of_modbrick() -> None:
    for name, of in (("PREEMPTED", EXIT_PREEMPTED), ("BAD_INPUT", BAD_INPUT)):
        for path in SHELL:
            assert all(int(n) == of for n in re.findall(rf"{name}=(\d+)", path.read_text()))
    assert f"PREEMPTED={EXIT_PREEMPTED}" in (LAUNCH / "slurm_gpu.sh").read_text()
    assert f"PREEMPTED={EXIT_PREEMPTED}" in (LAUNCH / "tpu_vm.sh").read_text()


def jobset_action(spec: dict[str, Any], status: int) -> str:
    """Behaviour of a JobSet when a pod exits: the Job's controller and the JobSet's, played."""
    (slices,) = spec["replicatedJobs"]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(slices["template"]["spec"]["podFailurePolicy"]["rules"]):
        if status in rule["onExitCodes"]["values"]:
            assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "In")
            reason = "PodFailurePolicy"
            message = (
                f"Container train for pod default/molm-slice-0-0-x failed with exit code {status} "
                f"matching FailJob rule at index {index}"
            )
            break
    for rule in spec["failurePolicy"]["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        matches = any(re.search(pattern, message) for pattern in patterns)
        if reason in rule["onJobFailureReasons"] and matches:
            return str(rule["action"])
    return "RestartJobSet"


@pytest.mark.parametrize(
    ("status", "action"),
    [
        (EXIT_PREEMPTED, "RestartJobSetAndIgnoreMaxRestarts"),
        (BAD_INPUT, "FailJobSet"),
        (1, "RestartJobSet"),
        (139, "RestartJobSet"),
    ],
)
def test_a_jobset_answers_exit_statuses(status: int, action: str) -> None:
    assert jobset_action(jobset()["spec"], status) == action


def test_a_jobset_is_made_of_slices_that_live_and_die_together() -> None:
    spec = jobset()["spec"]
    assert jobset()["kind"] == "JobSet"
    assert spec["failurePolicy"]["maxRestarts"] >= 10
    for rule in spec["failurePolicy"]["rules"]:  # what JobSet demands of a name
        assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    (slices,) = spec["replicatedJobs"]
    job = slices["template"]["spec"]
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (2, 16, 16)
    assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "Kubernetes demands it of a pod failure policy"
    (container,) = pod["containers"]
    named = {rule["onExitCodes"]["containerName"] for rule in job["podFailurePolicy"]["rules"]}
    assert named == {container["name"]}
    assert (ROOT / container["command"][1]).is_file()


# --------------------------------------------------------------------------------- played commands


def play(directory: Path, **commands: str) -> dict[str, str]:
    """Puts commands into a directory; returns an environment in which they come first."""
    directory.mkdir(exist_ok=True)
    for name, body in commands.items():
        path = directory / name
        path.write_text("#!/usr/bin/env bash\n" + textwrap.dedent(body))
        path.chmod(0o755)
    return {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}


@pytest.mark.parametrize(("status", "again"), [(0, False), (75, True), (2, False), (1, False)])
def test_slurm_queues_a_job_again_that_was_preempted(
    tmp_path: Path, status: int, again: bool
) -> None:
    environment = play(
        tmp_path / "bin",
        srun=f'echo "$@" > {tmp_path}/srun; exit {status}',
        scontrol=f'echo "$@" > {tmp_path}/scontrol',
    )
    environment |= {"CONFIG": "c.py", "DATA": "data", "WORKDIR": "/run", "SLURM_JOB_ID": "17"}
    environment["FLAGS"] = "--config.training.steps=5 --config.logging.every=2"
    done = subprocess.run(["bash", str(LAUNCH / "slurm_gpu.sh")], env=environment, check=False)
    assert done.returncode == (0 if again else status)
    assert (tmp_path / "scontrol").exists() == again
    if again:
        assert (tmp_path / "scontrol").read_text() == "requeue 17\n"
    told = (tmp_path / "srun").read_text().split()
    assert {"--workdir=/run", "--config.training.steps=5", "--config.logging.every=2"} <= set(told)


def test_slurm_asks_for_a_signal_ahead_of_the_time_limit() -> None:
    options = re.findall(
        r"(?m)^#SBATCH --([\w-]+)(?:=(\S+))?$", (LAUNCH / "slurm_gpu.sh").read_text()
    )
    told = dict(options)
    assert "requeue" in told
    name, seconds = told["signal"].split("@")
    assert (name, int(seconds) >= 60) == ("TERM", True)


def test_only_the_first_sigterm_is_passed_on(tmp_path: Path) -> None:
    got, up = tmp_path / "got", tmp_path / "up"
    environment = play(
        tmp_path / "bin",
        saving=f"""
            trap 'echo got >> {got}' TERM
            echo > {up}
            for ((i = 0; i < 10; i++)); do sleep 0.1; done
            exit {EXIT_PREEMPTED}
        """,
    )
    command = ["bash", str(LAUNCH / "one_sigterm.sh"), "saving"]
    process = subprocess.Popen(command, env=environment)
    while not up.exists():
        time.sleep(0.02)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    assert process.wait(timeout=30) == EXIT_PREEMPTED
    assert got.read_text() == "got\n"


@pytest.mark.parametrize("status", [0, 2, 75, 127])
def test_a_command_ends_with_its_own_status(status: int) -> None:
    command = ["bash", str(LAUNCH / "one_sigterm.sh"), "bash", "-c", f"exit {status}"]
    done = subprocess.run(command, check=False)
    assert done.returncode == status


# Two VMs, which are directories; a queued resource, which is a file with its state.
# A command fails as often as the lines of a file of its name say: what it says of that.
GCLOUD = """
    failing=$CLOUD/fails-${1/storage/storage-$2}
    [[ $1 != compute ]] || failing=$CLOUD/fails-$4
    if [[ -s $failing ]]; then
      head -n 1 $failing >&2
      sed -i 1d $failing
      exit 1
    fi
    case "$*" in
      *"queued-resources describe"*)
        cat $CLOUD/state 2>/dev/null || { echo "ERROR: NOT_FOUND: no resource" >&2; exit 1; } ;;
      *"queued-resources create"*)
        [[ ! -e $CLOUD/state ]] || { echo "ERROR: ALREADY_EXISTS" >&2; exit 1; }
        echo "$@" >> $CLOUD/created; echo ACTIVE > $CLOUD/state ;;
      *"queued-resources delete"*) rm -rf $CLOUD/state $CLOUD/vm* ;;
      *"queued-resources ssh"*)
        for vm in 0 1; do
          mkdir -p $CLOUD/vm$vm && cd $CLOUD/vm$vm
          for word in "$@"; do
            if [[ $vm == 1 && $word == *start.sh*END* && -s $CLOUD/fails-start ]]; then
              sed -i 1d $CLOUD/fails-start
              exit 255
            fi
            [[ $word != --command=* ]] || VM=$vm bash -c "${word#--command=}" || failed=1
          done
        done
        exit ${failed:-0} ;;
      "storage cp"*) cat > $CLOUD/code ;;
      "storage cat"*) cat $CLOUD/code ;;
      *) echo "no such command: $*" >&2; exit 1 ;;
    esac
"""
# Takes the next status of its VM; `gone` is a VM that is preempted.
TRAIN = """
    echo "$JAX_COMPILATION_CACHE_DIR $*" >> $CLOUD/trained$VM
    status=$(head -n 1 $CLOUD/statuses$VM)
    sed -i 1d $CLOUD/statuses$VM
    [[ $status != waits ]] || exec -a train.py sleep 300
    [[ $status != gone ]] || { echo SUSPENDED > $CLOUD/state; exit 143; }
    exit $status
"""


def run_on_tpus(
    cloud: Path, *statuses: list[str], fails: dict[str, list[str]] | None = None, grace: int = 900
) -> subprocess.CompletedProcess[str]:
    for vm, of in enumerate(statuses):
        (cloud / f"statuses{vm}").write_text("".join(f"{status}\n" for status in of))
    for name, lines in (fails or {}).items():
        (cloud / f"fails-{name}").write_text("".join(f"{line}\n" for line in lines))
    environment = play(
        cloud / "bin",
        gcloud=GCLOUD,
        git="tar -cz -T /dev/null",
        python3=f"mkdir -p .venv/bin && ln -sf {cloud}/bin/train .venv/bin/python",
        train=TRAIN,
    )
    environment |= {"CLOUD": str(cloud), "POLL": "0.1", "CRASHES": "1", "FLAGS": "--verbosity=0"}
    environment |= {"FAILURES": "3", "GRACE": str(grace)}
    for name in ("NAME", "PROJECT", "ZONE", "TYPE", "RUNTIME"):
        environment[name] = name.lower()
    for name in ("CODE", "CONFIG", "DATA", "WORKDIR", "CACHE"):
        environment[name] = f"gs://{name.lower()}"
    command = ["bash", str(LAUNCH / "tpu_vm.sh"), "run"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_tpu_vms_are_started_again_until_the_run_is_done(tmp_path: Path) -> None:
    done = run_on_tpus(tmp_path, ["75", "1", "gone", "0"], ["75", "75", "gone", "0"])
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    assert len((tmp_path / "created").read_text().splitlines()) == 2, "anew after preemption"
    for vm in range(2):
        told = (tmp_path / f"trained{vm}").read_text().splitlines()
        assert len(told) == 4
        assert told[0].split()[:2] == ["gs://cache", "scripts/train.py"]
        assert "--config.mesh.slices=1" in told[0]
        assert told[0].endswith("--verbosity=0")


@pytest.mark.parametrize(
    ("statuses", "status", "starts"), [(["2", "0"], BAD_INPUT, 1), (["1", "1", "0"], 1, 2)]
)
def test_tpu_vms_are_not_started_again_in_vain(
    tmp_path: Path, statuses: list[str], status: int, starts: int
) -> None:
    done = run_on_tpus(tmp_path, ["75"] * starts, statuses)
    assert done.returncode == status
    assert "error:" in done.stderr
    assert len((tmp_path / "trained1").read_text().splitlines()) == starts


UNAVAILABLE = "ERROR: UNAVAILABLE: try again"


def test_a_step_on_tpu_vms_that_fails_is_tried_again(tmp_path: Path) -> None:
    steps = ("describe", "create", "storage-cp", "storage-cat", "start")
    done = run_on_tpus(tmp_path, ["waits", "0"], ["0"], fails={s: [UNAVAILABLE] for s in steps})
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
    assert [(tmp_path / f"fails-{step}").read_text() for step in steps] == [""] * 5
    assert len((tmp_path / "created").read_text().splitlines()) == 1
    starts = [len((tmp_path / f"trained{vm}").read_text().splitlines()) for vm in range(2)]
    assert starts == [2, 1], "the first one waited for the second, which was not started"


def test_a_look_that_fails_does_not_end_the_watcher(tmp_path: Path) -> None:
    """The resource is there when gcloud cannot tell: asking for it anew would be refused."""
    (tmp_path / "state").write_text("ACTIVE\n")
    done = run_on_tpus(tmp_path, ["0"], ["0"], fails={"describe": [UNAVAILABLE] * 5})
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "created").exists()
    assert UNAVAILABLE in done.stderr


@pytest.mark.parametrize("step", ["create", "storage-cp", "storage-cat"])
def test_a_step_on_tpu_vms_that_always_fails_ends_the_run(tmp_path: Path, step: str) -> None:
    (tmp_path / "code").write_text("of an earlier run")
    done = run_on_tpus(tmp_path, ["0"], ["0"], fails={step: [UNAVAILABLE] * 9})
    assert done.returncode == 1
    name = "create" if step == "create" else "install"
    assert f"error: '{name}' failed 3 times in a row" in done.stderr
    assert not (tmp_path / "trained0").exists(), "nothing may start from code that did not arrive"


def test_a_tpu_vm_that_waits_for_one_that_ended_is_started_again(tmp_path: Path) -> None:
    done = run_on_tpus(tmp_path, ["waits", "0"], ["1", "0"], grace=1)
    assert done.returncode == 0, done.stderr
    assert "start again: the last one ended with 1 waiting" in done.stdout


@pytest.mark.parametrize("path", STARTING, ids=lambda path: path.name)
def test_a_slice_may_come_back_late(path: Path) -> None:
    """Who waits in vain ends with the status of bad input, which ends the run for good."""
    (seconds,) = re.findall(r"--start_timeout=(\d+)", train_command(path))
    assert int(seconds) >= 24 * 3600


def test_a_variable_that_is_missing_is_named() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "NAME"}
    command = ["bash", str(LAUNCH / "tpu_vm.sh"), "state"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == BAD_INPUT
    assert "set NAME" in done.stderr
