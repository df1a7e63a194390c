"""Sparse expert dispatch in plain XLA: the default where no kernel applies.

On CPUs it runs `loops`: tiles of useful rows only, because there `jax.lax.ragged_dot` multiplies
every row by every expert. On other platforms it runs `ragged`, on `jax.lax.ragged_dot`, which XLA
lowers to grouped kernels there. The platform is that of the lowering
(`jax.lax.platform_dependent`), so exporting for a TPU on a CPU machine takes the TPU's path.

What the backward pass keeps beyond the arguments:
- `grouped_matmul`: nothing. The gradient of the gates comes from the product that the gradient of
  the inputs needs anyway: <dy, x W> = <dy W^T, x>.
- `grouped_feed_forward`: the pre-activations, [T*K and a tile, F] in the dtype of the inputs (twice
  with `gate_weights`), under the name `PRE_ACTIVATION_NAME` for rematerialisation policies. The
  activation is computed again; the gradient of the gates is <dy down^T, hidden>.

Under `jax.vmap` the batch elements run one after another: a batched loop bound would otherwise make
every element pay for the largest, and a batched branch for all branches.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import sequential_vmap
from jax.typing import DTypeLike

from pallas_kernels.grouped_matmul.hidden_layer import PRE_ACTIVATION_NAME, Activation
from pallas_kernels.grouped_matmul.plan import RoutingPlan
from pallas_kernels.grouped_matmul.xla import loops, ragged


def _on_platform(name: str, *args: Any, **settings: Any) -> Any:
    """Runs a computation that `loops` and `ragged` share, on the one for the platform."""
    on_cpu = functools.partial(getattr(loops, name), **settings)
    elsewhere = functools.partial(getattr(ragged, name), **settings)

    @sequential_vmap
    def compute(*args: Any) -> Any:
        return jax.lax.platform_dependent(*args, cpu=on_cpu, default=elsewhere)

    return compute(*args)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
def _matmul(
    inputs: Array,
    weights: Array,
    plan: RoutingPlan,
    gates: Array | None,
    bias: Array | None,
    input_layout: str,
    output_layout: str,
    precision: jax.lax.Precision,
    output_dtype: DTypeLike,
) -> Array:
    outputs: Array = _on_platform(
        "matmul_forward",
        inputs,
        weights,
        plan,
        gates,
        bias,
        input_layout=input_layout,
        output_layout=output_layout,
        precision=precision,
        output_dtype=output_dtype,
    )
    return outputs


def _matmul_forward(*args: Any) -> tuple[Array, tuple[Any, ...]]:
    return _matmul(*args), args[:5]


def _matmul_backward(
    input_layout: str,
    output_layout: str,
    precision: jax.lax.Precision,
    output_dtype: DTypeLike,
    saved: tuple[Any, ...],
    cotangent: Array,
) -> tuple[Any, ...]:
    del output_dtype
    dinputs, dweights, dgates, dbias = _on_platform(
        "matmul_backward",
        *saved,
        cotangent,
        input_layout=input_layout,
        output_layout=output_layout,
        precision=precision,
    )
    return dinputs, dweights, None, dgates, dbias


_matmul.defvjp(_matmul_forward, _matmul_backward)


def grouped_matmul(
    inputs: Array,
    weights: Array,
    plan: RoutingPlan,
    gates: Array | None,
    bias: Array | None,
    *,
    input_layout: str,
    output_layout: str,
    precision: jax.lax.Precision,
    output_dtype: DTypeLike,
) -> Array:
    """See `pallas_kernels.grouped_matmul.grouped_matmul`; arguments are validated already."""
    return _matmul(
        inputs, weights, plan, gates, bias, input_layout, output_layout, precision, output_dtype
    )


def _feed_forward_rows(
    inputs: Array,
    banks: tuple[Array, ...],
    plan: RoutingPlan,
    gates: Array,
    activation: Activation,
    precision: jax.lax.Precision,
) -> tuple[Array, tuple[Array, ...]]:
    result: tuple[Array, tuple[Array, ...]] = _on_platform(
        "feed_forward_forward",
        inputs,
        banks,
        plan,
        gates,
        activation=activation,
        precision=precision,
    )
    return result


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _feed_forward(
    inputs: Array,
    banks: tuple[Array, ...],
    plan: RoutingPlan,
    gates: Array,
    activation: Activation,
    precision: jax.lax.Precision,
) -> Array:
    return _feed_forward_rows(inputs, banks, plan, gates, activation, precision)[0]


def _feed_forward_forward(*args: Any) -> tuple[Array, tuple[Any, ...]]:
    outputs, pre = _feed_forward_rows(*args)
    return outputs, (*args[:4], checkpoint_name(pre, PRE_ACTIVATION_NAME))


def _feed_forward_backward(
    activation: Activation,
    precision: jax.lax.Precision,
    saved: tuple[Any, ...],
    cotangent: Array,
) -> tuple[Any, ...]:
    dinputs, dbanks, dgates = _on_platform(
        "feed_forward_backward", *saved, cotangent, activation=activation, precision=precision
    )
    return dinputs, dbanks, None, dgates


_feed_forward.defvjp(_feed_forward_forward, _feed_forward_backward)


def grouped_feed_forward(
    inputs: Array,
    up: Array,
    down: Array,
    plan: RoutingPlan,
    gates: Array,
    gate_weights: Array | None,
    *,
    activation: Activation,
    precision: jax.lax.Precision,
) -> Array:
    """See `pallas_kernels.grouped_matmul.grouped_feed_forward`; arguments are validated already."""
    banks = (down, up) if gate_weights is None else (down, up, gate_weights)
    return _feed_forward(inputs, banks, plan, gates, activation, precision)
