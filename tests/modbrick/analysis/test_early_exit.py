"""What an early exit saves a small model of random values."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.analysis.early_exit import savings_on_text, single_documents
from modbrick.config import (
    AttentionConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    SegmentConfig,
)
from modbrick.data import Dataset
from modbrick.decoder.functional import functional_decoder
from modbrick.errors import InputError
from tests.modbrick.data.conftest import write_dataset

LENGTH = 256
LAYER = LayerConfig(AttentionConfig(2, 8), FeedForwardConfig(16))
CONFIG = ModelConfig(257, 16, (SegmentConfig(LAYER),), context=LENGTH, dtype="float32")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    texts = {"prose": ["short", "a long one, " * 30, "another, " * 60, "and so on"]}
    return write_dataset(
        tmp_path_factory.mktemp("texts") / "data", {"train": texts, "held_out": texts}
    )


def test_rows_are_filled_by_one_document_each(dataset: Dataset) -> None:
    rows = single_documents(dataset, LENGTH, 2)
    assert rows["tokens"].shape == (2, LENGTH)
    assert all(len(set(ids)) == 1 for ids in rows["segment_ids"].tolist())
    with pytest.raises(InputError, match="fewer than 4 documents fill a row of 256 tokens"):
        single_documents(dataset, LENGTH, 4)


def test_blocks_that_get_nothing_are_counted_and_the_loss_stays(dataset: Dataset) -> None:
    rng = np.random.default_rng(0)
    parameters = {
        path: jnp.asarray(rng.normal(0.0, 0.1, leaf.shape), jnp.float32)
        for path, leaf in functional_decoder(CONFIG).table.abstract().items()
    }
    rows = single_documents(dataset, LENGTH, 2)
    found = savings_on_text(CONFIG, parameters, rows, [1e-3], rounds=1)
    assert (found["length"], found["rows"]) == (LENGTH, 2)
    # The stick breaks at about one half with each key: nothing is left for keys further than 64.
    for skipped in found["skipped"].values():
        assert skipped["mean"] == skipped["least"] == skipped["most"]
        assert skipped["mean"][0] > 0
    losses = found["loss"]
    assert losses["0.001"] == pytest.approx(losses["0.0"], rel=1e-3)
    assert found["evaluation"]["speed_up"].keys() == {"0.001"}
