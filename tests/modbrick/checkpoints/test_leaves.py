import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from modbrick.checkpoints.leaves import Leaf, as_array, checksums, mismatches, named_leaves


def test_names_are_paths_whatever_the_containers():
    tree = {"a": {"0": [1, (2,)]}, "b": optax.TraceState(trace={"w": 3})}
    assert named_leaves(tree) == {"a.0.0": 1, "a.0.1.0": 2, "b.trace.w": 3}
    assert named_leaves(5) == {"value": 5}


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"a\.b"):
        named_leaves({"a.b": 1, "a": {"b": 2}})


def test_values_that_jax_would_change_are_refused():
    with pytest.raises(ValueError, match=r"parameters\.w is float64"):
        as_array("parameters.w", np.ones(3))
    assert as_array("n", 3).dtype == jnp.int32


@pytest.mark.parametrize(
    "dtype", [bool, jnp.uint8, jnp.int16, jnp.bfloat16, jnp.float32, jnp.int32, jnp.complex64]
)
def test_checksums_change_with_any_bit_and_any_exchange(dtype):
    rng = np.random.default_rng(0)
    x = np.asarray(rng.integers(0, 2, 40) if dtype is bool else rng.integers(0, 99, 40)).astype(
        dtype
    )
    base = checksums({"x": jnp.asarray(x)})["x"]
    assert base == checksums({"x": jnp.asarray(x)})["x"]
    seen = {base}
    raw = bytearray(x.tobytes())
    bits = [0] if dtype is bool else range(8)
    flips = [(i, b) for i in range(0, len(raw), 7) for b in bits]
    for i, b in flips:
        changed = bytearray(raw)
        changed[i] ^= 1 << b
        seen.add(checksums({"x": jnp.asarray(np.frombuffer(bytes(changed), dtype))})["x"])
    assert len(seen) == len(flips) + 1
    swapped = x.copy()
    j = int(np.flatnonzero(x != x[0])[0])
    swapped[[0, j]] = swapped[[j, 0]]
    assert checksums({"x": jnp.asarray(swapped)})["x"] != base


def test_checksums_tell_shape_order_and_pairs_of_signs():
    x = jnp.arange(1.0, 13.0)
    a = checksums({"x": x.at[0].multiply(-1).at[5].multiply(-1)})["x"]
    b = checksums({"x": x.at[1].multiply(-1).at[5].multiply(-1)})["x"]
    assert len({a, b, checksums({"x": x})["x"]}) == 3
    assert checksums({"x": jnp.zeros((0, 3))}) == {"x": 0}


def test_mismatches_name_every_leaf():
    saved = {
        "a": Leaf((2,), "float32", 0),
        "b": Leaf((3,), "float32", 0),
        "d": Leaf((), "int32", 0),
    }
    wanted = {
        "a": jax.ShapeDtypeStruct((2,), jnp.bfloat16),
        "b": jax.ShapeDtypeStruct((4,), jnp.float32),
        "c": jax.ShapeDtypeStruct((), jnp.int32),
    }
    assert mismatches(saved, wanted, "optimizer.") == [
        "missing: optimizer.c",
        "unexpected: optimizer.d",
        "optimizer.a: saved float32[2], wanted bfloat16[2]",
        "optimizer.b: saved float32[3], wanted float32[4]",
    ]


def test_sizes_in_memory():
    assert Leaf((2, 3), "bfloat16", 0).bytes == 12
    assert Leaf((3,), "key<fry>", 0).bytes == 24
    assert Leaf((0, 5), "float32", 0).bytes == 0
