"""The kernels for TPUs beyond interpret mode: lowered, and compiled ahead of time with libtpu."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import grouped_matmul as op
from pallas_kernels.compile_report import compile_for, lower_for_tpu, tpu_devices
from pallas_kernels.grouped_matmul.tpu import implementation as tpu
from pallas_kernels.grouped_matmul.tpu.block_sizes import (
    GENERATIONS,
    KERNELS,
    BlockSizes,
    compiling_for,
    generation_in_force,
)
from tests.contracts.sweep import sweep

# Small, and whole registers: what is compiled is the code, and its time is that of the chunks.
T, K, E, D, F = 256, 2, 4, 1024, 256
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
SMALL = dict.fromkeys(KERNELS, BlockSizes(64, 1024, 128))


def _gradients(layer: Callable[..., Any]) -> Callable[..., Any]:
    def run(experts: Any, cotangent: Any, *floats: Any) -> Any:
        plan = op.routing_plan(experts, E)
        outputs, pull = jax.vjp(lambda *floats: layer(plan, *floats), *floats)
        return outputs, pull(cotangent)

    return run


def _feed_forward(plan: Any, x: Any, up: Any, down: Any, gates: Any) -> Any:
    return op.grouped_feed_forward(x, up, down, plan, gates, implementation="tpu")


def _map_and_reduce(plan: Any, x: Any, up: Any, down: Any, gates: Any) -> Any:
    mapped = op.grouped_matmul(x, up, plan, output_layout="slots", implementation="tpu")
    return op.grouped_matmul(
        mapped,
        down,
        plan,
        input_layout="slots",
        output_layout="tokens",
        gates=gates,
        implementation="tpu",
    )


def _avals(dtype: Any, *, tokens: int = T, width: int = D, hidden: int = F) -> tuple[Any, ...]:
    shapes = ((tokens, width), (E, width, hidden), (E, hidden, width), (tokens, K))
    floats = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    experts = jax.ShapeDtypeStruct((tokens, K), jnp.int32)
    return experts, jax.ShapeDtypeStruct((tokens, width), dtype), *floats


@pytest.mark.parametrize("layer", [_feed_forward, _map_and_reduce])
def test_it_lowers_for_a_tpu_without_one(layer):
    with compiling_for(blocks=SMALL):
        text = lower_for_tpu(_gradients(layer), *_avals(jnp.bfloat16, tokens=37, width=20))
    kernels = set(re.findall(r'kernel_name = "(\w+)"', text))
    assert {name for name in kernels if name.endswith("resident_gradients")}, kernels
    # No gather of T*K rows stands beside the kernels.
    wide = re.findall(r'"?stablehlo\.gather"?.*tensor<(\d+)x(\d+)xbf16>\n', text)
    assert not [shape for shape in wide if int(shape[1]) >= 20], wide


@sweep(
    ("k", "width", "hidden", "dtype"),
    [
        (16, 1024, 128, jnp.bfloat16),
        (9, 256, 300, jnp.float32),
        (8, 4096, 128, jnp.bfloat16),
        (2, 14336, 128, jnp.bfloat16),
    ],
    [(9, 256, 300, jnp.float32)],
)
def test_many_choices_and_wide_rows_lower(k, width, hidden, dtype):
    """Tiles of tokens have fewer than 128 there; interpret mode takes blocks of any shape."""
    tokens = 200

    def run(experts, x, up, down, gates):
        plan = op.routing_plan(experts, E)
        return _map_and_reduce(plan, x, up, down, gates).astype(jnp.float32).sum()

    shapes = (tokens, width), (E, width, hidden), (E, hidden, width), (tokens, k)
    floats = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    with compiling_for("v6e"):
        text = lower_for_tpu(
            jax.grad(run, argnums=(1, 2, 3, 4)),
            jax.ShapeDtypeStruct((tokens, k), jnp.int32),
            *floats,
        )
    kernels = set(re.findall(r'kernel_name = "(\w+)"', text))
    assert {"grouped_matmul_to_slots", "grouped_matmul_to_tokens"} <= kernels


@sweep("width", [640, 1100], [640])
def test_blocks_wider_than_packed_rows_lower(monkeypatch, width):
    """A block of columns has room for more than a packed row has."""
    monkeypatch.setattr(tpu.Footprint, "buffers", lambda self, budget: None)
    with compiling_for("v6e", dict.fromkeys(KERNELS, BlockSizes(64, 512, 128))):
        text = lower_for_tpu(
            _gradients(_map_and_reduce), *_avals(jnp.bfloat16, tokens=64, width=width, hidden=width)
        )
    assert "grouped_matmul_weight_gradient" in text


def test_float32_products_have_float32_accuracy():
    """Interpret mode cannot tell: what is lowered must ask for it."""
    with compiling_for(blocks=SMALL):
        traced = jax.jit(_gradients(_feed_forward)).trace(*_avals(jnp.float32, tokens=64))
    text = str(traced.jaxpr)
    precisions = re.findall(r"precision=(.*)", text)
    dots = text.count("= dot_general[")
    assert dots >= 7, "two forward, five backward"
    highest = [p for p in precisions if "HIGHEST" in p]
    assert len(highest) >= dots


@sweep("generation", TOPOLOGIES, ["v5p"])  # of two cores
def test_it_compiles_for(generation):
    """The whole feed-forward layer, and what it leaves in HBM beside arguments and results."""
    device = tpu_devices(TOPOLOGIES[generation])[0]
    seen = []

    def layer(plan: Any, *floats: Any) -> Any:
        seen.append(generation_in_force())
        return _feed_forward(plan, *floats)

    with compiling_for(blocks=SMALL):
        compiled = compile_for(device, _gradients(layer), *_avals(jnp.bfloat16))
    assert set(seen) == {generation}
    rows, row = T * K, 2 * D
    # Words of x and dy, grouped rows of the outputs and of dx; plans and gates are small. Two cores
    # leave a part each of the gradients of one expert's two matrices; room for their sums, too.
    cores = GENERATIONS[generation].cores
    parts = (cores + 1) * 2 * D * F * 4 if cores > 1 else 0
    bound = 2 * T * row + 2 * rows * row + parts + 2**20
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes <= bound


@pytest.mark.verify
@pytest.mark.parametrize("generation", TOPOLOGIES)
def test_wide_hidden_layers_are_never_there_twice(generation):
    """The gradients of what is before the activation are, and a quarter of the hidden layer."""
    tokens, hidden = 2048, 16384
    device = tpu_devices(TOPOLOGIES[generation])[0]
    avals = _avals(jnp.bfloat16, tokens=tokens, hidden=hidden)

    def run(*arguments: Any) -> Any:
        both = _gradients(_feed_forward)(*arguments)
        # Where neither pass waits for the other, as behind a loss, tpu7x runs both at once.
        return both[1] if generation == "tpu7x" else both

    with compiling_for(blocks=SMALL):
        compiled = compile_for(device, run, *avals)
    rows, row = tokens * K, 2 * D
    bound = rows * hidden * 2 * 5 // 4 + 2 * tokens * row + rows * row + 2**20
    analysis = compiled.memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes <= bound


@pytest.mark.verify
@pytest.mark.parametrize("generation", TOPOLOGIES)
@pytest.mark.parametrize("layer", [_feed_forward, _map_and_reduce])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_odd_shapes_compile_for(generation, layer, dtype):
    device = tpu_devices(TOPOLOGIES[generation])[0]
    compile_for(device, _gradients(layer), *_avals(dtype, tokens=37, width=20, hidden=33))
