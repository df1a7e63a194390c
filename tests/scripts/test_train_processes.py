"""Training in several processes over loopback: killed, stopped, continued by another number."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from modbrick.checkpoints import describe
from modbrick.training.observe.metrics import METRICS_FILE, read_metrics
from tests import programs
from tests.programs import Program

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "scripts" / "recorded_train.py"
STEPS, BATCH = 60, 8

Shape = tuple[int, int]  # processes, and devices of each
Model = tuple[str, ...]  # flags that change it
ROUTED: Model = ()
# Compiles in half the time; processes but the first do not write to the cache of programs.
DENSE: Model = (
    "--config.model.segments[0].layer.attention.experts=None",
    "--config.model.segments[0].layer.feed_forward.experts=None",
    "--config.objective.load_balancing=0.0",
)
VERIFY = pytest.mark.verify


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level data set of a few short documents."""
    root = tmp_path_factory.mktemp("data")
    prepare(root, seed=0)
    return root / "data"


def prepare(root: Path, seed: int) -> None:
    (root / "texts").mkdir(parents=True)
    rng = random.Random(seed)
    for index in range(40):
        words = rng.choices(["stick", "break", "expert", "router", "gate"], k=5 + index)
        (root / "texts" / f"{index}.txt").write_text(" ".join(words))
    script = ROOT / "scripts" / "prepare_data.py"
    done = programs.run(
        [script, f"--input={root / 'texts'}", f"--output={root / 'data'}", "--held_out=0.2"]
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Model], Path]:
    """Returns the directory of a run of one process that nothing happened to, once a model."""

    @functools.cache
    def run(model: Model) -> Path:
        root = tmp_path_factory.mktemp("runs")
        with running(data, root, 1, 2, *model) as processes:
            assert ends(processes) == [0]
        return root

    return run


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(
    data: Path,
    root: Path,
    processes: int,
    devices: int,
    *more: str,
    of_process: Mapping[int, tuple[str, ...]] | None = None,
) -> Iterator[list[Program]]:
    """Starts a run in `root/run`; what is left of it at the end is killed."""
    address = f"127.0.0.1:{free_port()}"
    started = []
    for index in range(processes):
        own = (of_process or {}).get(index, ())
        joined = [f"--coordinator={address}", f"--processes={processes}", f"--process={index}"]
        started.append(
            Program(
                [
                    RECORDED,
                    root,
                    f"--config={ROOT / 'tests' / 'configs' / 'tiny.py'}",
                    f"--config.data.path={data}",
                    f"--config.data.batch_size={BATCH}",
                    f"--config.training.steps={STEPS}",
                    "--config.logging.every=1",
                    "--config.evaluation.every=0",
                    "--config.execution.attention=reference",
                    "--config.execution.dispatch=reference",
                    "--config.model.segments[0].repeats=1",
                    "--config.checkpoint.every=6",
                    f"--workdir={root / 'run'}",
                    *(joined if processes > 1 else []),
                    "--silence_timeout=30",
                    *more,
                    *own,
                ],
                environment=programs.QUICK | {"JAX_NUM_CPU_DEVICES": str(devices)},
                errors=root / f"errors.{index}",
            )
        )
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def ends(processes: list[Program]) -> list[int]:
    """Waits for all of them and returns their exit statuses."""
    return [process.wait(timeout=600) for process in processes]


def errors_of(root: Path, process: int) -> str:
    return (root / f"errors.{process}").read_text()


def wait_for_step(processes: list[Program], root: Path, step: int) -> None:
    """Waits for a step of these processes; what killed ones had recorded beyond it goes first."""
    metrics = root / "run" / METRICS_FILE
    before = metrics.read_bytes() if metrics.exists() else b""
    while all(process.poll() is None for process in processes):
        if metrics.exists() and metrics.read_bytes() != before:
            records = read_metrics(str(root / "run"))
            if records and records[-1]["step"] >= step:
                return
        time.sleep(0.01)
    pytest.fail(f"ended before step {step}: {errors_of(root, 0)[-2000:]}")


def rows(root: Path) -> dict[int, set[str]]:
    """Hashes of the rows that were trained on, by number in the plan."""
    found: dict[int, set[str]] = {}
    for file in root.glob("rows.*"):
        for line in file.read_text().splitlines():
            number, digest = json.loads(line)
            found.setdefault(number, set()).add(digest)
    return found


def losses(root: Path) -> dict[int, float]:
    return {r["step"]: r["next_token"] for r in read_metrics(str(root / "run")) if "loss" in r}


def assert_same_run(root: Path, other: Path) -> None:
    """The same rows in the same steps, and the same losses but for rounding."""
    assert rows(root) == rows(other)
    assert all(len(digests) == 1 for digests in rows(root).values())
    assert set(rows(root)) >= set(range(STEPS * BATCH))
    mine, others = losses(root), losses(other)
    assert list(mine) == list(others) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(mine.values()), list(others.values()), rtol=1e-5)
    described = describe(root / "run")
    assert (described.step, described.metadata.data) == (STEPS, {"row": STEPS * BATCH})


def kill_one(data: Path, root: Path, draw: random.Random, shape: Shape, model: Model) -> None:
    """Runs processes until one of them is killed; the others end by themselves."""
    with running(data, root, *shape, *model) as processes:
        wait_for_step(processes, root, draw.randint(12, STEPS // 3))
        while not [p for p in (root / "run" / "checkpoints").glob("*") if p.name.isdigit()]:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.1))
        victim = draw.randrange(len(processes))
        processes[victim].kill()
        statuses = ends(processes)
        assert statuses.pop(victim) == -signal.SIGKILL
        assert not {0, 2, 75} & set(statuses)
    assert describe(root / "run").step < STEPS


def stop_one(data: Path, root: Path, draw: random.Random, shape: Shape, model: Model) -> None:
    """Continues until one process is asked to stop: all save the same step, and say so."""
    before, reached = describe(root / "run").step, max(rows(root)) // BATCH + 1
    with running(data, root, *shape, *model) as processes:
        wait_for_step(processes, root, reached + draw.randint(2, STEPS // 6))
        draw.choice(processes).send_signal(signal.SIGTERM)
        assert ends(processes) == [75] * len(processes), errors_of(root, 0)[-2000:]
    described = describe(root / "run")
    assert before <= reached < described.step < STEPS
    assert described.metadata.data == {"row": described.step * BATCH}
    assert f"stopped by SIGTERM: saved step {described.step} of {STEPS}" in errors_of(root, 0)
    assert [errors_of(root, i) for i in range(1, shape[0])] == [""] * (shape[0] - 1)
    assert max(rows(root)) == described.step * BATCH - 1


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("seed", "model", "killed", "stopped", "last"),
    [
        (0, DENSE, (2, 1), (2, 1), (1, 2)),
        pytest.param(0, ROUTED, (2, 4), (4, 2), (1, 8), marks=VERIFY),
        pytest.param(1, ROUTED, (2, 4), (1, 8), (4, 2), marks=VERIFY),
        pytest.param(2, ROUTED, (4, 2), (2, 4), (2, 4), marks=VERIFY),
        pytest.param(3, ROUTED, (2, 4), (2, 4), (1, 8), marks=VERIFY),
    ],
)
def test_killed_stopped_and_continued_by_other_numbers_of_processes(
    data: Path,
    uninterrupted: Callable[[Model], Path],
    tmp_path: Path,
    seed: int,
    model: Model,
    killed: Shape,
    stopped: Shape,
    last: Shape,
) -> None:
    draw = random.Random(seed)
    kill_one(data, tmp_path, draw, killed, model)
    stop_one(data, tmp_path, draw, stopped, model)
    with running(data, tmp_path, *last, *model) as processes:
        assert ends(processes) == [0] * len(processes), errors_of(tmp_path, 0)[-2000:]
    assert_same_run(tmp_path, uninterrupted(model))


def test_an_unreachable_coordinator_is_told_with_its_address(data: Path, tmp_path: Path) -> None:
    with running(data, tmp_path, 2, 4, "--start_timeout=1") as processes:
        processes[0].kill()
        assert processes[1].wait(timeout=120) == 2
    output = errors_of(tmp_path, 1)
    assert output.count("\n") == 1
    assert re.match(
        r"error: the coordinator at 127\.0\.0\.1:\d+ cannot be reached within 1 s", output
    )


def test_mismatched_configs_end_every_process_with_what_differs(data: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "other", seed=1)
    own = {
        1: ("--config.optimizer.learning_rate=0.02", f"--config.data.path={tmp_path}/other/data")
    }
    with running(data, tmp_path, 2, 1, of_process=own) as processes:
        assert ends(processes) == [2, 2]
    output = [errors_of(tmp_path, process) for process in range(2)]
    assert output[0] == output[1]
    assert output[0].count("\n") == 1
    assert "process 1: config.optimizer.learning_rate: 0.01 -> 0.02" in output[0]
    assert "process 1: data.dataset" in output[0]
    assert not (tmp_path / "run").exists()
