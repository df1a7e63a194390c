"""What share of the peak our kernels reach, as their compiled schedules say.

`rates.json` holds, by generation and part of a layer, the useful operations per second of the
kernels over the peak of the device; `measure_rates` finds them from the compilers' schedules
(`pallas_kernels.compile_report`: the largest of bundles over clock, bytes over bandwidth, copies,
and operations over the peak). What kernels recompute, pad or mask is thus in the rate.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from modbrick.errors import InputError
from modbrick.planning import rate_programs
from modbrick.planning.topology import GENERATIONS
from pallas_kernels.compile_report.program import ProgramReference
from pallas_kernels.compile_report.tpu_report import TpuReport, tpu_reports

FILE = "rates.json"


@dataclasses.dataclass(frozen=True)
class Rate:
    """Shares of the peak, in useful operations, of one part at one shape.

    Attributes:
      part: `feed_forward`, `projections` or `attention`.
      shape: what it was measured at.
      forward, backward: shares; a backward pass has twice the useful operations.
    """

    part: str
    shape: dict[str, int]
    forward: float
    backward: float

    def __post_init__(self) -> None:
        for name in ("forward", "backward"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"rate {name} must be in (0, 1], got {getattr(self, name)}")


@functools.cache
def known_rates(generation: str) -> tuple[Rate, ...]:
    """Returns what was measured for a generation.

    Raises:
      InputError: nothing was.
    """
    data = json.loads((resources.files("modbrick.planning") / FILE).read_text())
    rates = data["generations"].get(generation)
    if rates is None:
        raise InputError(
            f"the kernels' rates on {generation} are not measured: known are "
            f"{', '.join(sorted(data['generations']))}"
        )
    return tuple(Rate(**rate) for rate in rates)


def nearest_rate(generation: str, part: str, shape: Mapping[str, int]) -> Rate:
    """Returns the rate at the shape nearest to this one, by ratios of its sizes.

    Raises:
      InputError: none is measured for this part.
    """
    rates = [rate for rate in known_rates(generation) if rate.part == part]
    if not rates:
        raise InputError(f"the kernels' rate of {part} on {generation} is not measured")

    def distance(rate: Rate) -> float:
        return sum(
            abs(math.log((size + 1) / (rate.shape.get(name, 0) + 1)))
            for name, size in shape.items()
        )

    return min(rates, key=distance)


def measure_rates(
    generation: str,
    shapes: Mapping[str, list[dict[str, int]]],
    on_done: Callable[[], None] | None = None,
) -> list[Rate]:
    """Compiles the parts at these shapes, and returns their rates from the kernels' schedules.

    Raises:
      RuntimeError: the compiler refuses a part.
    """
    asked = [(part, shape) for part, of_part in shapes.items() for shape in of_part]
    reports = tpu_reports(
        generation,
        [ProgramReference(f"{rate_programs.__name__}:{part}", shape) for part, shape in asked],
        on_done,
    )
    rates = []
    for (part, shape), report in zip(asked, reports, strict=True):
        if not isinstance(report, TpuReport):
            raise RuntimeError(f"{part} {shape} on {generation}: {report}")
        rates.append(_rate(generation, part, shape, report))
    return rates


def _rate(generation: str, part: str, shape: dict[str, int], report: TpuReport) -> Rate:
    seconds = {"forward": 0.0, "backward": 0.0}
    for kernel in report.kernels:
        backward = kernel.name.startswith("transpose") or any(
            word in kernel.name for word in ("gradient", "backward")
        )
        seconds["backward" if backward else "forward"] += kernel.predicted_seconds * kernel.calls
    flops = rate_programs.useful_flops(part, shape)
    peak = GENERATIONS[generation].peak_flops
    return Rate(
        part,
        shape,
        forward=flops / (seconds["forward"] * peak),
        backward=2 * flops / (seconds["backward"] * peak),
    )


def to_plain(rates: Mapping[str, list[Rate]], versions: Mapping[str, str]) -> dict[str, Any]:
    """Returns what `rates.json` holds."""
    return {
        "versions": dict(versions),
        "generations": {
            name: [dataclasses.asdict(rate) for rate in of_generation]
            for name, of_generation in rates.items()
        },
    }
