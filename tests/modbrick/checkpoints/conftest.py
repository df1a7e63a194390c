import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from modbrick.checkpoints import Metadata
from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    RouterConfig,
    SegmentConfig,
)


@pytest.fixture(scope="session")
def model_config():
    experts = ExpertsConfig(4, 2, RouterConfig(hidden=8))
    layer = LayerConfig(AttentionConfig(2, 8, experts=experts), FeedForwardConfig(16))
    return ModelConfig(32, 16, (SegmentConfig(layer, 2),), dtype="float32")


@pytest.fixture(scope="session")
def metadata(model_config):
    return Metadata(
        model_config,
        run={"optimizer": {"learning_rate": 0.1}, "data": {"names": ["a", "b"]}},
        tokenizer={"name": "bytes"},
        data={"row": 123},
    )


@pytest.fixture(scope="session")
def trees():
    """Parameters and an optimizer's state with every kind of leaf there is."""
    rng = np.random.default_rng(0)
    parameters = {
        "embedding": jnp.asarray(rng.normal(size=(32, 16)), jnp.float32),
        "segments": {
            "0": {"norm": {"scale": jnp.asarray([1.0, -0.0, np.inf, np.nan], jnp.float32)}}
        },
    }
    optimizer = {
        "adam": optax.adamw(1e-3).init(parameters),
        "count": jnp.int32(2**31 - 1),
        "flags": jnp.array([True, False, True]),
        "half": jnp.asarray(rng.normal(size=(5, 3)), jnp.bfloat16),
        "key": jax.random.split(jax.random.key(7), 3),
        "key_data": jax.random.key_data(jax.random.key(8)),
        "bytes": jnp.arange(7, dtype=jnp.uint8),
        "empty": jnp.zeros((0, 3)),
        "tuple": (jnp.float32(1e-45), [jnp.float16(0.5)]),
    }
    return parameters, optimizer


@pytest.fixture(scope="session")
def same_bits():
    def check(a, b):
        leaves, structure = jax.tree.flatten(a)
        assert str(structure) == str(jax.tree.structure(b))
        for x, y in zip(leaves, jax.tree.leaves(b), strict=True):
            assert x.dtype == y.dtype
            assert x.shape == y.shape
            if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
                x, y = jax.random.key_data(x), jax.random.key_data(y)
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()

    return check
