"""The registry of implementations, and how one is chosen.

An implementation is a module with the two functions of the op, `grouped_matmul` and
`grouped_feed_forward`, and

    why_not(case: Case | None, platform: str | None) -> str | None

which says why it cannot run a case on a platform, or None if it can. Without a case it speaks of
the platform alone, without a platform of the case alone.

A *named* implementation is asked about the case only, never about the platform: a trace cannot know
where it will be lowered for. Lowering says it then: a kernel for TPUs on a CPU outside of
interpret mode is refused by jax ("Only interpret mode is supported on CPU backend"), while
`jax.export` for TPUs, ahead-of-time compilation and `pltpu.force_tpu_interpret_mode` just work.
`None` has to guess, from `target.platform_in_force`, and takes "xla" where it cannot be sure:
that runs everywhere, on the platform of the lowering.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from pallas_kernels.grouped_matmul.target import Case, partitioned_axes, platform_in_force

_PACKAGE = "pallas_kernels.grouped_matmul"
_KERNELS = ("tpu", "gpu")
# Best first. The reference is never chosen.
_PREFERENCE = (*_KERNELS, "xla")
_NAMES = ("reference", "xla", *_KERNELS)


def _missing(name: str) -> str | None:
    if importlib.util.find_spec(f"{_PACKAGE}.{name}") is None:
        return f"the {name} kernel is not part of this version; use implementation='xla'"
    return None


def _module(name: str) -> ModuleType:
    path = name if name == "reference" else f"{name}.implementation"
    return importlib.import_module(f"{_PACKAGE}.{path}")


def _why_not(name: str, case: Case | None, platform: str | None) -> str | None:
    if name not in _KERNELS:
        return None  # plain XLA runs everything everywhere
    reason: str | None = _missing(name) or _module(name).why_not(case, platform)
    return reason or (None if platform is None else partitioned_axes())


def available_implementations(
    case: Case | None = None, *, platform: str | None = None
) -> dict[str, str | None]:
    """Every known implementation, with None where it can run, or else the reason why not.

    Args:
        case: the call in question, or None for any that an implementation can run.
        platform: "cpu", "gpu" or "tpu"; by default the one in force.
    """
    platform = platform or platform_in_force()
    return {name: _why_not(name, case, platform) for name in _NAMES}


def choose_implementation(
    implementation: str | None = None, case: Case | None = None, *, platform: str | None = None
) -> str:
    """The name of the implementation that will run.

    Args:
        implementation: a name, or None for the best that can run the case on the platform.
        case: the call in question; without one, the answer for None is the best on the platform.
        platform: what None is to be the best for: "cpu", "gpu" or "tpu"; by default the one in
            force (`pallas_kernels.grouped_matmul.target`). Of no influence on a name.

    Raises:
        ValueError: the name is unknown, or the implementation cannot run the case; the message says
            why.
    """
    if implementation is None:
        platform = platform or platform_in_force()
        return next(name for name in _PREFERENCE if _why_not(name, case, platform) is None)
    if implementation not in _NAMES:
        known = ", ".join(map(repr, _NAMES))
        raise ValueError(f"implementation={implementation!r} is unknown; known are {known}")
    reason = _why_not(implementation, case, None)
    if reason is not None:
        raise ValueError(f"implementation={implementation!r} cannot run: {reason}")
    return implementation


def load_implementation(implementation: str | None, case: Case | None = None) -> ModuleType:
    """The module with the `grouped_matmul` and `grouped_feed_forward` that will run."""
    return _module(choose_implementation(implementation, case))
