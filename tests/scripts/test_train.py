"""Training from start to end as a user runs it: resume after every kind of end, and bad input."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from modbrick.checkpoints import describe, load_checkpoint
from modbrick.training.observe.metrics import read_metrics
from tests import programs
from tests.programs import Program

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "configs" / "tiny.py"
STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level data set of a few short documents, some of them longer than a row."""
    root = tmp_path_factory.mktemp("data")
    (root / "texts").mkdir()
    rng = random.Random(0)
    for index in range(40):
        words = rng.choices(["stick", "break", "expert", "router", "gate"], k=5 + index)
        (root / "texts" / f"{index}.txt").write_text(" ".join(words))
    script(
        "prepare_data.py", "--input", root / "texts", "--output", root / "data", "--held_out=0.2"
    )
    return root / "data"


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing happened to; beside it, what it compiled."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    run = script("train.py", *arguments(data, workdir), JAX_LOG_COMPILES="1")
    workdir.with_name("compiled").write_text(run.stderr)
    return workdir


def script(
    name: str, *arguments: object, status: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    line = [ROOT / "scripts" / name, *arguments]
    done = programs.run(line, environment=programs.QUICK | variables)
    assert done.returncode == status, done.stderr[-2000:]
    return done


def arguments(data: Path, workdir: Path, *more: str) -> list[str]:
    return [
        f"--config={CONFIG}",
        f"--config.data.path={data}",
        # What compiles fastest: the script is tested here, not the kernels.
        "--config.execution.attention=reference",
        "--config.execution.dispatch=reference",
        f"--workdir={workdir}",
        *more,
    ]


def train(data: Path, workdir: Path, *more: str, status: int = 0) -> str:
    done = script("train.py", *arguments(data, workdir, *more), status=status)
    return done.stderr if status else done.stdout


def start(data: Path, workdir: Path, *more: str) -> Program:
    line = [ROOT / "scripts" / "train.py", *arguments(data, workdir, *more)]
    return Program(line, environment=programs.QUICK)


def wait_for_checkpoint(process: Program, workdir: Path, above: int) -> None:
    """Waits until a checkpoint of a later step than `above` is complete."""
    while process.poll() is None:
        steps = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]
        if max(steps, default=0) > above:
            return
        time.sleep(0.02)


def assert_same_run(workdir: Path, other: Path) -> None:
    """Every parameter after the last step is equal to the bit, and so is every recorded loss."""
    parameters, description = load_checkpoint(workdir)
    expected, _ = load_checkpoint(other)
    assert description.step == STEPS
    expected = expected
    for path, value in parameters.items():
        np.testing.assert_array_equal(value, expected[path], err_msg=path)
    assert description.metadata.data == describe(other).metadata.data
    mine, others = (
        {r["step"]: r["evaluation"] for r in read_metrics(str(d)) if "evaluation" in r}
        for d in (workdir, other)
    )
    # A SIGTERM gives up the evaluation in hand; those that were made agree, the last one is.
    assert STEPS in mine
    assert all(others[step] == evaluation for step, evaluation in mine.items())
    steps = [r["step"] for r in read_metrics(str(workdir)) if "next_token" in r]
    assert steps == sorted(set(steps))


def kill_and_resume(data: Path, workdir: Path, kills: int, seed: int) -> None:
    """Kills a run at random moments, each after some progress, and lets it end."""
    rng, reached = random.Random(seed), 0
    for _ in range(kills):
        process = start(data, workdir)
        wait_for_checkpoint(process, workdir, reached)
        time.sleep(rng.uniform(0.0, 0.5))
        process.kill()
        process.communicate()
        reached = describe(workdir).step
    train(data, workdir)


def test_a_run_writes_what_it_says(uninterrupted: Path) -> None:
    records = read_metrics(str(uninterrupted))
    assert [r["step"] for r in records if "next_token" in r] == list(range(2, STEPS + 1, 2))
    assert [r["step"] for r in records if "evaluation" in r] == [6, 12]
    for record in records:
        if "next_token" in record:
            assert record["skipped_updates"] == 0
            assert set(record["routers"]) == {"segments.0.attention", "segments.0.feed_forward"}
    described = describe(uninterrupted)
    assert described.metadata.tokenizer["name"] == "bytes"
    assert described.metadata.data == {"row": 4 * STEPS}
    assert json.loads((uninterrupted / "config.json").read_text())["training"]["steps"] == STEPS
    kept = sorted(int(p.name) for p in (uninterrupted / "checkpoints").iterdir())
    assert kept == [9, 12]


def test_the_step_is_compiled_once(uninterrupted: Path) -> None:
    assert uninterrupted.with_name("compiled").read_text().count("Compiling jit(step)") == 1


def test_killed_at_a_random_moment_the_parameters_are_equal_to_the_bit(
    data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    kill_and_resume(data, tmp_path / "run", kills=1, seed=0)
    assert_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.verify
@pytest.mark.parametrize("seed", range(1, 6))
def test_killed_again_and_again(data: Path, uninterrupted: Path, tmp_path: Path, seed: int) -> None:
    kill_and_resume(data, tmp_path / "run", kills=3, seed=seed)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_sigterm_saves_and_asks_to_be_started_again(
    data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    began = time.time()
    process = start(data, workdir)
    wait_for_checkpoint(process, workdir, 0)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors[-2000:]
    assert "stopped by SIGTERM: saved step" in errors
    assert 3 <= describe(workdir).step < STEPS
    assert "continuing from step" in train(data, workdir)
    passed = time.time() - began
    assert_same_run(workdir, uninterrupted)
    output = script("report_goodput.py", f"--workdir={workdir}", f"--picture={tmp_path / 'it.png'}")
    report = json.loads(output.stdout.splitlines()[-1])
    assert (report["steps"], report["lost_steps"], report["interruptions"]) == (STEPS, 0, 1)
    assert [start["end"] for start in report["starts"]] == ["SIGTERM", "finished"]
    assert report["wall_seconds"] == pytest.approx(sum(report["seconds"].values()))
    # From the first process to the last record of the last one: all but the end of the whole.
    assert 0.5 * passed < report["wall_seconds"] < passed
    for part in ("steps", "start", "checkpoint", "evaluation", "down", "restart"):
        assert report["seconds"][part] > 0, part
    assert (tmp_path / "it.png").stat().st_size > 0


def test_a_finished_run_started_again_does_nothing(data: Path, uninterrupted: Path) -> None:
    before = (uninterrupted / "metrics.jsonl").read_text()
    assert f"finished {STEPS} steps" in train(data, uninterrupted)
    assert (uninterrupted / "metrics.jsonl").read_text() == before


def test_another_identity_is_refused_with_what_changed(data: Path, uninterrupted: Path) -> None:
    change = ["--config.optimizer.learning_rate=0.02", "--config.execution.attention_tolerance=0.1"]
    message = train(data, uninterrupted, *change, status=2)
    assert message.count("\n") == 1
    assert "optimizer.learning_rate: 0.01 -> 0.02" in message
    assert "execution.attention_tolerance: 0.0 -> 0.1" in message
    assert "--allow_change=optimizer,execution" in message


def without_the_last_checkpoint(workdir: Path, copied: Path) -> Path:
    """Copies a run of which three steps are left to do."""
    subprocess.run(["cp", "-r", str(workdir), str(copied)], check=True)
    subprocess.run(["rm", "-r", str(copied / "checkpoints" / "12")], check=True)
    return copied


# What changes the program of the step takes its compilation again.
@pytest.mark.parametrize(
    ("change", "steps", "allowed", "told"),
    [
        (["--config.data.seed=1"], STEPS, "data", "data.seed: 0 -> 1"),
        pytest.param(
            [
                "--config.optimizer.learning_rate=0.02",
                "--config.execution.attention_tolerance=0.1",
                "--config.training.steps=13",
            ],
            13,
            "training.steps,optimizer,execution",
            "optimizer.learning_rate: 0.01 -> 0.02",
            marks=pytest.mark.verify,
        ),
    ],
    ids=["data", "program"],
)
def test_what_is_allowed_to_change_goes_on(
    data: Path,
    uninterrupted: Path,
    tmp_path: Path,
    change: list[str],
    steps: int,
    allowed: str,
    told: str,
) -> None:
    copied = without_the_last_checkpoint(uninterrupted, tmp_path / "run")
    output = train(data, copied, *change, f"--allow_change={allowed}")
    assert f"continuing with a change: {told}" in output
    assert describe(copied).step == steps


@pytest.mark.parametrize(
    "execution",
    [
        [],
        pytest.param(
            ["--config.training.microbatches=2", "--config.execution.rematerialisation=full"],
            marks=pytest.mark.verify,
        ),
    ],
    ids=["pace", "program"],
)
def test_execution_may_change_freely(
    data: Path, uninterrupted: Path, tmp_path: Path, execution: list[str]
) -> None:
    copied = without_the_last_checkpoint(uninterrupted, tmp_path / "run")
    train(
        data,
        copied,
        *execution,
        "--config.checkpoint.every=1",
        "--config.logging.every=1",
        "--profile_steps=10:11",
    )
    assert list((copied / "profile").rglob("*.xplane.pb"))
    assert describe(copied).step == STEPS
    parameters, _ = load_checkpoint(copied)
    expected = load_checkpoint(uninterrupted)[0]
    for path, value in parameters.items():
        difference = np.linalg.norm(np.asarray(value) - expected[path])
        assert difference <= 1e-3 * np.linalg.norm(expected[path]), path


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "run"
    subprocess.run(["cp", "-r", str(uninterrupted), str(copied)], check=True)
    files = [p for p in (copied / "checkpoints" / "12").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-7])
    output = train(data, copied)
    assert "checkpoint 12" in output
    assert "damaged" in output
    assert "continuing from step 9" in output
    assert_same_run(copied, uninterrupted)


@pytest.mark.verify  # test_train_foreign.py does so with the checkpoint of another
def test_fine_tuning_starts_from_a_model_and_leaves_frozen_bricks_alone(
    data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    frozen = "--config.optimizer.frozen=('layer.0.feed_forward.expert.1', 'embedding')"
    train(
        data,
        tmp_path / "tuned",
        f"--config.training.initial_checkpoint={uninterrupted}",
        "--config.training.steps=3",
        frozen,
    )
    before = load_checkpoint(uninterrupted)[0]
    after = load_checkpoint(tmp_path / "tuned")[0]
    np.testing.assert_array_equal(before["embedding"], after["embedding"])
    moved = np.asarray(before["segments.0.feed_forward.up.weight"]) != np.asarray(
        after["segments.0.feed_forward.up.weight"]
    )
    assert not moved[0, 1].any()
    assert moved[1, 1].any()
    assert np.asarray(before["head.weight"] != after["head.weight"]).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--config.training.stepps=3", "did you mean"),
        ("--config.model.vocabulary=100", "vocabulary"),
        ("--config.model.segments[0].layer.attention.experts.top_k=9", "top_k"),
        ("--config.data.mixture={'text':1.0}", "texts"),
    ],
)
def test_bad_input_gets_one_clear_line(
    data: Path, tmp_path: Path, change: str, message: str
) -> None:
    output = train(data, tmp_path / "run", *change.split(" "), status=2)
    assert message in output
    assert "Traceback" not in output
    assert output.count("\n") == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_batch_that_devices_cannot_share_is_refused(data: Path, tmp_path: Path) -> None:
    line = arguments(data, tmp_path / "run", "--config.data.batch_size=6")
    output = script("train.py", *line, status=2, JAX_NUM_CPU_DEVICES="4").stderr
    assert output.startswith("error: data.batch_size 6 ")
    assert output.count("\n") == 1


def test_a_directory_that_holds_something_else_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    output = train(data, tmp_path, status=2)
    assert output.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
