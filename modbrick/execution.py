"""How a model is run: choices that may change freely without changing what is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modbrick.errors import InputError
from pallas_kernels import grouped_matmul, stickbreaking_attention

Rematerialisation = Literal["none", "full", "dots", "dots_without_batch", "sublayers"]


@dataclass(frozen=True)
class ExecutionConfig:
    """Execution of a decoder.

    Attributes:
      rematerialisation: what the forward pass of a layer keeps for the backward pass. `none`: all
        of it; `full`: only the layer's input; `dots`: results of matrix products;
        `dots_without_batch`: of those whose operands share no batch axis; `sublayers`: the outputs
        of attention and feed-forward.
      attention: implementation of attention (`reference`, `xla`, ...); None: the best that runs
        here.
      dispatch: implementation of expert dispatch; None: the best that runs here.
      unroll: layers of a segment unrolled into one iteration of the scan.
      head_chunk: positions of each sequence whose logits exist at a time in training and
        evaluation.
    """

    rematerialisation: Rematerialisation = "none"
    attention: str | None = None
    dispatch: str | None = None
    unroll: int = 1
    head_chunk: int = 128

    def __post_init__(self) -> None:
        for name in ("unroll", "head_chunk"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, check in (
            ("attention", stickbreaking_attention.selected_implementation),
            ("dispatch", grouped_matmul.choose_implementation),
        ):
            choice = getattr(self, name)
            if choice is None:
                continue  # Picked where it runs: to ask here would start the backend.
            try:
                check(choice)
            except ValueError as error:
                raise InputError(f"execution.{name}: {error}") from None
