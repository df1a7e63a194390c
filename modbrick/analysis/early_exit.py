"""What the early exit of stick-breaking attention saves a trained model on its text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32

from modbrick.config import ModelConfig
from modbrick.data import Dataset, evaluation_batches
from modbrick.decoder.functional import functional_decoder
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.training.evaluation import evaluation_step
from pallas_kernels.benchmarks.early_exit import BLOCKS, relative_times, skipped_fractions

# Blocks are counted from S x S weights of all heads and layers: beyond this, gigabytes.
LONGEST_COUNTED = 4096


def savings_on_text(
    config: ModelConfig,
    parameters: Mapping[str, jax.Array],
    rows: Mapping[str, np.ndarray],
    tolerances: Sequence[float],
    rounds: int,
) -> dict[str, Any]:
    """Counts blocks from the attention weights of a model, and times its evaluation.

    Args:
      config: of the model.
      parameters: by path.
      rows: of text, as `single_documents` returns them, N of length S.
      tolerances: of the early exit.
      rounds: of timing; the fastest counts.

    Returns:
      JSON-able data: fractions of blocks passed over (`skipped_blocks`) by tolerance, seconds and
      speed-ups, and the mean loss with each tolerance.
    """
    count, length = rows["tokens"].shape
    losses = {}

    def evaluation(tolerance: float) -> Callable[[], Any]:
        step = evaluation_step(config, ExecutionConfig(attention_tolerance=tolerance))
        losses[tolerance] = float(np.mean(step(parameters, dict(rows))[0]))
        return lambda: step(parameters, dict(rows))

    return {
        "length": length,
        "rows": count,
        "tolerances": list(tolerances),
        "skipped": skipped_blocks(config, parameters, rows["tokens"], tolerances)
        if length <= LONGEST_COUNTED
        else "not counted: the weights would not fit into memory",
        "evaluation": relative_times(evaluation, tolerances, rounds),
        "loss": {str(tolerance): loss for tolerance, loss in losses.items()},
    }


def skipped_blocks(
    config: ModelConfig,
    parameters: Mapping[str, jax.Array],
    tokens: Int32[np.ndarray, "N S"],
    tolerances: Sequence[float],
) -> dict[str, Any]:
    """Returns the fractions of blocks that the heads of a model pass over, by implementation.

    Of each: the mean over rows, layers and heads, and the least and the most of any head on any
    row, each in a list over tolerances.
    """
    model = functional_decoder(config).bind(parameters)
    weigh = jax.jit(lambda row: model(row, capture=("attention_weights",)).captured)
    skipped: dict[str, list[Any]] = {name: [] for name in BLOCKS}
    for row in tokens:
        for layers in weigh(row[None])["attention_weights"].values():
            for weights in np.asarray(layers).reshape(-1, *layers.shape[-3:]):
                for name, sizes in BLOCKS.items():
                    skipped[name].append([skipped_fractions(weights, sizes, t) for t in tolerances])
    return {
        name: {
            "rows_and_keys_of_a_block": BLOCKS[name],
            "mean": np.mean(values, axis=(0, 2)).round(4).tolist(),
            # [rows of text x layers, tolerances, heads] to the extremes over layers and heads.
            "least": np.min(values, axis=(0, 2)).round(4).tolist(),
            "most": np.max(values, axis=(0, 2)).round(4).tolist(),
        }
        for name, values in skipped.items()
    }


def single_documents(dataset: Dataset, length: int, count: int) -> dict[str, np.ndarray]:
    """Returns held-out rows that one document each fills: the fields of a batch `[count, length]`.

    Raises:
      InputError: there are fewer than `count`.
    """
    found = []
    for batch in evaluation_batches(dataset, sequence_length=length, batch_size=1):
        if (batch["segment_ids"] == batch["segment_ids"][0, 0]).all():
            found.append({name: batch[name] for name in batch if name != "domains"})
        if len(found) == count:
            return {name: np.concatenate([row[name] for row in found]) for name in found[0]}
    raise InputError(
        f"{dataset.directory}: fewer than {count} documents fill a row of {length} tokens"
    )
