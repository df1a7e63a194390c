"""The implementations of sparse expert dispatch, and what of a call decides which can run."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
from jax import Array

from pallas_kernels.implementations import Implementation, Registry

Operation = Literal["grouped_matmul", "grouped_feed_forward"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of the op, as far as it is known statically.

    Attributes:
        operation: which of the two functions.
        input_dtype: of the inputs.
        weight_dtype: of the weights (of `up` for feed-forward).
        tokens: T.
        experts_per_token: K.
        experts: E.
        width: D, of the inputs.
        hidden: F, of the outputs of `grouped_matmul` and of the hidden layer of feed-forward.
        input_layout: of `grouped_matmul`; "tokens" for feed-forward.
        output_layout: of `grouped_matmul`; "tokens" for feed-forward.
        biased: whether there is a bias.
        gated: whether there are `gate_weights`.
        precision: of the products, resolved.
    """

    operation: Operation
    input_dtype: jax.numpy.dtype
    weight_dtype: jax.numpy.dtype
    tokens: int
    experts_per_token: int
    experts: int
    width: int
    hidden: int
    input_layout: str = "tokens"
    output_layout: str = "tokens"
    biased: bool = False
    gated: bool = False
    precision: jax.lax.Precision = jax.lax.Precision.DEFAULT


def case_of(
    operation: Operation,
    inputs: Array,
    weights: Array,
    shape: tuple[int, int, int],
    **settings: object,
) -> Case:
    """The case of a call with `weights` [E, D, F]; `shape` is (T, K, E)."""
    tokens, k, experts = shape
    return Case(
        operation,
        inputs.dtype,
        weights.dtype,
        tokens,
        k,
        experts,
        weights.shape[1],
        weights.shape[2],
        **settings,  # type: ignore[arg-type]
    )


REGISTRY = Registry[Case](
    {
        "reference": Implementation("pallas_kernels.grouped_matmul.reference"),
        "xla": Implementation("pallas_kernels.grouped_matmul.xla.implementation"),
        "tpu": Implementation("pallas_kernels.grouped_matmul.tpu.implementation", "tpu"),
        "gpu": Implementation("pallas_kernels.grouped_matmul.gpu.implementation", "gpu"),
    }
)
IMPLEMENTATIONS = REGISTRY.names
available_implementations = REGISTRY.available_implementations
choose_implementation = REGISTRY.choose_implementation
