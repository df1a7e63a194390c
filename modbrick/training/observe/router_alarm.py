"""Alarm about routers that send nearly everything to a few experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modbrick.training.run_config import RunConfig

QUIET_STEPS = 20
"""Steps of a run, and all of its warm-up, in which routers may still find their way."""
SHOWN = 3
REMEDY = "raise objective.load_balancing, or lower optimizer.learning_rate"


class RouterAlarm:
    """Looks through records for layers whose routers collapsed; `RouterHealth` says which have.

    Attributes:
      collapsed: the layers in the last record, as `ROUTER layer N`; none in the quiet steps.

    Args:
      quiet_steps: of the run in which nothing is said; None: all of it.
    """

    def __init__(self, quiet_steps: int | None = QUIET_STEPS):
        self._quiet = quiet_steps
        self.collapsed: tuple[str, ...] = ()

    @classmethod
    def of_run(cls, config: RunConfig) -> RouterAlarm:
        """Returns the alarm of a run; one that is to use few experts has none."""
        if config.objective.concentration != 0.0:
            return cls(None)
        return cls(max(QUIET_STEPS, config.optimizer.schedule.warm_up_steps))

    def hear(self, record: Mapping[str, Any]) -> str | None:
        """Returns a line if other layers are collapsed than in the record before, else None."""
        if self._quiet is None or record["step"] <= self._quiet:
            return None
        found = dict(_collapsed(record.get("routers", {})))
        before, self.collapsed = self.collapsed, tuple(found)
        if set(before) == set(found):
            return None
        if not found:
            return "routers: every layer uses all its experts again"
        shown = [f"{name} ({text})" for name, text in found.items()][:SHOWN]
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        return f"routers collapsed: {', '.join(shown + more)}; {REMEDY}"


def _collapsed(routers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the layers that collapsed, with what is wrong with each."""
    for name, health in routers.items():
        layers = health.get("layers", {})
        for layer, collapsed in enumerate(layers.get("collapsed", ())):
            if collapsed:
                dead, of = layers["dead_experts"][layer], len(layers["load"][layer])
                entropy = layers["load_entropy"][layer]
                yield (
                    f"{name} layer {layer}",
                    f"{dead:.0f} of {of} experts dead, load entropy {entropy:.2f}",
                )
