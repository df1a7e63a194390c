"""Being asked to stop: SIGTERM, Ctrl-C or a closed terminal ends a run after the step in hand.

Everything is saved then.

In a run of several processes any one may be asked, and all have to stop after the same step. Each
puts what it was asked into a number on its devices, and the largest of them, reduced beside the
step, is what all of them read at the next one. `jax.experimental.multihost_utils` has
`reached_preemption_sync_point` for that; it knows SIGTERM only, looks for it once a second, and
keeps a process from ending at a second SIGTERM.
"""

from __future__ import annotations

import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: stopped early after saving; start me again


class PreemptionGuard:
    """While entered, remembers the first SIGTERM, SIGINT or SIGHUP instead of dying of it.

    A second one acts as it always does, so that a stuck run can still be stopped. Under `nohup`,
    SIGHUP stays ignored.
    """

    def __init__(self, mesh: Mesh | None = None) -> None:
        """Makes a guard.

        Args:
          mesh: of all devices of a run of several processes; None: of this process alone.
        """
        self.signal: signal.Signals | None = None
        self._previous: dict[int, object] = {}
        self._votes = Votes(mesh) if mesh is not None and jax.process_count() > 1 else None

    @property
    def name(self) -> str:
        """Name of the signal that asked."""
        return self.signal.name if self.signal else "nothing"

    def should_stop(self) -> bool:
        """Returns whether the run was asked to stop: the same in every process.

        In a run of several processes all of them call it equally often, and it waits for the
        devices to have done what was asked of them before the call before.
        """
        if self._votes is None:
            return self.signal is not None
        agreed = self._votes.exchange(int(self.signal or 0))
        if agreed:
            self.signal = signal.Signals(agreed)
        return agreed != 0

    def __enter__(self) -> PreemptionGuard:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()


class Votes:
    """The largest number that any process has, without waiting for it: known one call later.

    Args:
      mesh: of all devices.
    """

    def __init__(self, mesh: Mesh):
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._ballots: dict[int, jax.Array] = {}
        self._cast = self._largest(self._ballot(0))

    def exchange(self, number: int) -> int:
        """Hands over this process's number; returns the largest of the call before."""
        largest = int(self._cast)
        self._cast = self._largest(self._ballot(number))
        return largest

    def _ballot(self, number: int) -> jax.Array:
        if number not in self._ballots:
            self._ballots[number] = jax.make_array_from_callback(
                (self._sharding.mesh.size,),
                self._sharding,
                lambda _: np.full((1,), number, np.int32),
            )
        return self._ballots[number]
