import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import modbrick
from modbrick.checkpoints import Metadata, save_model
from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    RouterConfig,
    SegmentConfig,
)
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.layers.decoder import Decoder
from tests.modbrick.layers.tiny import run

pytestmark = pytest.mark.usefixtures("quick_compilation")
TOKENS = jnp.arange(24).reshape(2, 12) % 32


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    experts = ExpertsConfig(4, 2, RouterConfig(hidden=8))
    layer = LayerConfig(
        AttentionConfig(2, 8, experts=experts), FeedForwardConfig(16, experts=experts)
    )
    config = ModelConfig(32, 16, (SegmentConfig(layer, 2),), dtype="float32")
    model = Decoder(config, key=jax.random.key(5))
    directory = tmp_path_factory.mktemp("model")
    save_model(directory, nnx.to_pure_dict(nnx.state(model)), Metadata(config))
    return model, directory


def test_logits_are_those_of_the_saved_model(saved):
    model, directory = saved
    loaded = modbrick.load_model(directory)
    assert loaded.config == model.config
    assert np.array_equal(run(loaded, TOKENS).logits, run(model, TOKENS).logits)


def test_execution_and_dtype_are_as_asked(saved):
    model, directory = saved
    execution = ExecutionConfig(rematerialisation="full")
    loaded = modbrick.load_model(directory, dtype="bfloat16", execution=execution)
    assert loaded.execution == execution
    assert loaded.embedding[...].dtype == jnp.bfloat16
    a, b = (np.asarray(run(m, TOKENS).logits, np.float32) for m in (loaded, model))
    assert 0 < np.linalg.norm(a - b) < 0.05 * np.linalg.norm(b)


def test_where_no_model_is(tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        modbrick.load_model(tmp_path)


def test_unknown_names_of_the_package_stay_unknown():
    with pytest.raises(AttributeError, match="load_modle"):
        modbrick.load_modle  # noqa: B018
