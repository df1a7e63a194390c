"""Pretrains or fine-tunes a model.

    python scripts/train.py --config=configs/quickstart.py --workdir=DIR
    [--config.training.steps=500 ...]

The working directory receives checkpoints, metrics and the config. Started again on the same
directory, a run continues from its last complete checkpoint, with the parameters that it would have
had without the interruption. SIGTERM or Ctrl-C: the step in hand is finished and saved; exit status
75 says "start me again".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath

from modbrick import command_line
from modbrick.checkpoints import CheckpointStore, Metadata, save_tokenizer
from modbrick.checkpoints.directory import write_text
from modbrick.config.flag import DEFINE_config
from modbrick.data import Dataset, check_vocabulary, evaluation_batches, training_batches
from modbrick.data.batches import Batch
from modbrick.errors import InputError
from modbrick.hardware import enable_compilation_cache, peak_flops
from modbrick.layers.functional import initial_parameters
from modbrick.models import StoredModel, open_model
from modbrick.parallel import make_mesh
from modbrick.parallel.batch import check_rows, local_rows, place_batch
from modbrick.parallel.processes import (
    ProcessConfig,
    check_agreement,
    ending_by_itself,
    everywhere,
    is_first,
    say,
    start_processes,
)
from modbrick.schema import to_json, to_mapping
from modbrick.training.evaluation import evaluate, evaluation_step
from modbrick.training.observe.metrics import MetricsWindow, MetricsWriter, useful_flops
from modbrick.training.observe.profile import ProfiledSteps, Profiler
from modbrick.training.observe.progress import TrainingProgress
from modbrick.training.observe.timeline import FINISHED, Timeline
from modbrick.training.preemption import EXIT_PREEMPTED, PreemptionGuard
from modbrick.training.program import TrainProgram, train_program
from modbrick.training.run_config import RunConfig, check_identity, shared_settings
from modbrick.training.state import TrainState, initial_state

CONFIG = DEFINE_config("config", RunConfig)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run, local or remote.")
ALLOW_CHANGE = flags.DEFINE_list(
    "allow_change", [], "What may differ from the run to be continued: names such as optimizer."
)
PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", None, "FIRST:LAST, steps to write a profile of to WORKDIR/profile."
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, or none. Default: as the cluster says."
)
PROCESSES = flags.DEFINE_integer("processes", None, "How many there are, with --coordinator.")
PROCESS = flags.DEFINE_integer("process", None, "Number of this one from 0, with --coordinator.")
START_TIMEOUT = flags.DEFINE_integer(
    "start_timeout", 300, "Seconds to wait until all processes are there."
)
SILENCE_TIMEOUT = flags.DEFINE_integer(
    "silence_timeout", 100, "Seconds without a sign of life after which a process counts as dead."
)


def main(argv: Sequence[str]) -> int:
    """Trains the model that the config describes."""
    del argv
    with ending_by_itself():
        return train()


def train() -> int:
    """Returns the exit status of the run that the flags describe."""
    config = CONFIG.value
    if config is None or not WORKDIR.value:
        raise InputError("name a config and a directory: --config=configs/NAME.py --workdir=DIR")
    enable_compilation_cache()

    # ------------------------------------------------------------------------------------- config
    total_steps, batch_size = config.training.steps, config.data.batch_size
    workdir = epath.Path(WORKDIR.value)
    profiled = ProfiledSteps.parse(PROFILE_STEPS.value, total_steps)

    # ---------------------------------------------------------------------------------- processes
    start_processes(
        ProcessConfig(
            COORDINATOR.value,
            PROCESSES.value,
            PROCESS.value,
            start_timeout=START_TIMEOUT.value,
            silence_timeout=SILENCE_TIMEOUT.value,
        )
    )
    dataset = everywhere(lambda: Dataset.open(config.data.path))
    identity = config.identity(dataset)
    check_agreement(
        {
            "config": shared_settings(config),
            "data": identity["data"],
            "workdir": str(workdir),
            "allow_change": sorted(ALLOW_CHANGE.value),
            "profile_steps": PROFILE_STEPS.value,
        }
    )

    # -------------------------------------------------------------------------- mesh and program
    mesh = make_mesh(config.mesh)
    jax.set_mesh(mesh)
    program = train_program(config, mesh)
    run_evaluation = evaluation_step(config.model, config.execution, mesh)

    # --------------------------------------------------------------------------------------- data
    check_vocabulary(dataset, config.model.vocabulary)
    batches = training_batches(dataset, config.data, rows=local_rows(mesh, batch_size))
    require_enough_rows(batches.plan.rows, config)
    evaluated = config.evaluation.batch_size or batch_size
    check_rows(mesh, evaluated, f"evaluation.batch_size {evaluated}")
    held_out = evaluation_batches(
        dataset,
        sequence_length=config.data.sequence_length,
        batch_size=evaluated,
        max_tokens=config.evaluation.max_tokens,
        rows=local_rows(mesh, evaluated),
    )

    def parameters_of(state: TrainState) -> dict[str, Any]:
        return program.partition.join(state.trainable, state.frozen)

    # ------------------------------------------------------------------------------------ restore
    with (
        PreemptionGuard(mesh) as guard,
        CheckpointStore(workdir, config.checkpoint, warn=say) as store,
    ):
        if (latest := store.latest()) is not None:
            before = latest.metadata.run
            for line in everywhere(
                lambda: check_identity(before, identity, ALLOW_CHANGE.value, str(workdir))
            ):
                say(f"continuing with a change: {line}")
        state, row = start_state(program, store)
        batches.set_state(row)
        start_step = int(state.step)
        if is_first():
            write_text(workdir / "config.json", to_json(config))
            save_tokenizer(workdir, dataset.tokenizer().to_json())

        def save(step: int, next_row: int, metrics: dict[str, float]) -> None:
            metadata = Metadata(
                model=config.model,
                run=identity,
                tokenizer=to_mapping(dataset.tokenizer_identity),
                data={"row": next_row},
            )
            store.save(step, parameters_of(state), state.optimizer, metadata, metrics)

        # A signal during the last evaluation gave it up: it is made now.
        unevaluated = start_step == total_steps and latest is not None and not latest.metrics

        # ----------------------------------------------------------------------------------- loop
        step = start_step
        with (
            batches,
            MetricsWriter(
                workdir, start_step=start_step, tensorboard=config.logging.tensorboard
            ) as writer,
            TrainingProgress(
                total_steps, start_step, config.logging.progress if is_first() else "none"
            ) as progress,
            Profiler(workdir, profiled) as profiler,
            Timeline(workdir, start_step) as timeline,
        ):
            window = MetricsWindow(peak_flops() * mesh.size, config.optimizer.max_skipped_in_a_row)

            def held_out_metrics(step: int) -> dict[str, float]:
                """Evaluates; nothing is known if a signal says to stop."""
                with window.paused(), timeline.during("evaluation"):
                    result = evaluate(
                        run_evaluation,
                        parameters_of(state),
                        held_out,
                        mesh=mesh,
                        stop=guard.should_stop,
                    )
                if result is None:
                    return {}
                writer.write({"step": step, "evaluation": result.to_mapping()})
                progress.evaluation(step, result)
                return {"loss": result.total.loss}

            if unevaluated:
                unevaluated = not held_out_metrics(step)
            while step < total_steps and not guard.should_stop():
                batch, seconds_waited = window.fetch(batches)
                timeline.add("data_wait", seconds_waited)
                step += 1
                last = step == total_steps
                profiler.begin(step)
                state, report = program.step(state, place_batch(batch, mesh, batch_size))
                profiler.end(step, report)
                window.add(report, *work_of(batch, config))
                timeline.first_step(step)
                progress.step(step)
                if last or config.logging.due(step):
                    record = window.record(step)
                    writer.write(record)
                    progress.figures(record)
                    timeline.mark(step)
                metrics = {}
                if last or config.evaluation.due(step):
                    metrics = held_out_metrics(step)
                    unevaluated = last and not metrics
                if last or config.checkpoint.due(step):
                    with timeline.during("checkpoint"):
                        save(step, batches.get_state(), metrics)
                    timeline.mark(step)
            with timeline.during("checkpoint"):
                if step < total_steps:
                    save(step, batches.get_state(), {})
                store.wait()
            unfinished = step < total_steps or unevaluated
            timeline.stop(step, guard.name if unfinished else FINISHED)
            if unfinished:
                progress.message(f"stopped by {guard.name}: saved step {step} of {total_steps}")
                return EXIT_PREEMPTED
    say(f"finished {total_steps} steps; everything is in {workdir}")
    return 0


def work_of(batch: Batch, config: RunConfig) -> tuple[int, float]:
    """Returns tokens and useful operations of a global batch, by this process's rows of it."""
    rows, positions = batch["tokens"].shape
    whole = config.data.batch_size
    return whole * positions, useful_flops(config.model, batch) * whole / rows


def require_enough_rows(rows: int | None, config: RunConfig) -> None:
    """Refuses a run that is longer than its data: `data.epochs` of them."""
    if rows is None:
        return
    steps = -(-rows // config.data.batch_size)
    if steps < config.training.steps:
        raise InputError(
            f"{config.data.epochs} data.epochs are {steps} steps: set training.steps to at most "
            "that, or data.epochs to None"
        )


def start_state(program: TrainProgram, store: CheckpointStore) -> tuple[TrainState, int]:
    """Returns the state and row to continue from, of the last checkpoint or new, laid out."""
    model, training = program.config.model, program.config.training
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.state)
    of_parameters = jax.tree.map(lambda leaf: leaf.sharding, program.parameters)
    restored = store.restore_latest(program.parameters, program.state.optimizer)
    if restored is not None:
        trainable, frozen = jax.jit(
            program.partition.split,
            donate_argnums=0,
            out_shardings=(shardings.trainable, shardings.frozen),
        )(restored.parameters)
        step = jax.device_put(np.int32(restored.step), shardings.step)
        say(f"continuing from step {restored.step}")
        return TrainState(
            step, trainable, frozen, restored.optimizer_state
        ), restored.metadata.data["row"]
    if training.initial_checkpoint is None:
        parameters = initial_parameters(model, jax.random.key(training.seed), of_parameters)
    else:
        stored: StoredModel = everywhere(lambda: open_model(training.initial_checkpoint))
        parameters = everywhere(
            lambda: stored.read(config=model, dtype="float32", shardings=of_parameters)
        )
        say(f"starting from {stored.origin}")
    return initial_state(parameters, program.partition, program.optimizer, shardings), 0


if __name__ == "__main__":
    command_line.run(main)
