"""Sparse expert dispatch on Hopper GPUs (Pallas Mosaic GPU).

Two kernels: `rows` multiplies rows by their experts' weights, reading rows by index and writing
them grouped or by slot; `weight_gradient` sums outer products over each expert's rows. The
input gradient is the first kernel with the weights transposed where they lie in shared memory. The
sum over a token's slots and the gradients of gates are left to XLA, which fuses the gather by slot
into them: the per-slot results are written once, and no sum depends on an order of arrival.

Kept for the backward pass, beyond the arguments: as in `xla`, nothing for `grouped_matmul`, and the
pre-activations [T*K, F] (twice with `gate_weights`) for `grouped_feed_forward`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.custom_batching import sequential_vmap
from jax.typing import DTypeLike

from pallas_kernels.grouped_matmul.gpu.activations import ValueAndSlope, find_kernel_activation
from pallas_kernels.grouped_matmul.gpu.products import (
    PADDING,
    Operands,
    Parts,
    RowOutputs,
    operand_dtype,
    project,
    sum_products,
)
from pallas_kernels.grouped_matmul.gpu.rows import Epilogue
from pallas_kernels.grouped_matmul.hidden_layer import (
    PRE_ACTIVATION_NAME,
    Activation,
    hidden_layer,
)
from pallas_kernels.grouped_matmul.implementations import Case
from pallas_kernels.grouped_matmul.plan import RoutingPlan
from pallas_kernels.grouped_matmul.rows import flatten_rows, gates_by_row, row_index, take_rows
from pallas_kernels.target import no_hopper_gpu

Banks = tuple[Array, ...]
_DTYPES = ("bfloat16", "float16", "float32")


def unsupported(case: Case | None, platform: str | None) -> str | None:
    """Says why the kernels cannot run a case; see `pallas_kernels.implementations`."""
    if platform not in (None, "gpu"):
        return f"its kernels are for NVIDIA's Hopper GPUs, and the platform is {platform!r}"
    if (other := no_hopper_gpu()) is not None:
        return other
    if case is None:
        return None
    for name, dtype in (("inputs", case.input_dtype), ("weights", case.weight_dtype)):
        if jnp.dtype(dtype).name not in _DTYPES:
            return f"its kernels take {', '.join(_DTYPES)}, and {name} are {jnp.dtype(dtype).name}"
    if not case.tokens * case.width * case.hidden:
        return f"T={case.tokens}, D={case.width} and F={case.hidden} must not be 0"
    return None


def _routed(plan: RoutingPlan) -> Array:
    """Boolean [R, 1]; which grouped rows have an expert."""
    return (jnp.arange(plan.num_slots, dtype=jnp.int32) < plan.group_offsets[-1])[:, None]


def _index(plan: RoutingPlan, layout: str) -> Array | None:
    return None if layout == "grouped" else row_index(plan, layout)


def _same(
    sums: tuple[Array, ...], _: tuple[Array, ...], __: Array | None
) -> tuple[tuple[Array, ...], None]:
    return sums, None


def _pick(grouped: Array, plan: RoutingPlan, k: int) -> Array:
    """The grouped rows of every token's choice k, [T, N] in float32, zero without an expert."""
    slots = plan.inverse.reshape(plan.num_tokens, -1)[:, k]
    routed = slots < plan.group_offsets[-1]
    return jnp.where(routed[:, None], take_rows(grouped, slots).astype(jnp.float32), 0)


def _sum_slots(grouped: Array, plan: RoutingPlan, gates: Array | None) -> Array:
    """The sum of a token's grouped rows, [T, N] in float32, weighted by gates [T, K]."""
    total = jnp.zeros((plan.num_tokens, grouped.shape[1]), jnp.float32)
    for k in range(plan.experts_per_token):
        picked = _pick(grouped, plan, k)
        total += picked if gates is None else picked * gates[:, k, None].astype(jnp.float32)
    return total


def _operands(*arrays: Array, precision: jax.lax.Precision) -> Operands:
    return Operands(operand_dtype(*(array.dtype for array in arrays)), precision)


def _expert_of_slot(plan: RoutingPlan) -> Array:
    """int32 [T, K]; any expert for slots without."""
    expert = jnp.minimum(take_rows(plan.expert_of_row, plan.inverse), plan.num_experts - 1)
    return expert.reshape(plan.num_tokens, -1)


# --------------------------------------------------------------------------------- grouped_matmul


def _matmul_forward(
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
    operands = _operands(inputs, weights, precision=precision)
    rows = flatten_rows(inputs, input_layout)
    outputs = RowOutputs(
        output_dtype,
        _same,
        index=plan.order if output_layout == "slots" else None,
        zero_rest=output_layout != "tokens",
    )
    (y,), _ = project(
        plan,
        operands,
        ((operands.prepare(rows), (operands.prepare(weights),)),),
        outputs,
        row_index=_index(plan, input_layout),
        bias=bias,
    )
    y = y[:, : weights.shape[2]]
    if output_layout == "tokens":
        return _sum_slots(y, plan, gates).astype(output_dtype)
    if output_layout == "slots":
        return y.reshape(plan.num_tokens, plan.experts_per_token, -1)
    return y


def _matmul_backward(
    inputs: Array,
    weights: Array,
    plan: RoutingPlan,
    gates: Array | None,
    bias: Array | None,
    cotangent: Array,
    *,
    input_layout: str,
    output_layout: str,
    precision: jax.lax.Precision,
) -> tuple[Array, Array, Array | None, Array | None]:
    operands = _operands(inputs, weights, precision=precision)
    width, index = weights.shape[1], _index(plan, input_layout)
    rows = flatten_rows(inputs, input_layout)
    dy, dy_index = flatten_rows(cotangent, output_layout), _index(plan, output_layout)
    dy_parts = operands.prepare(dy)
    # Without gates, the gradient of a slot's or a grouped row's input is final.
    final = gates is None and input_layout != "tokens"
    (dx,), _ = project(
        plan,
        operands,
        ((dy_parts, (operands.prepare(weights),)),),
        RowOutputs(inputs.dtype, _same, index=index if final else None, zero_rest=final),
        row_index=dy_index,
        transposed=True,
    )
    dx = dx[:, :width]
    scale = None if gates is None else gates_by_row(gates, plan, jnp.float32)
    dgates = None
    if gates is not None:
        dgates = _gate_gradients(dx, rows, plan, input_layout)
        if bias is not None:
            dgates += jnp.sum(
                dy[:, None].astype(jnp.float32) * take_rows(bias, _expert_of_slot(plan)), axis=2
            )
        dgates = jnp.where(plan.slot_is_routed.reshape(gates.shape), dgates, 0).astype(gates.dtype)
    dbias = None
    if bias is not None:
        column = jnp.ones(plan.num_slots, jnp.float32) if scale is None else scale
        dbias = sum_products(
            plan,
            operands,
            operands.prepare(column.astype(dy.dtype)[:, None]),
            dy_parts,
            bias.dtype,
            left_index=None,
            right_index=dy_index,
        )[:, 0, : bias.shape[1]]
    left, left_index = operands.prepare(rows), index
    if scale is not None and len(left) > 1:
        # Scaling a part would round it, so the whole rows are scaled before they are split.
        grouped = rows if index is None else take_rows(rows, index)
        left, left_index, scale = operands.prepare(grouped * scale[:, None]), None, None
    dweights = sum_products(
        plan,
        operands,
        left,
        dy_parts,
        weights.dtype,
        left_index=left_index,
        right_index=dy_index,
        scale=scale,
    )[:, : weights.shape[1], : weights.shape[2]]
    if not final:
        dx = _input_gradients(dx, plan, input_layout, gates, scale)
    return dx.astype(inputs.dtype).reshape(inputs.shape), dweights, dgates, dbias


def _gate_gradients(dx: Array, rows: Array, plan: RoutingPlan, layout: str) -> Array:
    """[T, K] in float32: <dy, x W> as <dy W^T, x>, from the grouped rows of dy W^T."""
    if layout == "tokens":
        x = rows.astype(jnp.float32)
        return jnp.stack(
            [jnp.sum(_pick(dx, plan, k) * x, axis=1) for k in range(plan.experts_per_token)], axis=1
        )
    slots = take_rows(dx, plan.inverse).astype(jnp.float32)
    x = rows if layout == "slots" else take_rows(rows, plan.inverse)
    return jnp.sum(slots * x, axis=1).reshape(plan.num_tokens, -1)


def _input_gradients(
    dx: Array, plan: RoutingPlan, layout: str, gates: Array | None, scale: Array | None
) -> Array:
    """From the grouped rows of dy W^T, before the gates."""
    if layout == "tokens":
        return _sum_slots(dx, plan, gates)
    assert gates is not None
    scale = gates_by_row(gates, plan, jnp.float32) if scale is None else scale
    dx = jnp.where(_routed(plan), dx * scale[:, None], 0)
    return dx if layout == "grouped" else take_rows(dx, plan.inverse)


# ---------------------------------------------------------------------------- grouped_feed_forward


def _hidden_epilogue(activation: ValueAndSlope, keep: bool) -> Epilogue:
    """The hidden layer, and if wanted the pre-activations, from the pre-activations."""

    def epilogue(
        pre: tuple[Array, ...], _: tuple[Array, ...], __: Array | None
    ) -> tuple[tuple[Array, ...], None]:
        hidden = hidden_layer(pre, lambda x: activation(x)[0])
        return ((hidden, *pre) if keep else (hidden,)), None

    return epilogue


def _hidden_gradient_epilogue(activation: ValueAndSlope) -> Epilogue:
    """From dy W_down^T to the gated hidden layer and the gradients of the pre-activations.

    What is summed up over the columns is the gradient of the gate: <dy, hidden W_down>.
    """

    def epilogue(
        sums: tuple[Array, ...], pre: tuple[Array, ...], gate: Array | None
    ) -> tuple[tuple[Array, ...], Array]:
        assert gate is not None
        (dhidden,) = sums
        value, slope = activation(pre[-1])
        scaled = dhidden * gate
        if len(pre) == 1:
            return (value * gate, scaled * slope), dhidden * value
        hidden = value * pre[0]
        return (hidden * gate, scaled * value, scaled * pre[0] * slope), dhidden * hidden

    return epilogue


def _feed_forward_forward(
    inputs: Array,
    banks: Banks,
    plan: RoutingPlan,
    gates: Array,
    *,
    activation: Activation,
    precision: jax.lax.Precision,
    keep: bool,
) -> tuple[Array, tuple[Array, ...]]:
    """The outputs [T, D] and, to keep, the grouped pre-activations [> R, F padded].

    `banks` is (down, up[, gate]).
    """
    operands = _operands(inputs, *banks, precision=precision)
    x, down = operands.prepare(inputs), operands.prepare(banks[0])
    known, count = find_kernel_activation(activation), len(banks) - 1
    fused = known is not None
    first, _ = project(
        plan,
        operands,
        ((x, tuple(operands.prepare(bank) for bank in banks[1:])),),
        RowOutputs(
            inputs.dtype,
            _same if known is None else _hidden_epilogue(known, keep),
            count=count if not fused else 1 + count if keep else 1,
            padding=PADDING,
        ),
        row_index=plan.token_of_row,
    )
    if fused:
        hidden, pre = first[0], first[1:]
    else:
        pre = first
        wide = tuple(p.astype(jnp.float32) for p in pre)
        hidden = hidden_layer(wide, activation).astype(inputs.dtype)
    (y,), _ = project(
        plan,
        operands,
        ((operands.prepare(hidden), (down,)),),
        RowOutputs(inputs.dtype, _same),
        row_index=None,
    )
    outputs = _sum_slots(y[:, : inputs.shape[1]], plan, gates)
    return outputs.astype(inputs.dtype), pre if keep else ()


def _hidden_gradients(
    plan: RoutingPlan,
    operands: Operands,
    dy: Parts,
    down: Parts,
    gates: Array,
    pre: tuple[Array, ...],
    activation: Activation,
) -> tuple[Array, tuple[Array, ...], Array]:
    """The gated hidden layer, the pre-activations' gradients, and the gates', by grouped row."""
    known, dtype = find_kernel_activation(activation), pre[0].dtype
    gate = gates_by_row(gates, plan, jnp.float32)
    sums, token = ((dy, (down,)),), plan.token_of_row
    if known is not None:
        outputs = RowOutputs(
            dtype,
            _hidden_gradient_epilogue(known),
            count=1 + len(pre),
            beside=pre,
            factor=gate,
            sums=True,
        )
        found, dgate = project(plan, operands, sums, outputs, row_index=token, transposed=True)
        assert dgate is not None
        return found[0], found[1:], dgate
    (dhidden,), _ = project(
        plan,
        operands,
        sums,
        RowOutputs(jnp.float32, _same),
        row_index=token,
        transposed=True,
    )
    wide = tuple(p[: plan.num_slots].astype(jnp.float32) for p in pre)
    hidden, pull = jax.vjp(lambda *wide: hidden_layer(wide, activation), *wide)
    dpre = tuple(d.astype(dtype) for d in pull(dhidden * gate[:, None]))
    scaled = (hidden * gate[:, None]).astype(dtype)
    return scaled, dpre, jnp.sum(dhidden * hidden, axis=1)


def _feed_forward_backward(
    inputs: Array,
    banks: Banks,
    plan: RoutingPlan,
    gates: Array,
    pre_activations: tuple[Array, ...],
    cotangent: Array,
    *,
    activation: Activation,
    precision: jax.lax.Precision,
) -> tuple[Array, Banks, Array]:
    operands = _operands(inputs, *banks, precision=precision)
    dy = operands.prepare(cotangent)
    parts: tuple[Parts, ...] = tuple(operands.prepare(bank) for bank in banks)
    hidden, dhidden, dgate = _hidden_gradients(
        plan, operands, dy, parts[0], gates, pre_activations, activation
    )
    dpre = tuple(operands.prepare(d) for d in dhidden)
    (dx,), _ = project(
        plan,
        operands,
        tuple((d, (bank,)) for d, bank in zip(dpre, parts[1:], strict=True)),
        RowOutputs(inputs.dtype, _same),
        row_index=None,
        transposed=True,
    )

    def gradient(bank: Array, left: Parts, right: Parts, **indices: Array | None) -> Array:
        sums = sum_products(plan, operands, left, right, bank.dtype, **indices)
        return sums[:, : bank.shape[1], : bank.shape[2]]

    token = plan.token_of_row
    scaled = operands.prepare(hidden)
    dbanks: Banks = (gradient(banks[0], scaled, dy, left_index=None, right_index=token),)
    x = operands.prepare(inputs)
    for bank, d in zip(banks[1:], dpre, strict=True):
        dbanks += (gradient(bank, x, d, left_index=token, right_index=None),)
    of_slot = jnp.where(plan.slot_is_routed, take_rows(dgate, plan.inverse), 0)
    dinputs = _sum_slots(dx[:, : inputs.shape[1]], plan, None).astype(inputs.dtype)
    return dinputs, dbanks, of_slot.reshape(gates.shape).astype(gates.dtype)


# -------------------------------------------------------------------------------- differentiation


def _one_by_one(function: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """Calls a computation of kernels, which have no batched form, so that vmap loops over it."""
    return sequential_vmap(functools.partial(function, **settings))(*args)


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
    outputs: Array = _one_by_one(
        _matmul_forward,
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


def _matmul_vjp_forward(*args: Any) -> tuple[Array, tuple[Any, ...]]:
    return _matmul(*args), args[:5]


def _matmul_vjp_backward(
    input_layout: str,
    output_layout: str,
    precision: jax.lax.Precision,
    output_dtype: DTypeLike,
    saved: tuple[Any, ...],
    cotangent: Array,
) -> tuple[Any, ...]:
    del output_dtype
    dinputs, dweights, dgates, dbias = _one_by_one(
        _matmul_backward,
        *saved,
        cotangent,
        input_layout=input_layout,
        output_layout=output_layout,
        precision=precision,
    )
    return dinputs, dweights, None, dgates, dbias


_matmul.defvjp(_matmul_vjp_forward, _matmul_vjp_backward)


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
    keep: bool,
    inputs: Array,
    banks: Banks,
    plan: RoutingPlan,
    gates: Array,
    activation: Activation,
    precision: jax.lax.Precision,
) -> tuple[Array, tuple[Array, ...]]:
    result: tuple[Array, tuple[Array, ...]] = _one_by_one(
        _feed_forward_forward,
        inputs,
        banks,
        plan,
        gates,
        activation=activation,
        precision=precision,
        keep=keep,
    )
    return result


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _feed_forward(
    inputs: Array,
    banks: Banks,
    plan: RoutingPlan,
    gates: Array,
    activation: Activation,
    precision: jax.lax.Precision,
) -> Array:
    return _feed_forward_rows(False, inputs, banks, plan, gates, activation, precision)[0]


def _feed_forward_vjp_forward(*args: Any) -> tuple[Array, tuple[Any, ...]]:
    outputs, pre = _feed_forward_rows(True, *args)
    return outputs, (*args[:4], checkpoint_name(pre, PRE_ACTIVATION_NAME))


def _feed_forward_vjp_backward(
    activation: Activation,
    precision: jax.lax.Precision,
    saved: tuple[Any, ...],
    cotangent: Array,
) -> tuple[Any, ...]:
    dinputs, dbanks, dgates = _one_by_one(
        _feed_forward_backward, *saved, cotangent, activation=activation, precision=precision
    )
    return dinputs, dbanks, None, dgates


_feed_forward.defvjp(_feed_forward_vjp_forward, _feed_forward_vjp_backward)


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
