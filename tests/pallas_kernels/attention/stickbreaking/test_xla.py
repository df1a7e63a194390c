from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.shared.masks import Visibility
from pallas_kernels.attention.stickbreaking import stickbreaking_attention
from pallas_kernels.attention.stickbreaking.xla import attend_and_count
from tests import programs
from tests.contracts.stickbreaking_attention import StickbreakingAttentionContract


class TestXLA(StickbreakingAttentionContract):
    implementation = "xla"


def _forward_and_backward(implementation, query, key, value, **options):
    def call(*arrays):
        return stickbreaking_attention(*arrays, implementation=implementation, **options)

    result, pull = jax.vjp(call, query, key, value)
    return result, pull(result)


def _temporary_bytes(implementation: str, length: int) -> int:
    x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
    compiled = jax.jit(_forward_and_backward, static_argnums=0).lower(implementation, x, x, x)
    analysis = compiled.compile().memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


def test_memory_is_linear() -> None:
    short, long = (_temporary_bytes("xla", length) for length in (4096, 8192))
    assert long <= 2.1 * short
    assert short <= _temporary_bytes("reference", 4096) / 10


def _sizes(jaxpr) -> Iterator[int]:
    """Sizes of all values that are computed, in loops and calls too."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield math.prod(getattr(variable.aval, "shape", ()))
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                yield from _sizes(inner.jaxpr)


def test_no_array_of_all_pairs() -> None:
    length = 4096
    x = jax.ShapeDtypeStruct((1, length, 2, 4), jnp.float32)
    jaxpr = jax.make_jaxpr(_forward_and_backward, static_argnums=0)("xla", x, x, x)
    sizes = list(_sizes(jaxpr.jaxpr))
    assert len(sizes) > 100  # The loops were looked into.
    assert max(sizes) < length * 128


def test_blocks_out_of_sight_are_not_visited() -> None:
    x = jnp.ones((1, 1024, 1, 8))
    visible = jnp.arange(1024)[None, :, None, None]
    # One block around each end of what the window leaves in sight; NaN beyond would show.
    keys = jnp.where((visible >= 256) & (visible < 640), x, jnp.nan)
    attend = functools.partial(
        stickbreaking_attention, query_offset=500, window=100, implementation="xla"
    )
    output, remainder = jax.jit(attend)(x[:, :64], keys, keys)
    assert np.isfinite(np.asarray(output)).all()
    assert np.isfinite(np.asarray(remainder)).all()


def _visited(logit: float, tolerance: float) -> np.ndarray:
    """Blocks of 64 keys visited by each block of 64 queries, where all logits are equal."""
    query, key = (jnp.full((2, 512, heads, 1), x) for heads, x in ((4, 1.0), (2, logit)))
    rules = Visibility(offset=0, nearest=1)
    *_, counts = jax.jit(
        lambda query, key: attend_and_count(query, key, key, rules, scale=1.0, tolerance=tolerance)
    )(query, key)
    return np.asarray(counts)


def test_early_exit_visits_fewer_blocks() -> None:
    in_sight = np.arange(1, 9)
    np.testing.assert_array_equal(_visited(0.0, 0.0), in_sight[None, None])
    # The first query has no key, and so its block is never done; there is no more to see there.
    of_all = np.broadcast_to(in_sight, (2, 2, 8))
    np.testing.assert_array_equal(_visited(-9.0, 2**-12), of_all)
    # The stick is halved by each key: the last query is below 2**-12 in its own block of keys, the
    # first in the one before.
    np.testing.assert_array_equal(_visited(0.0, 2**-12), np.minimum(of_all, 2))


def test_each_head_exits_by_itself() -> None:
    key = jnp.stack([jnp.zeros((1, 512, 1)), jnp.full((1, 512, 1), -9.0)], axis=2)
    attend = functools.partial(attend_and_count, scale=1.0, tolerance=0.01)
    *_, counts = jax.jit(attend)(jnp.ones((1, 512, 2, 1)), key, key, Visibility(offset=0))
    np.testing.assert_array_equal(counts[0, 0], [1, 2, 2, 2, 2, 2, 2, 2])
    np.testing.assert_array_equal(counts[0, 1], [1, 2, 3, 4, 5, 6, 7, 8])


def test_early_exit_never_reads_what_it_passes_over() -> None:
    x = jnp.ones((1, 1024, 1, 8)).at[:, :512].set(jnp.nan)
    run = functools.partial(_forward_and_backward, "xla", tolerance=1e-3)
    results, gradients = jax.jit(run)(x[:, 960:], x, x)
    assert all(np.isfinite(np.asarray(array)).all() for array in (*results, *gradients))


def test_vmap() -> None:
    random = np.random.default_rng(0)
    query, key, value = (random.standard_normal((3, 1, 20, 2, 8)).astype("float32") for _ in "qkv")
    offsets = jnp.array([0, 5, -3])

    @jax.jit
    def call(query, key, value, offset):
        return stickbreaking_attention(query, key, value, query_offset=offset).output

    mapped = jax.jit(jax.vmap(call))(query, key, value, offsets)
    for n in range(3):
        alone = call(query[n], key[n], value[n], offsets[n])
        np.testing.assert_allclose(mapped[n], alone, atol=1e-6)


def test_sharded_batch_and_heads_need_no_communication() -> None:
    program = textwrap.dedent("""
        import re
        import jax, jax.numpy as jnp
        from jax.sharding import AxisType, NamedSharding, PartitionSpec
        from pallas_kernels.stickbreaking_attention import stickbreaking_attention

        jax.config.update("jax_num_cpu_devices", 4)
        mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        sharding = NamedSharding(mesh, PartitionSpec("data", None, "model"))

        def step(query, key, value):
            def call(*arrays):
                return stickbreaking_attention(*arrays, implementation="xla").output
            output, pull = jax.vjp(call, query, key, value)
            return output, pull(output)

        query = jax.ShapeDtypeStruct((4, 130, 8, 16), jnp.float32)
        key = jax.ShapeDtypeStruct((4, 130, 4, 16), jnp.float32)
        step = jax.jit(step, in_shardings=sharding, out_shardings=sharding)
        text = step.lower(query, key, key).compile().as_text()
        print(sorted(set(re.findall("all-[a-z]+|collective-permute|reduce-scatter", text))))
    """)
    result = programs.run(["-c", program])
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
