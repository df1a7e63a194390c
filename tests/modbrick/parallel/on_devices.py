"""In a process of its own, with 8 devices: parts of the network over meshes, against one device.

    python on_devices.py dispatch|attention|bricks|memory CASE...

All cases of attention if none is named.

Prints a line of JSON for each case: its name, and the worst relative error of values and gradients;
what a case counts beside that stands in the line too.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modbrick.bricks import (
    IA3,
    Adapter,
    Bias,
    BrickConfig,
    DoRA,
    LoRA,
    NormTuning,
    Prefix,
    Prompt,
    plugged,
)
from modbrick.bricks.table import brick_infos
from modbrick.config import RopeConfig, SegmentConfig
from modbrick.config.families import dense
from modbrick.decoder.functional import functional_decoder, initial_parameters
from modbrick.decoder.sites import Site
from modbrick.execution import ExecutionConfig
from modbrick.layers.offer import Offer
from modbrick.parallel import MeshConfig, make_mesh, parameter_shardings
from modbrick.parallel.attention import Keys, Offset, attend_over_mesh
from modbrick.parallel.choice import Choice
from modbrick.parallel.dispatch import make_dispatch
from pallas_kernels.softmax_attention import softmax_attention
from pallas_kernels.stickbreaking_attention import stickbreaking_attention

EXPERTS, K, WIDTH, HIDDEN = 8, 2, 6, 10
ROWS, LENGTH = 8, 5


def compare(name: str, alone: Any, together: Any, **counts: float) -> None:
    """Prints the worst relative error of any array."""
    pairs = zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True)
    errors = [
        float(np.linalg.norm(np.asarray(b) - np.asarray(a)) / max(np.linalg.norm(a), 1e-30))
        for a, b in pairs
    ]
    print(json.dumps({"name": name, "error": max(errors), **counts}), flush=True)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Jitted with the least effort: the compiler would be most of the time."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


# ------------------------------------------------------------------------------------ dispatch


def choices(load: str, random: np.random.Generator) -> np.ndarray:
    """Experts of each token `[B, S, K]`, different ones for each of its choices."""
    first = {
        "balanced": random.integers(0, EXPERTS // 2, (ROWS, LENGTH)) * 2,
        "one takes all": np.full((ROWS, LENGTH), EXPERTS - 2),
        "empty experts": np.full((ROWS, LENGTH), 4) - 2 * random.integers(0, 2, (ROWS, LENGTH)),
    }[load]
    return np.stack([first, first + 1], axis=-1).astype(np.int32)


def dispatch_run(execution: ExecutionConfig) -> Callable[..., Any]:
    """All three methods of a dispatch: results, gradients, and what was dropped."""

    def results(arrays: dict[str, Any], indices: Any) -> tuple[Any, Any]:
        dispatch = make_dispatch(indices, arrays["gates"], EXPERTS, execution)
        slots = dispatch.map(arrays["x"], arrays["query"])
        reduced = dispatch.reduce(jnp.tanh(slots), arrays["output"])
        forward = dispatch.feed_forward(
            arrays["x"], arrays["up"], arrays["down"], arrays["gate"], jax.nn.silu
        )
        dropped = jnp.int32(0) if dispatch.dropped is None else dispatch.dropped
        return (slots, reduced, forward), dropped

    def run(arrays: dict[str, Any], indices: Any, cotangents: Any) -> Any:
        out, pull, dropped = jax.vjp(lambda a: results(a, indices), arrays, has_aux=True)
        return out, pull(cotangents)[0], dropped

    return compiled(run)


def dispatch_cases() -> None:
    random = np.random.default_rng(0)
    shapes = {
        "x": (ROWS, LENGTH, WIDTH),
        "gates": (ROWS, LENGTH, K),
        "query": (EXPERTS, WIDTH, HIDDEN),
        "output": (EXPERTS, HIDDEN, WIDTH),
        "up": (EXPERTS, WIDTH, HIDDEN),
        "gate": (EXPERTS, WIDTH, HIDDEN),
        "down": (EXPERTS, HIDDEN, WIDTH),
    }
    arrays = {k: random.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
    outputs = ((ROWS, LENGTH, K, HIDDEN), (ROWS, LENGTH, WIDTH), (ROWS, LENGTH, WIDTH))
    cotangents = tuple(random.standard_normal(s).astype(np.float32) for s in outputs)
    loads = {name: choices(name, random) for name in ("balanced", "one takes all", "empty experts")}
    local = dispatch_run(ExecutionConfig())
    alone = {load: local(arrays, indices, cotangents) for load, indices in loads.items()}
    with jax.set_mesh(make_mesh(MeshConfig(data=2, expert=4))):
        for way in ("gather", "exchange"):
            run = dispatch_run(ExecutionConfig(expert_parallelism=way))
            for load, indices in loads.items():
                *together, dropped = run(arrays, indices, cotangents)
                name = f"dispatch: {way}, {load}"
                compare(name, alone[load][:2], tuple(together), dropped=int(dropped))
        # Each device sends 5 tokens for 2 choices, all to one: 40 rows arrive in each of the two
        # groups, where there is room for 10.
        capped = dispatch_run(ExecutionConfig(expert_parallelism="exchange", exchange_capacity=1.0))
        *_, dropped = capped(arrays, loads["one takes all"], cotangents)
        print(json.dumps({"name": "dispatch: capacity", "error": 0.0, "dropped": int(dropped)}))


# ----------------------------------------------------------------------------------- attention


def attention_run(kind: str, window: int | None, attend_current: bool) -> Callable[..., Any]:
    """Attention of all positions, and its gradients."""

    def attend(query: Any, segment_ids: Any, keys: Keys, offset: Offset) -> Any:
        options = {
            "query_segment_ids": segment_ids,
            "key_segment_ids": keys.segment_ids,
            "key_mask": keys.mask,
            "query_offset": offset,
            "window": window,
        }
        if kind == "softmax":
            return softmax_attention(query, keys.key, keys.value, **options)
        return stickbreaking_attention(
            query, keys.key, keys.value, attend_current=attend_current, **options
        )

    def run(arrays: Any, segments: Any, mask: Any, cotangent: Any) -> Any:
        def output(query: Any, key: Any, value: Any) -> Any:
            keys = Keys(key, value, segments, mask)
            ring = kind == "stickbreaking"
            return attend_over_mesh(attend, query, segments, keys, 0, ring=ring)[0]

        out, pull = jax.vjp(output, *arrays)
        return out, pull(cotangent)

    return compiled(run)


def attention_cases(*names: str) -> None:
    random = np.random.default_rng(1)
    rows, length, heads, groups, width = 2, 32, 4, 2, 4
    draw = functools.partial(random.standard_normal, dtype=np.float32)
    arrays = (
        draw((rows, length, heads, width)),
        draw((rows, length, groups, width)),
        draw((rows, length, groups, width)),
    )
    cotangent = draw((rows, length, heads, width))
    segments = np.sort(random.integers(0, 3, (rows, length)), axis=1).astype(np.int32)
    mask = random.random((rows, length)) < 0.8
    mesh = make_mesh(MeshConfig(data=1, sequence=4, tensor=2))
    for name, kind, window, attend_current, packed in (
        ("whole rows", "stickbreaking", None, False, False),
        ("packed, padded", "stickbreaking", None, True, True),
        ("window over three blocks", "stickbreaking", 19, True, False),
        ("window within a block", "stickbreaking", 3, False, True),
        ("softmax", "softmax", 19, True, True),
    ):
        if names and name not in names:
            continue
        extras = (segments, mask) if packed else (None, None)
        run = attention_run(kind, window, attend_current)
        alone = run(arrays, *extras, cotangent)
        with jax.set_mesh(mesh):
            together = attention_run(kind, window, attend_current)(arrays, *extras, cotangent)
        compare(f"attention: {name}", alone, together)


# -------------------------------------------------------------------------------------- bricks


def memory_cases() -> None:
    """Softmax attention behind a prefix and a prompt, chosen document by document."""
    base = dense(vocabulary=32, width=16, layers=2, heads=4, feed_forward_width=16, dtype="float32")
    layer = base.segments[0].layer
    attention = dataclasses.replace(
        layer.attention, kind="softmax", rope=RopeConfig(), key_value_heads=2, window=11
    )
    layer = dataclasses.replace(layer, attention=attention)
    config = base.replace(segments=(SegmentConfig(layer, 2),), initial_scale=0.3)
    bricks = {
        "fore": BrickConfig(("layer.*.attention.memory",), Prefix(length=3)),
        "ask": BrickConfig(("prompt",), Prompt(length=5)),
    }
    random, decoder = np.random.default_rng(3), functional_decoder(config)
    tokens = random.integers(0, 32, (4, 16))
    segments = np.sort(random.integers(0, 4, tokens.shape), axis=1)
    starts = np.array([[np.searchsorted(row, x) for x in row] for row in segments])
    ids = np.array([[-1, -1], [0, 1], [1, -1], [-1, -1]])[segments]
    values = {
        path: random.normal(0.0, 0.3, info.shape).astype(np.float32)
        for info in brick_infos(config, bricks)
        for path in [info.path]
    }

    def loss(values: Any, parameters: Any) -> Any:
        return decoder.bind(parameters)(
            jnp.asarray(tokens),
            segment_ids=jnp.asarray(segments),
            positions=jnp.asarray(np.arange(16) - starts),
            bricks=plugged(config, bricks, values),
            brick_ids=jnp.asarray(ids),
        ).logits

    def run(values: Any, parameters: Any) -> Any:
        logits, pull = jax.vjp(loss, values, parameters)
        return logits, pull(jnp.sin(jnp.arange(logits.size).reshape(logits.shape)))

    parameters = initial_parameters(config, jax.random.key(0))
    alone = compiled(run)(values, parameters)
    mesh = make_mesh(MeshConfig(data=2, sequence=2, tensor=2))
    shardings = parameter_shardings(decoder.table, mesh)
    placed = {path: jax.device_put(x, shardings[path]) for path, x in parameters.items()}
    with jax.set_mesh(mesh):
        compare("memory: softmax", alone, compiled(lambda *x: run(*x))(values, placed))


def brick_cases() -> None:
    """Bricks of every kind at one site, chosen token by token."""
    random = np.random.default_rng(2)
    rows, length, width = 4, 6, 8
    draw = functools.partial(random.standard_normal, dtype=np.float32)
    x, y, cotangent = (draw((rows, length, width)) for _ in range(3))
    ids = jnp.asarray(random.integers(-1, 3, (rows, length, 2)), jnp.int32)
    choice = Choice(ids, jnp.asarray(draw((rows, length, 2))))
    at_map = Site("feed_forward", width, width, linear=True)
    at_bank = dataclasses.replace(at_map, experts=3)
    experts = jnp.asarray(random.integers(0, 3, (rows, length, 2)), jnp.int32)
    summed = Offer(experts=experts, gates=jnp.abs(draw((rows, length, 2))))
    summed = dataclasses.replace(summed, slots=jnp.asarray(draw((rows, length, 2, width))))
    of_map = Offer(jnp.asarray(draw((width, width))), outputs=jnp.asarray(y))
    mesh = make_mesh(MeshConfig(data=2, sequence=2, tensor=2))
    for settings in (
        LoRA(rank=3),
        LoRA(rank=3, pairs="expert"),
        DoRA(rank=3),
        Adapter(hidden=3, activation="tanh"),
        IA3(),
        Bias(),
        NormTuning(bias=True),
    ):
        offer = summed if isinstance(settings, LoRA) else of_map
        site = at_bank if isinstance(settings, LoRA) else at_map
        leaves = {
            name: np.abs(draw((3, *info.shape))) for name, info in settings.leaves(site).items()
        }
        constants = settings.constants()
        scales = {name: jnp.full(3, value, jnp.float32) for name, value in constants.items()}
        run = compiled(brick_run(settings, scales, choice, offer))
        alone = run((leaves, x, y), cotangent)
        with jax.set_mesh(mesh):
            run = compiled(brick_run(settings, scales, choice, offer))
            together = run((leaves, x, y), cotangent)
        compare(f"bricks: {settings.kind}", alone, together)


def brick_run(
    settings: LoRA | DoRA | Adapter | IA3 | Bias | NormTuning,
    scales: Any,
    choice: Choice,
    offer: Offer,
) -> Callable[..., Any]:
    """Outputs of a site with bricks, and their gradients."""

    def apply(leaves: Any, x: Any, y: Any) -> Any:
        return settings.form({**leaves, **scales}, x, y, choice, offer)

    def run(arrays: Any, cotangent: Any) -> Any:
        out, pull = jax.vjp(apply, *arrays)
        return out, pull(cotangent)

    return run


if __name__ == "__main__":
    cases = {
        "dispatch": dispatch_cases,
        "attention": attention_cases,
        "bricks": brick_cases,
        "memory": memory_cases,
    }
    cases[sys.argv[1]](*sys.argv[2:])
