"""Measures the training step of a case: tokens per second, share of the machine's limit, memory.

The limit is the dense float32 matmul rate, measured between the steps of the same run; useful
operations are those of active parameters and attention (`modbrick.flops`).
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modbrick.bricks import BrickConfig, initial_bricks
from modbrick.bricks.config import NO_BRICKS
from modbrick.bricks.functional import plugged_decoder
from modbrick.decoder.functional import initial_parameters
from modbrick.execution import ExecutionConfig
from modbrick.flops import training_flops
from modbrick.hardware import measured_flops
from modbrick.objective import ObjectiveConfig
from modbrick.optimizer import Optimizer, OptimizerConfig
from modbrick.parameters import Partition
from modbrick.training.benchmark.cases import Case
from modbrick.training.benchmark.other import OtherProcess
from modbrick.training.state import TrainState, initial_state
from modbrick.training.step import loss_function, train_step
from modbrick.training.tasks.pretraining import next_token_totals


class CaseTraining:
    """The training of a case on fresh random data in every step.

    Attributes:
      optimizer: of all parameters.
      state: after the steps so far.
      parameters: how many the model has.
    """

    def __init__(
        self,
        case: Case,
        execution: ExecutionConfig = ExecutionConfig(),
        bricks: Mapping[str, BrickConfig] = NO_BRICKS,
    ):
        """Makes new parameters; the first step compiles.

        Args:
          case: the model and its batches.
          execution: how to run it.
          bricks: customized ones, which are trained instead of the model.
        """
        config = case.model()
        table = plugged_decoder(config, bricks).table
        partition = Partition(table, trainable=("brick",) if bricks else ("*",))
        self.optimizer = Optimizer(OptimizerConfig(learning_rate=3e-4), partition, total_steps=1000)
        objective = ObjectiveConfig(load_balancing=0.0 if bricks else 0.01)
        loss = loss_function(next_token_totals, config, execution, objective, bricks=bricks)
        self._step = jax.jit(train_step(loss, self.optimizer, partition), donate_argnums=0)
        parameters = initial_parameters(config, jax.random.key(0))
        parameters |= initial_bricks(config, bricks, jax.random.key(1))
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(parameters))
        self.state: TrainState = initial_state(parameters, partition, self.optimizer)
        self._case, self._rng = case, np.random.default_rng(0)

    def memory_bytes(self) -> int:
        """Returns what the compiler says a step needs: its state, batch and temporary values."""
        batch = self._case.random_batch(self._rng)
        needed = self._step.lower(self.state, batch).compile().memory_analysis()
        assert needed is not None, "compilers of this library's backends say it"
        return int(needed.argument_size_in_bytes + needed.temp_size_in_bytes)

    def train(self, steps: int) -> float:
        """Returns the seconds that each of some steps took.

        Raises:
          RuntimeError: the loss is not finite.
        """
        batches = [self._case.random_batch(self._rng) for _ in range(steps)]
        start = time.perf_counter()
        for batch in batches:
            self.state, metrics = self._step(self.state, batch)
        jax.block_until_ready(self.state)
        seconds = (time.perf_counter() - start) / steps
        if not np.isfinite(loss := float(metrics.loss)):
            raise RuntimeError(f"the loss is {loss}")
        return seconds


def measure(
    case: Case,
    *,
    rounds: int,
    steps: int,
    execution: ExecutionConfig = ExecutionConfig(),
    other: list[str] | None = None,
) -> dict[str, Any]:
    """Trains a case, in turn with another code if one is named; returns the figures, JSON-able.

    Args:
      case: what to train.
      rounds: of steps of each contender; figures are medians over them.
      steps: in a round.
      execution: how to run it.
      other: command of the other code's driver, see `OtherProcess`.
    """
    training = CaseTraining(case, execution)
    start = time.perf_counter()
    training.train(steps)
    compile_seconds = time.perf_counter() - start
    contender = OtherProcess(other, case) if other else None
    ours, theirs, dense = [], [], []
    for _ in range(rounds):
        dense.append(measured_flops(2048, repeats=3))
        ours.append(training.train(steps))
        if contender is not None:
            theirs.append(contender.train(steps))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    updating = optimizer_seconds(training.optimizer, training.state)
    useful = training_flops(case.model(), (case.sequence + 1) / 2) * case.tokens
    seconds, rate = statistics.median(ours), statistics.median(dense)
    result: dict[str, Any] = {
        "tokens_per_second": case.tokens / seconds,
        "seconds_per_step": seconds,
        "share_of_limit": useful / seconds / rate,
        "share_of_limit_without_optimizer": useful / (seconds - updating) / rate,
        "optimizer_seconds": updating,
        "optimizer_share_of_step": updating / seconds,
        "dense_gflops": rate / 1e9,
        "useful_gflop_per_step": useful / 1e9,
        "peak_memory_bytes": peak,
        "compile_seconds": compile_seconds,
        "parameters": training.parameters,
        "rounds": {"seconds": ours, "dense_gflops": [d / 1e9 for d in dense]},
        "case": dataclasses.asdict(case),
    }
    if contender is not None:
        result["original"] = {
            "tokens_per_second": case.tokens / statistics.median(theirs),
            "share_of_limit": useful / statistics.median(theirs) / rate,
            "peak_memory_bytes": contender.close(),
            "seconds": theirs,
        }
        result["speedup"] = statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
    return result


def optimizer_seconds(optimizer: Optimizer, state: TrainState) -> float:
    """Measures one update alone, its buffers donated as in a step; consumes the state."""
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
