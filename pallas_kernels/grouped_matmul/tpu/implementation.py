"""Sparse expert dispatch on TPUs, in Pallas (Mosaic) kernels.

Rows are fetched by index, one DMA each, from the packed, ungrouped inputs (`rows`), while the
products of earlier rows run; nothing of T*K rows is gathered in HBM, and nothing is padded to a
capacity. Products leave grouped rows; `ungroup` fetches those of each token and sums them in a
fixed order. docs/kernels/grouped_matmul.md has the algorithm and the figures.

What the backward pass keeps: the arguments, inputs in the form of the fetch. Hidden layers are
computed again, and the gradient of a gate is the product of the row's input with the gradient of
its input, before the gate: <dy W^T, x> = <dy, x W>.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import sequential_vmap
from jax.typing import DTypeLike

from pallas_kernels.grouped_matmul.hidden_layer import Activation, hidden_layer
from pallas_kernels.grouped_matmul.implementations import Case
from pallas_kernels.grouped_matmul.plan import RoutingPlan
from pallas_kernels.grouped_matmul.rows import flatten_rows, row_index, take_rows
from pallas_kernels.grouped_matmul.tpu.block_sizes import (
    TOO_SMALL,
    BlockSizes,
    block_sizes,
    cores_in_force,
    vmem_limit,
)
from pallas_kernels.grouped_matmul.tpu.feed_forward import hidden_layer_gradients, hidden_pieces
from pallas_kernels.grouped_matmul.tpu.matmul import (
    Product,
    bank_budget,
    expert_products,
    in_pieces,
    weight_gradient,
)
from pallas_kernels.grouped_matmul.tpu.matmul_gradients import footprint, matmul_gradients
from pallas_kernels.grouped_matmul.tpu.rows import (
    LANES,
    ROW_MULTIPLE,
    by_choice,
    pack_rows,
    round_packed,
    round_up,
)
from pallas_kernels.grouped_matmul.tpu.tiles import Rows
from pallas_kernels.grouped_matmul.tpu.ungroup import ungroup_rows
from pallas_kernels.grouped_matmul.tpu.weight_stationary import (
    Footprint,
    feed_forward,
    feed_forward_gradients,
)
from pallas_kernels.grouped_matmul.tpu.work_list import WorkList, work_list
from pallas_kernels.target import device_kind_in_force

Arrays = tuple[Array, ...]
_DTYPES = ("float32", "bfloat16")


def unsupported(case: Case | None, platform: str | None) -> str | None:
    """Says why the kernels cannot run a case; see `pallas_kernels.implementations`."""
    if platform not in (None, "tpu"):
        return f"its kernels are for TPUs, and the platform is {platform!r}"
    if platform is not None and device_kind_in_force() in TOO_SMALL:
        return f"its kernels need more VMEM than a {device_kind_in_force()} has"
    if case is None:
        return None
    for name, dtype in (("inputs", case.input_dtype), ("weights", case.weight_dtype)):
        if dtype.name not in _DTYPES:
            return f"{name} must be {' or '.join(_DTYPES)} for its kernels, got {dtype.name}"
    return _too_deep(case)


def _too_deep(case: Case) -> str | None:
    """Returns why the sums of a case do not fit into VMEM, or None.

    Sums over a multiple of 1024 can be cut into pieces, unless an activation follows; results for
    fetching rows from come in blocks of 1024 columns, hidden layers in blocks of 128.
    """
    size = case.weight_dtype.itemsize
    deepest = bank_budget() // (size * ROW_MULTIPLE)
    for name, depth in (("D", case.width), ("F", case.hidden)):
        if depth > deepest and depth % ROW_MULTIPLE:
            return f"{name}={depth} above {deepest} must be a multiple of {ROW_MULTIPLE}"
    if case.operation == "grouped_feed_forward":
        deepest = bank_budget() // (size * LANES * (3 if case.gated else 2))
        if case.width > deepest:
            return f"D={case.width} is above {deepest}, the most that VMEM holds blocks for"
    return None


def _readable(x: Array, layout: str) -> Array:
    """An array in any layout as kernels read it: grouped rows as they are, others packed."""
    if layout == "grouped":
        return x
    packed: Array = sequential_vmap(pack_rows)(flatten_rows(x, layout))
    return packed


def _rows(readable: Array, width: int, plan: RoutingPlan, layout: str) -> Rows:
    """Returns the result of `_readable`, with the place of each grouped row in it."""
    index = None if layout == "grouped" else row_index(plan, layout)
    return Rows(readable, width, index)


def _scale(gates: Array, plan: RoutingPlan) -> Array:
    """float32 [T*K], the gate of each grouped row."""
    # All first slots, then all second ones: a TPU keeps [T, K] as [K, T].
    place = plan.order % plan.experts_per_token * plan.num_tokens + plan.token_of_row
    return take_rows(gates.T.reshape(-1), place).astype(jnp.float32)


def _work_list(
    plan: RoutingPlan,
    sizes: BlockSizes,
    *,
    every_row: bool = False,
    every_expert: bool = False,
    cores: int | None = None,
) -> WorkList:
    height = min(sizes.height, round_up(plan.num_slots, 16))
    return work_list(
        plan,
        height,
        every_row=every_row,
        every_expert=every_expert,
        cores=cores_in_force() if cores is None else cores,
    )


def _products(
    plan: RoutingPlan, rows: list[Rows], products: list[Product], *, as_rows: bool, **settings: Any
) -> tuple[Array, Array | None]:
    sizes = block_sizes("matmul")
    work = _work_list(plan, sizes, every_row=not as_rows)

    def run(rows: list[Rows], products: list[Product], **more: Any) -> tuple[Array, Array | None]:
        return expert_products(
            work,
            rows,
            products,
            num_rows=plan.num_slots,
            sizes=sizes,
            as_rows=as_rows,
            **settings | more,
        )

    pieces = in_pieces(rows, products)
    if len(pieces) == 1 or "epilogue" in settings:
        return run(rows, products)
    # Float32 between the pieces; the bias is added once.
    output_dtype, dots = settings["output_dtype"], None
    total = None
    for piece in pieces:
        part, more_dots = run(*piece, output_dtype=jnp.float32)
        settings["bias"] = None
        total = part if total is None else total + part
        dots = more_dots if dots is None or more_dots is None else dots + more_dots
    assert total is not None, "there is a piece"
    return round_packed(total, output_dtype) if as_rows else total.astype(output_dtype), dots


def _weight_gradient(
    plan: RoutingPlan, left: Rows, right: Rows, bank: Array, **settings: Any
) -> tuple[Array, Array | None]:
    sizes = block_sizes("weights")
    return weight_gradient(
        _work_list(plan, sizes, every_expert=True, cores=1),  # its columns are divided
        left,
        right,
        experts=plan.num_experts,
        sizes=sizes,
        output_dtype=bank.dtype,
        **settings,
    )


def _by_slot(values: Array, plan: RoutingPlan, dtype: DTypeLike) -> Array:
    """[R] in grouped order to [T, K], 0 where a slot has no expert."""
    row = by_choice(plan.inverse, plan.experts_per_token)
    kept = jnp.where(row < plan.group_offsets[-1], take_rows(values, row), 0)
    return kept.T.astype(dtype)


def _matmul_forward_pass(
    readable: Array,
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
    as_rows = output_layout != "grouped"
    grouped, _ = _products(
        plan,
        [_rows(readable, weights.shape[1], plan, input_layout)],
        [Product(0, weights)],
        output_dtype=output_dtype,
        as_rows=as_rows,
        precision=precision,
        bias=bias,
        name="grouped_matmul_products",
    )
    if not as_rows:
        return grouped
    width = weights.shape[2]
    return ungroup_rows(
        grouped, plan, width, layout=output_layout, gates=gates, output_dtype=output_dtype
    )


def _bias_dots(cotangent: Array, bias: Array, plan: RoutingPlan) -> Array:
    """float32 [R], <cotangent of the row's token, bias of the row's expert>."""
    dots = jax.lax.dot_general(
        cotangent.astype(jnp.float32),
        bias.astype(jnp.float32),
        (((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
    )
    expert = jnp.minimum(plan.expert_of_row, plan.num_experts - 1)
    return dots[plan.token_of_row, expert]


def _matmul_backward_pass(
    readable: Array,
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
    x = _rows(readable, weights.shape[1], plan, input_layout)
    dy = _rows(_readable(cotangent, output_layout), weights.shape[2], plan, output_layout)
    scale = None if gates is None else _scale(gates, plan)
    as_rows = input_layout != "grouped"
    sizes = block_sizes("matmul_gradient")
    work = _work_list(plan, sizes, every_expert=True, every_row=not as_rows)
    itemsize = max(x.dtype.itemsize, dy.dtype.itemsize)
    buffers = footprint(weights, itemsize, work.height).buffers(vmem_limit())
    if buffers is not None:
        dinputs, dweights, dots, dbias = matmul_gradients(
            work,
            x,
            dy,
            weights,
            num_rows=plan.num_slots,
            buffers=buffers,
            sizes=sizes,
            as_rows=as_rows,
            scale=scale,
            with_sums=bias is not None,
            precision=precision,
        )
    else:
        dinputs, dots = _products(
            plan,
            [dy],
            [Product(0, weights, transposed=True)],
            output_dtype=x.dtype,
            as_rows=as_rows,
            precision=precision,
            scale=scale,
            against=None if gates is None else x,
            name="grouped_matmul_input_gradient",
        )
        dweights, dbias = _weight_gradient(
            plan,
            x,
            dy,
            weights,
            precision=precision,
            scale=scale,
            with_sums=bias is not None,
            name="grouped_matmul_weight_gradient",
        )
    if as_rows:
        dinputs = ungroup_rows(
            dinputs,
            plan,
            x.width,
            layout=input_layout,
            gates=None,
            output_dtype=x.dtype,
        )
    dgates = None
    if gates is not None and dots is not None:
        if bias is not None:
            dots = dots + _bias_dots(cotangent, bias, plan)
        dgates = _by_slot(dots, plan, gates.dtype)
    if bias is not None and dbias is not None:
        dbias = dbias.astype(bias.dtype)
    return dinputs, dweights, dgates, dbias


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
    settings = input_layout, output_layout, precision, output_dtype
    return _matmul_forward(inputs, weights, plan, gates, bias, *settings)[0]


def _matmul_forward(
    inputs: Array,
    weights: Array,
    plan: RoutingPlan,
    gates: Array | None,
    bias: Array | None,
    input_layout: str,
    output_layout: str,
    precision: jax.lax.Precision,
    output_dtype: DTypeLike,
) -> tuple[Array, tuple[Any, ...]]:
    run = functools.partial(
        _matmul_forward_pass,
        input_layout=input_layout,
        output_layout=output_layout,
        precision=precision,
        output_dtype=output_dtype,
    )
    # By itself, so that a backward pass that needs it again does not need the products.
    readable = _readable(inputs, input_layout)
    outputs: Array = sequential_vmap(run)(readable, weights, plan, gates, bias)
    return outputs, (readable, weights, plan, gates, bias)


def _matmul_backward(
    input_layout: str,
    output_layout: str,
    precision: jax.lax.Precision,
    output_dtype: DTypeLike,
    saved: tuple[Any, ...],
    cotangent: Array,
) -> tuple[Any, ...]:
    del output_dtype
    run = functools.partial(
        _matmul_backward_pass,
        input_layout=input_layout,
        output_layout=output_layout,
        precision=precision,
    )
    dinputs, dweights, dgates, dbias = sequential_vmap(run)(*saved, cotangent)
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
    # Packed rows hold float32 or bfloat16; float32 is rounded to anything else.
    dtype = output_dtype if jnp.dtype(output_dtype).name in _DTYPES else jnp.float32
    outputs: Array = _matmul(
        inputs, weights, plan, gates, bias, input_layout, output_layout, precision, dtype
    )
    return outputs.astype(output_dtype)


def _residence(
    kernel: str, plan: RoutingPlan, x: Rows, banks: Arrays
) -> tuple[BlockSizes, int | None]:
    """The kernel's block sizes, and the buffers of matrices that stay in VMEM; None: too large."""
    sizes = block_sizes(kernel)
    footprint = Footprint.of(
        banks,
        x.width,
        x.dtype,
        min(sizes.height, round_up(plan.num_slots, 16)),
        sizes.chunk,
        backward=kernel == "feed_forward_gradient",
    )
    return sizes, footprint.buffers(vmem_limit())


def _feed_forward_forward_pass(
    readable: Array,
    banks: Arrays,
    plan: RoutingPlan,
    gates: Array,
    *,
    activation: Activation,
    precision: jax.lax.Precision,
) -> Array:
    """The outputs [T, D]; `banks` is (down, up[, gate])."""
    x = _rows(readable, banks[0].shape[2], plan, "tokens")
    settings: dict[str, Any] = {"activation": activation, "precision": precision}
    sizes, buffers = _residence("feed_forward", plan, x, banks)
    if buffers is not None:
        outputs = feed_forward(
            _work_list(plan, sizes),
            x,
            banks,
            num_rows=plan.num_slots,
            buffers=buffers,
            sizes=sizes,
            **settings,
        )
        return ungroup_rows(
            outputs, plan, x.width, layout="tokens", gates=gates, output_dtype=x.dtype
        )
    hidden, _ = _products(
        plan,
        [x],
        [Product(0, bank) for bank in banks[1:]],
        epilogue=lambda *pre: hidden_layer(pre, activation),
        output_dtype=x.dtype,
        as_rows=False,
        precision=precision,
        name="grouped_feed_forward_hidden",
    )
    outputs, _ = _products(
        plan,
        [Rows(hidden, hidden.shape[1])],
        [Product(0, banks[0])],
        output_dtype=x.dtype,
        as_rows=True,
        precision=precision,
        name="grouped_feed_forward_outputs",
    )
    return ungroup_rows(outputs, plan, x.width, layout="tokens", gates=gates, output_dtype=x.dtype)


def _feed_forward_backward_pass(
    readable: Array,
    banks: Arrays,
    plan: RoutingPlan,
    gates: Array,
    cotangent: Array,
    *,
    activation: Activation,
    precision: jax.lax.Precision,
) -> tuple[Array, Arrays, Array]:
    """The gradients of inputs, banks and gates."""
    x = _rows(readable, banks[0].shape[2], plan, "tokens")
    dy = _rows(_readable(cotangent, "tokens"), x.width, plan, "tokens")
    scale = _scale(gates, plan)
    settings: dict[str, Any] = {"activation": activation, "precision": precision}
    sizes, buffers = _residence("feed_forward_gradient", plan, x, banks)
    if buffers is not None:
        dx, dbanks, dots = feed_forward_gradients(
            _work_list(plan, sizes, every_expert=True),
            x,
            dy,
            banks,
            scale,
            num_rows=plan.num_slots,
            buffers=buffers,
            sizes=sizes,
            **settings,
        )
        dinputs = ungroup_rows(dx, plan, x.width, layout="tokens", gates=None, output_dtype=x.dtype)
        return dinputs, dbanks, _by_slot(dots, plan, gates.dtype)
    name = "grouped_feed_forward_weight_gradient"
    dpre: Arrays | None = None
    ddown: Any = None
    dots = jnp.zeros(plan.num_slots, jnp.float32)
    work = _work_list(plan, sizes)
    for piece in hidden_pieces(banks[0].shape[1]):
        hidden, dpre, more_dots = hidden_layer_gradients(
            work,
            x,
            dy,
            banks,
            scale,
            num_rows=plan.num_slots,
            sizes=sizes,
            piece=piece,
            into=dpre,
            **settings,
        )
        rows = Rows(hidden, piece.width)
        ddown, _ = _weight_gradient(
            plan, rows, dy, banks[0], precision=precision, piece=piece, into=ddown, name=name
        )
        # The next piece may take the memory of this one.
        dpre, ddown = jax.lax.optimization_barrier((dpre, ddown))
        dots = dots + more_dots
    assert dpre is not None, "there is a piece"
    dpre_rows = [Rows(d, d.shape[1]) for d in dpre]
    dx, _ = _products(
        plan,
        dpre_rows,
        [Product(i, bank, transposed=True) for i, bank in enumerate(banks[1:])],
        output_dtype=x.dtype,
        as_rows=True,
        precision=precision,
        name="grouped_feed_forward_input_gradient",
    )
    dups = [
        _weight_gradient(plan, x, d, bank, precision=precision, name=name)[0]
        for d, bank in zip(dpre_rows, banks[1:], strict=True)
    ]
    dinputs = ungroup_rows(dx, plan, x.width, layout="tokens", gates=None, output_dtype=x.dtype)
    return dinputs, (ddown, *dups), _by_slot(dots, plan, gates.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _feed_forward(
    inputs: Array,
    banks: Arrays,
    plan: RoutingPlan,
    gates: Array,
    activation: Activation,
    precision: jax.lax.Precision,
) -> Array:
    return _feed_forward_forward(inputs, banks, plan, gates, activation, precision)[0]


def _feed_forward_forward(
    inputs: Array,
    banks: Arrays,
    plan: RoutingPlan,
    gates: Array,
    activation: Activation,
    precision: jax.lax.Precision,
) -> tuple[Array, tuple[Any, ...]]:
    run = functools.partial(_feed_forward_forward_pass, activation=activation, precision=precision)
    readable = _readable(inputs, "tokens")
    outputs: Array = sequential_vmap(run)(readable, banks, plan, gates)
    return outputs, (readable, banks, plan, gates)


def _feed_forward_backward(
    activation: Activation,
    precision: jax.lax.Precision,
    saved: tuple[Any, ...],
    cotangent: Array,
) -> tuple[Any, ...]:
    run = functools.partial(_feed_forward_backward_pass, activation=activation, precision=precision)
    dinputs, dbanks, dgates = sequential_vmap(run)(*saved, cotangent)
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
