"""The loop of training: fetch, step, record, evaluate, save, until the end or a signal."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping

from modbrick.checkpoints import CheckpointStore, Metadata
from modbrick.hardware import peak_flops
from modbrick.training.observe.observer import FINISHED, Activity, Observer
from modbrick.training.observe.window import MetricsWindow
from modbrick.training.preemption import PreemptionGuard
from modbrick.training.program import TrainProgram
from modbrick.training.start import Start
from modbrick.training.tasks.task import Batches, Evaluate, Evaluation


class TrainingLoop:
    """Trains the program of a run, whatever its task is.

    In a run of several processes, all of them make the same calls.
    """

    def __init__(
        self,
        program: TrainProgram,
        batches: Batches,
        evaluate: Evaluate,
        store: CheckpointStore,
        metadata: Metadata,
        guard: PreemptionGuard,
    ):
        """Makes a loop.

        Args:
          program: what is compiled; its mesh is in force.
          batches: of the program's task.
          evaluate: of the program's task.
          store: open, for the run's checkpoints.
          metadata: of the run, from its task.
          guard: entered; says when to stop.
        """
        self._program, self._config = program, program.config
        self._batches, self._evaluate = batches, evaluate
        self._store, self._metadata, self._guard = store, metadata, guard

    def run(self, start: Start, observer: Observer) -> str:
        """Trains from `start` on, and saves.

        Args:
          start: from `start_run`; its state is consumed.
          observer: notified of what happens; several are one `Observers`.

        Returns:
          `FINISHED`, or the name of the signal that asked to stop: the last state is saved then,
          and the next start of the run goes on from there.

        Raises:
          DivergedError: too many updates in a row were skipped.
          InputError: a checkpoint could not be written.
        """
        config, total = self._config, self._config.training.steps
        self._observer = observer
        self._state, self._step = start.state, start.step
        self._batches.set_state(start.row)
        # A signal during the last evaluation gave it up: it is made now.
        unevaluated = self._step == total and start.metrics == {}
        with self._batches, observer:
            self._window = MetricsWindow(
                peak_flops() * self._program.mesh.size, config.optimizer.max_skipped_in_a_row
            )
            if unevaluated:
                unevaluated = self._held_out() is None
            while self._step < total and not self._guard.should_stop():
                self._train()
                last, evaluation = self._step == total, None
                if last or config.logging.due(self._step):
                    observer.recorded(self._window.record(self._step))
                if last or config.evaluation.due(self._step):
                    evaluation = self._held_out()
                    unevaluated = last and evaluation is None
                if last or config.checkpoint.due(self._step):
                    with self._during("checkpoint"):
                        self._save(evaluation.metrics if evaluation else {})
                    observer.saved(self._step)
            with self._during("checkpoint"):
                if self._step < total:
                    self._save({})
                self._store.wait()
            unfinished = self._step < total or unevaluated
            reason = self._guard.name if unfinished else FINISHED
            observer.stopped(self._step, reason)
        return reason

    def _train(self) -> None:
        """Takes one step; the devices may still be at it afterwards."""
        batch, waited = self._window.fetch(self._batches)
        self._observer.spent("data_wait", waited)
        self._step += 1
        self._observer.step_begins(self._step)
        self._state, metrics = self._program.step(self._state, self._program.place(batch))
        self._window.add(metrics, self._program.task.work(batch))
        self._observer.step_started(self._step, metrics)

    def _held_out(self) -> Evaluation | None:
        """Evaluates; nothing is known if a signal says to stop."""
        with self._window.paused(), self._during("evaluation"):
            parameters = self._program.parameters_of(self._state)
            evaluation = self._evaluate(parameters, self._guard.should_stop)
            if evaluation is not None:
                self._observer.evaluated(self._step, evaluation, parameters)
        return evaluation

    def _save(self, metrics: Mapping[str, float]) -> None:
        metadata = dataclasses.replace(self._metadata, data={"row": self._batches.get_state()})
        parameters = self._program.stored(self._state)
        self._store.save(self._step, parameters, self._state.optimizer, metadata, metrics)

    @contextlib.contextmanager
    def _during(self, activity: Activity) -> Iterator[None]:
        """Measures what is done inside; activities do not overlap."""
        start = time.monotonic()
        yield
        self._observer.spent(activity, time.monotonic() - start)
