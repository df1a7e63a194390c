"""Execution of a model: choices that do not change what is computed, beyond rounding.

Two of them do: the tolerance of attention's early exit, and the capacity of an exchange of tokens.
They belong to the identity of a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from modbrick.errors import InputError
from pallas_kernels import grouped_matmul, softmax_attention, stickbreaking_attention

Rematerialisation = Literal["none", "full", "dots", "dots_without_batch", "sublayers", "kernels"]
ExpertParallelism = Literal["gather", "exchange"]
Memory = Literal["device", "host"]


@dataclass(frozen=True)
class ExecutionConfig:
    """Execution of a decoder.

    Attributes:
      rematerialisation: what the forward pass of a layer keeps for the backward pass. `none`: all
        of it; `full`: only the layer's input; `dots`: results of matrix products;
        `dots_without_batch`: of those whose operands share no batch axis; `sublayers`: the residual
        stream before each sublayer, and which experts were chosen, so that nothing is sorted twice;
        `kernels`: also the means of norms, the router logits, and the queries and outputs of
        stick-breaking attention, so that neither attention nor a product with a bank of experts
        runs twice. Parameters that were gathered over fsdp are gathered again, whatever the policy.
      activation_memory: where what the forward pass of a layer keeps waits for the backward pass;
        `host` is for `full` and `sublayers`, and moves the layer's input too.
      optimizer_memory: where the optimizer's moments lie between updates.
      attention: implementation of attention; None: the best that runs here. `reference` and `xla`
        are of both kinds, `tpu` and `gpu` of stick-breaking attention, `splash` and `cudnn` of
        softmax attention.
      attention_tolerance: of the early exit of stick-breaking attention, from 0 (off, exact) to
        below 1: far keys are skipped where less than this of the stick is left for them. The output
        is off by at most that share of the largest value (`pallas_kernels.stickbreaking_attention`
        has the bounds of the gradients). Softmax attention has no such exit.
      dispatch: implementation of expert dispatch; None: the best that runs here.
      expert_parallelism: how tokens reach experts on other devices of the expert axis. `gather`:
        an all-gather of all tokens; `exchange`: an all-to-all of the routed ones.
      exchange_capacity: routed tokens that a device can receive in an all-to-all, in units of what
        it sends; tokens over capacity are dropped and counted. None: all that could ever arrive.
      unroll: layers of a segment unrolled into one iteration of the scan.
      head_chunk: positions of each sequence whose logits exist at a time in training and
        evaluation.

    Examples:
        >>> import modbrick
        >>> slow_and_sure = modbrick.ExecutionConfig(attention="reference", dispatch="reference")
        >>> model = modbrick.load_model("run", execution=slow_and_sure)
        >>> model.execution.dispatch
        'reference'
    """

    rematerialisation: Rematerialisation = "none"
    activation_memory: Memory = "device"
    optimizer_memory: Memory = "device"
    attention: str | None = None
    attention_tolerance: float = 0.0
    dispatch: str | None = None
    expert_parallelism: ExpertParallelism = "gather"
    exchange_capacity: float | None = None
    unroll: int = 1
    head_chunk: int = 128

    def identity(self) -> dict[str, float | None]:
        """Returns, as JSON-able data, what changes the numbers by more than rounding."""
        exchanged = self.expert_parallelism == "exchange"
        return {
            "attention_tolerance": self.attention_tolerance,
            "exchange_capacity": self.exchange_capacity if exchanged else None,
        }

    def __post_init__(self) -> None:
        for name in ("unroll", "head_chunk"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        capacity = self.exchange_capacity
        if capacity is not None and not 0 < capacity < math.inf:
            raise InputError(f"exchange_capacity must be positive or None, got {capacity}")
        if self.activation_memory == "host" and self.rematerialisation not in ("full", "sublayers"):
            raise InputError(
                "activation_memory host is for rematerialisation full or sublayers, which keep "
                f"little; got {self.rematerialisation}"
            )
        if not 0 <= self.attention_tolerance < 1:
            raise InputError(
                "attention_tolerance must be from 0 (no early exit) to below 1, "
                f"got {self.attention_tolerance}"
            )
        # Whether an implementation can run is said where it is called: to ask for the best here
        # would start the backend.
        for name, operations in (
            ("attention", (stickbreaking_attention, softmax_attention)),
            ("dispatch", (grouped_matmul,)),
        ):
            choice = getattr(self, name)
            known = dict.fromkeys(n for operation in operations for n in operation.IMPLEMENTATIONS)
            if choice is not None and choice not in known:
                names = ", ".join(map(repr, known))
                raise InputError(f"execution.{name}: {choice!r} is unknown; known are {names}")
