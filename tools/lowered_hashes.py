"""Prints a hash of what each kernel lowers to, so that a change of names shows that it is no more.

    python -m tools.lowered_hashes [--only=TEXT]

Run it before and after, and compare the lines. Every operation is lowered for TPUs, an H100 and the
CPU, forward and backward, at shapes that take each of its kernels. The hash is of the program as
text, kernels inside, without the locations in the source.
"""

from __future__ import annotations

import argparse
import base64
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.mlir import ir
from jax.sharding import AbstractDevice
from jaxlib.mosaic.python import mosaic_gpu, tpu

from pallas_kernels.compile_report.compilation import (
    H100_KIND,
    H100_MULTIPROCESSORS,
    trace_for,
)
from pallas_kernels.grouped_matmul import grouped_feed_forward, grouped_matmul, routing_plan
from pallas_kernels.softmax_attention import softmax_attention
from pallas_kernels.stickbreaking_attention import stickbreaking_attention

DEVICES = {
    "v5p": AbstractDevice("TPU v5p", 2, "tpu"),
    "v6e": AbstractDevice("TPU v6e", 1, "tpu"),
    "h100": AbstractDevice(H100_KIND, H100_MULTIPROCESSORS, "gpu"),
    "cpu": AbstractDevice("cpu", 1, "cpu"),
}
TARGETS = {"tpu": ("v5p", "v6e"), "gpu": ("h100",), "xla": ("cpu", "v5p"), "reference": ("cpu",)}

KERNELS = ("tpu", "gpu")
# Mosaic's modules in the text of a program, and their locations.
_BYTECODE = r'\\22(body|debug_locations)\\22: \\22[^\\]*\\22|(kernel_hash|module) = "[^"]*"'

Program = tuple[Callable[..., Any], tuple[Any, ...]]


def array(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    """An argument of a program."""
    return jax.ShapeDtypeStruct(shape, dtype)


def experts(
    implementation: str, tokens: int, k: int, count: int, width: int, hidden: int, dtype: Any
) -> Iterator[tuple[str, Program]]:
    """Feed-forward experts, gated or not, and products in every layout."""
    indices = array(tokens, k, dtype=jnp.int32)
    x, gates = array(tokens, width, dtype=dtype), array(tokens, k, dtype=dtype)
    up, down = array(count, width, hidden, dtype=dtype), array(count, hidden, width, dtype=dtype)

    def feed_forward(indices: Any, *floats: Any) -> Any:
        x, up, down, gates, *gate_weights = floats
        plan = routing_plan(indices, count)
        return grouped_feed_forward(
            x,
            up,
            down,
            plan,
            gates,
            gate_weights=gate_weights[0] if gate_weights else None,
            activation="silu" if gate_weights else "gelu_tanh",
            implementation=implementation,
        )

    def products(indices: Any, x: Any, up: Any, down: Any, gates: Any, *bias: Any) -> Any:
        plan = routing_plan(indices, count)
        mapped = grouped_matmul(
            x,
            up,
            plan,
            output_layout="slots",
            bias=bias[0] if bias else None,
            implementation=implementation,
        )
        grouped = grouped_matmul(
            mapped, down, plan, input_layout="slots", implementation=implementation
        )
        back = grouped_matmul(
            grouped, up, plan, input_layout="grouped", implementation=implementation
        )
        return grouped_matmul(
            back,
            down,
            plan,
            input_layout="grouped",
            output_layout="tokens",
            gates=gates,
            bias=bias[1] if bias else None,
            implementation=implementation,
        )

    biases = array(count, hidden, dtype=dtype), array(count, width, dtype=dtype)
    yield "feed_forward", (feed_forward, (indices, x, up, down, gates))
    yield "gated_feed_forward", (feed_forward, (indices, x, up, down, gates, up))
    yield "products_with_bias", (products, (indices, x, up, down, gates, *biases))


def attention(
    operation: Callable[..., Any],
    batch: int,
    length: int,
    heads: int,
    groups: int,
    width: int,
    dtype: Any,
    *,
    packed: bool = False,
    **options: Any,
) -> Program:
    """Attention over sequences, with segment ids and padding if `packed`."""
    shapes = [array(batch, length, n, width, dtype=dtype) for n in (heads, groups, groups)]
    ids, mask = array(batch, length, dtype=jnp.int32), array(batch, length, dtype=jnp.bool_)

    def run(*arguments: Any) -> Any:
        *more, query, key, value = arguments
        if packed:
            options.update(query_segment_ids=more[0], key_segment_ids=more[0], key_mask=more[1])
        return jax.tree.leaves(operation(query, key, value, **options))

    return run, (*([ids, mask] if packed else []), *shapes)


def programs() -> Iterator[tuple[str, str, Program]]:
    """Name, implementation and program."""
    bfloat16, float32 = jnp.bfloat16, jnp.float32
    shapes = {
        "small": (256, 2, 4, 1024, 256, bfloat16),
        "odd": (37, 3, 5, 20, 36, bfloat16),
        "float32": (100, 2, 4, 256, 384, float32),
        "large": (512, 2, 8, 4096, 14336, bfloat16),
    }
    for implementation in TARGETS:
        for shape, sizes in shapes.items():
            if implementation not in KERNELS and shape in ("small", "large"):
                continue  # what they lower to does not depend on the sizes
            for name, program in experts(implementation, *sizes):
                yield f"experts/{shape}/{name}", implementation, program
        sticks = functools.partial(stickbreaking_attention, implementation=implementation)
        cases: dict[str, dict[str, Any]] = {
            "plain": {},
            "current": {"attend_current": True},
            "window_packed": {"window": 99, "packed": True},
            "early_exit": {"tolerance": 0.01, "packed": True},
        }
        for case, options in cases.items():
            sizes = 1, 300, 4, 2, 64, bfloat16
            yield f"sticks/{case}", implementation, attention(sticks, *sizes, **options)
        wide = 2, 512, 2, 1, 128, bfloat16 if implementation == "gpu" else float32
        yield "sticks/wide", implementation, attention(sticks, *wide)
        if implementation in ("xla", "reference"):
            softmax = functools.partial(softmax_attention, implementation=implementation)
            options = cases["window_packed"]
            sizes = 2, 300, 4, 2, 64, bfloat16
            yield "softmax/causal", implementation, attention(softmax, *sizes)
            yield "softmax/all", implementation, attention(softmax, *sizes, causal=False)
            yield "softmax/window_packed", implementation, attention(softmax, *sizes, **options)


def forward_and_backward(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The function's results, and the gradients of its floating arguments."""
    count = sum(not jnp.issubdtype(a.dtype, jnp.floating) for a in arguments)

    def run(*arguments: Any) -> Any:
        call = functools.partial(function, *arguments[:count])
        outputs, pull = jax.vjp(call, *arguments[count:])
        return outputs, pull(outputs)

    return run


def lowered_text(function: Callable[..., Any], arguments: tuple[Any, ...], target: str) -> str:
    """The program lowered for a target, kernels as text inside, without locations."""
    device = DEVICES[target]
    platform = {"gpu": "cuda"}.get(device.platform, device.platform)
    with trace_for(device):
        lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,))
    module: Any = lowered.compiler_ir("stablehlo")
    text = module.operation.get_asm(enable_debug_info=False, large_elements_limit=None)
    kernels: list[str] = []
    module.operation.walk(lambda operation: _collect(operation, kernels))
    # Mosaic's modules are in the text as bytecode with locations: their own text takes their place.
    text = re.sub(_BYTECODE, "KERNEL", text)
    return "\n".join([text, *kernels])


def _collect(operation: Any, kernels: list[str]) -> Any:
    """Adds the text of the kernel that an operation calls, if it calls one."""
    if operation.name == "stablehlo.custom_call":
        target = ir.StringAttr(operation.attributes["call_target_name"]).value
        if target == "tpu_custom_call":
            config = json.loads(ir.StringAttr(operation.attributes["backend_config"]).value)
            kernels.append(_kernel_text(base64.b64decode(config["custom_call_config"]["body"])))
        elif target.startswith("mosaic_gpu"):
            config = ir.DictAttr(operation.attributes["mhlo.backend_config"])
            kernels.append(_kernel_text(ir.StringAttr(config["module"]).value_bytes))
    return ir.WalkResult.ADVANCE


def _kernel_text(bytecode: bytes) -> str:
    context = ir.Context()
    tpu.register_dialect(context)
    mosaic_gpu.register_dialect(context)
    context.allow_unregistered_dialects = True
    with context, ir.Location.unknown():
        module = ir.Module.parse(bytecode)
        return str(module.operation.get_asm(enable_debug_info=False))


def main() -> None:
    """Prints a line for each program: name, implementation, target, direction and hash."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="Print lines that contain this text.")
    only = parser.parse_args().only
    for name, implementation, (function, arguments) in programs():
        both = forward_and_backward(function, arguments)
        for target in TARGETS[implementation]:
            for direction, run in {"forward": function, "forward_backward": both}.items():
                if direction == "forward" and implementation not in KERNELS:
                    continue  # part of the other
                line = f"{name} {implementation} {target} {direction}"
                if only not in line:
                    continue
                try:
                    text = lowered_text(run, arguments, target)
                    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
                except ValueError as error:
                    digest = f"refused: {str(error).splitlines()[0]}"
                print(line, digest, flush=True)


if __name__ == "__main__":
    main()
