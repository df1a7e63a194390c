"""Which implementations there are, and which one runs."""

from __future__ import annotations

IMPLEMENTATIONS = ("reference", "xla", "tpu", "gpu")

_UNAVAILABLE = {
    "tpu": "there is no Pallas kernel for TPUs yet",
    "gpu": "there is no Pallas kernel for GPUs yet",
}


def selected_implementation(implementation: str | None = None) -> str:
    """Returns the name of the implementation that runs for this choice.

    Args:
      implementation: a name of `IMPLEMENTATIONS`, or None for the best one that can run here.

    Raises:
      ValueError: the name is unknown, or that implementation cannot run; the message says why.
    """
    if implementation is None:
        return "xla"
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}")
    if implementation in _UNAVAILABLE:
        raise ValueError(
            f"implementation {implementation!r} cannot run: {_UNAVAILABLE[implementation]}; "
            "use 'xla', or None to pick the best that can"
        )
    return implementation
