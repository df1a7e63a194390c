"""Measures training on this machine: tokens per second, share of the machine's limit, memory.

    python scripts/benchmark_training.py --json=FILE [--cases=A,B512,B1024] [--rounds=5]
        [--original=DIR --original_python=PYTHON]

The limit is the dense float32 matmul rate, measured between the steps of the same run; useful
operations are those of active parameters and attention (`modbrick.flops`). With --original, the
original PyTorch ModuleFormer code in DIR is trained in turn with ours, under a Python that has
torch and transformers. Fresh random data in every step; medians over rounds.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from modbrick import command_line
from modbrick.analysis.summary import summarise
from modbrick.config import ModelConfig
from modbrick.config.families import moduleformer
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.flops import training_flops
from modbrick.hardware import describe_machine, measured_flops
from modbrick.layers.functional import initial_parameters, parameter_table
from modbrick.objective import ObjectiveConfig
from modbrick.optimizer import Optimizer, OptimizerConfig
from modbrick.parameters import Partition
from modbrick.schema import nearest
from modbrick.training.state import initial_state
from modbrick.training.step import train_step

JSON = flags.DEFINE_string("json", None, "File for the results.")
CASES_FLAG = flags.DEFINE_list("cases", ["A", "B512", "B1024"], "Which cases to run.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of steps of each contender.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 2, "Steps in a round.", lower_bound=1)
UNROLL = flags.DEFINE_integer("unroll", 1, "Layers unrolled in the scan.", lower_bound=1)
ORIGINAL = flags.DEFINE_string("original", None, "Directory of the original PyTorch package.")
ORIGINAL_PYTHON = flags.DEFINE_string("original_python", None, "Python with torch, for --original.")
_CASE = flags.DEFINE_string("one_case", None, "Run one case in this process; prints JSON.")


@dataclasses.dataclass(frozen=True)
class Case:
    """A ModuleFormer in float32 with AdamW and load balancing, and a batch shape."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    attention_width: int
    feed_forward_width: int
    router_width: int
    attention_experts: int
    feed_forward_experts: int
    batch: int
    sequence: int

    def model(self) -> ModelConfig:
        """Returns the model of this case."""
        shape = dataclasses.asdict(self)
        del shape["batch"], shape["sequence"]
        return moduleformer(**shape, top_k=2, dtype="float32")


B = Case(8192, 512, 6, 8, 512, 1024, 128, 8, 16, batch=4, sequence=512)
CASES = {
    "A": Case(512, 256, 4, 4, 256, 512, 64, 8, 8, batch=8, sequence=256),
    "B512": B,
    "B1024": dataclasses.replace(B, batch=2, sequence=1024),
}


def main(argv: Sequence[str]) -> int:
    """Runs the cases and reports."""
    del argv
    for name in [*CASES_FLAG.value, *([_CASE.value] if _CASE.value else [])]:
        if name not in CASES:
            raise InputError(f"--cases: unknown case {name!r}; {nearest(name, CASES)}")
    if (ORIGINAL.value is None) != (ORIGINAL_PYTHON.value is None):
        raise InputError("--original and --original_python go together")
    command_line.check_output(JSON)
    if _CASE.value:
        print(json.dumps(run_case(_CASE.value)))
        return 0
    # Each case in a process of its own, so that peak memory is its own.
    results = {name: in_own_process(name) for name in CASES_FLAG.value}
    show(results)
    if JSON.value:
        Path(JSON.value).write_text(
            json.dumps({**describe_machine(), "cases": results}, indent=2) + "\n"
        )
    return 0


def run_case(name: str) -> dict[str, Any]:
    """Trains one case, in turn with the original if that is asked for; returns its figures."""
    case = CASES[name]
    config = case.model()
    optimizer_config = OptimizerConfig(learning_rate=3e-4)
    partition = Partition(parameter_table(config))
    optimizer = Optimizer(optimizer_config, partition, total_steps=1000)
    execution = ExecutionConfig(unroll=UNROLL.value)
    objective = ObjectiveConfig(load_balancing=0.01)
    step = jax.jit(train_step(config, execution, objective, optimizer, partition), donate_argnums=0)
    state = initial_state(initial_parameters(config, jax.random.key(0)), partition, optimizer)
    rng = np.random.default_rng(0)

    def train() -> float:
        nonlocal state
        batches = [random_batch(rng, case) for _ in range(STEPS.value)]
        start = time.perf_counter()
        for batch in batches:
            state, report = step(state, batch)
        jax.block_until_ready(state)
        seconds = (time.perf_counter() - start) / STEPS.value
        if not np.isfinite(float(report.loss)):
            raise RuntimeError(f"the loss of case {name} is {float(report.loss)}")
        return seconds

    start = time.perf_counter()
    train()
    compile_seconds = time.perf_counter() - start
    original = OriginalProcess(case) if ORIGINAL.value else None
    ours, theirs, dense = [], [], []
    for _ in range(ROUNDS.value):
        dense.append(measured_flops(2048, repeats=3))
        ours.append(train())
        if original is not None:
            theirs.append(original.train(STEPS.value))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    updating = optimizer_seconds(optimizer, state)
    tokens = case.batch * case.sequence
    useful = training_flops(config, (case.sequence + 1) / 2) * tokens
    seconds, rate = statistics.median(ours), statistics.median(dense)
    result: dict[str, Any] = {
        "tokens_per_second": tokens / seconds,
        "seconds_per_step": seconds,
        "share_of_limit": useful / seconds / rate,
        "share_of_limit_without_optimizer": useful / (seconds - updating) / rate,
        "optimizer_seconds": updating,
        "optimizer_share_of_step": updating / seconds,
        "dense_gflops": rate / 1e9,
        "useful_gflop_per_step": useful / 1e9,
        "peak_memory_bytes": peak,
        "compile_seconds": compile_seconds,
        "parameters": summarise(config).total,
        "rounds": {"seconds": ours, "dense_gflops": [d / 1e9 for d in dense]},
        "case": dataclasses.asdict(case),
    }
    if original is not None:
        result["original"] = {
            "tokens_per_second": tokens / statistics.median(theirs),
            "share_of_limit": useful / statistics.median(theirs) / rate,
            "peak_memory_bytes": original.close(),
            "seconds": theirs,
        }
        result["speedup"] = statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
    return result


def random_batch(rng: np.random.Generator, case: Case) -> dict[str, np.ndarray]:
    """Returns a batch of whole rows of random tokens."""
    shape = (case.batch, case.sequence)
    tokens = rng.integers(0, case.vocabulary, (case.batch, case.sequence + 1)).astype(np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones(shape, np.int32),
        "positions": np.broadcast_to(np.arange(case.sequence, dtype=np.int32), shape),
        "loss_mask": np.ones(shape, np.int32),
    }


def optimizer_seconds(optimizer: Optimizer, state: Any) -> float:
    """Measures one update alone, its buffers donated as in a step."""
    gradients = jax.tree.map(lambda x: jnp.full_like(x, 1e-3), state.trainable)

    def update(trainable: Any, optimizer_state: Any, gradients: Any) -> Any:
        new, optimizer_state, _ = optimizer.update(gradients, optimizer_state, trainable)
        return new, optimizer_state

    compiled = jax.jit(update, donate_argnums=(0, 1))
    trainable, optimizer_state = state.trainable, state.optimizer
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        trainable, optimizer_state = jax.block_until_ready(
            compiled(trainable, optimizer_state, gradients)
        )
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


class OriginalProcess:
    """The original code, training the same case in a process of its own, a round at a time."""

    def __init__(self, case: Case):
        driver = Path(__file__).with_name("benchmark_original.py")
        command = [str(ORIGINAL_PYTHON.value), str(driver), str(ORIGINAL.value)]
        self._process = subprocess.Popen(
            [*command, json.dumps(dataclasses.asdict(case))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask({"steps": 1})  # the first step is slower

    def _ask(self, request: dict[str, int]) -> dict[str, float]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        # Halted, so that threads which wait in a loop take nothing from the other contender.
        self._process.send_signal(signal.SIGSTOP)
        if not answer:
            raise InputError(f"the original code in {ORIGINAL.value} did not run; see its message")
        return json.loads(answer)

    def train(self, steps: int) -> float:
        """Returns seconds per step."""
        return self._ask({"steps": steps})["seconds"] / steps

    def close(self) -> float:
        """Ends the process and returns its peak memory in bytes."""
        peak = self._ask({"steps": 0})["peak_memory_bytes"]
        assert self._process.stdin
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.close()
        self._process.wait()
        return peak


def in_own_process(name: str) -> dict[str, Any]:
    """Runs one case in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], f"--one_case={name}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise InputError(f"case {name} failed with exit status {done.returncode}; see its message")
    return json.loads(done.stdout.splitlines()[-1])


def show(results: dict[str, dict[str, Any]]) -> None:
    """Prints a table, a column for each case."""
    table = Table(title="Training, float32, AdamW")
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("tokens/s", lambda r: f"{r['tokens_per_second']:,.0f}"),
        ("share of limit", lambda r: f"{r['share_of_limit']:.1%}"),
        ("without optimizer", lambda r: f"{r['share_of_limit_without_optimizer']:.1%}"),
        ("optimizer's share of the step", lambda r: f"{r['optimizer_share_of_step']:.1%}"),
        ("dense GFLOP/s", lambda r: f"{r['dense_gflops']:.0f}"),
        ("peak memory, GiB", lambda r: f"{r['peak_memory_bytes'] / 2**30:.2f}"),
        ("compilation and first steps, s", lambda r: f"{r['compile_seconds']:.0f}"),
    ]
    if any("original" in r for r in results.values()):
        rows += [
            ("original: tokens/s", lambda r: f"{r['original']['tokens_per_second']:,.0f}"),
            ("original: peak, GiB", lambda r: f"{r['original']['peak_memory_bytes'] / 2**30:.2f}"),
            ("times the original", lambda r: f"{r['speedup']:.2f}"),
        ]
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    for label, cell in rows:
        table.add_row(label, *(cell(result) for result in results.values()))
    Console().print(table)


if __name__ == "__main__":
    command_line.run(main)
