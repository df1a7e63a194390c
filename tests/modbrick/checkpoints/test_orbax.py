"""Reasons why Orbax's own `Checkpointer` is not the store: what a run would lose by it.

If one of these fails after an update, Orbax does it now, and the code here that does may go.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

STATE = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(64, 64)), jnp.float32)}
ABSTRACT = jax.eval_shape(lambda: STATE)


def save(directory: Path, *steps: int) -> Path:
    context = ocp.Context()
    context.array.saving.use_compression = False  # as the store saves
    policy = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
    with (
        context,
        ocp.training.Checkpointer(directory, save_decision_policy=policy) as checkpointer,
    ):
        for step in steps:
            assert checkpointer.save(step, STATE)
    return directory


def load(directory: Path) -> tuple[int, Any]:
    with ocp.training.Checkpointer(directory) as checkpointer:
        assert checkpointer.latest is not None
        return checkpointer.latest.step, checkpointer.load(abstract_state=ABSTRACT)


def values_file(checkpoint: Path) -> Path:
    return max(checkpoint.rglob("d/*"), key=lambda file: file.stat().st_size)


def test_flipped_bits_are_loaded_without_a_word(tmp_path: Path) -> None:
    directory = save(tmp_path / "run", 1)
    file = values_file(directory / "1")
    data = file.read_bytes()
    place = data.index(np.asarray(STATE["w"]).tobytes()[:64])
    file.write_bytes(data[: place + 3] + bytes([data[place + 3] ^ 1]) + data[place + 4 :])
    _, loaded = load(directory)
    assert not np.array_equal(loaded["w"], STATE["w"])


@pytest.mark.parametrize("lost", ["values", "everything but the name"])
def test_a_damaged_newest_checkpoint_hides_the_one_before(tmp_path: Path, lost: str) -> None:
    directory = save(tmp_path / "run", 1, 2)
    if lost == "values":
        values_file(directory / "2").unlink()
    else:  # deleting is not atomic: a kill amid of it leaves this
        for path in (directory / "2").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(Exception):  # noqa: B017, PT011 - of one kind or another
        load(directory)


def test_what_is_saved_under_a_name_with_brackets_is_lost(tmp_path: Path) -> None:
    directory = save(tmp_path / "lr=[1e-3]", 1)
    with pytest.raises(Exception):  # noqa: B017, PT011
        load(directory)


def test_the_best_are_others_if_some_were_not_measured() -> None:
    """`kept_steps` hands `BestN` only what has the metric, and a number for it."""

    class Checkpoint:
        def __init__(self, step: int, metrics: dict[str, float]):
            self.step, self.metrics = step, metrics

    policies = ocp.training.preservation_policies
    best = policies.BestN(get_metric_fn=lambda found: found["loss"], reverse=True, n=2)
    found = [Checkpoint(1, {"loss": 1.0}), Checkpoint(2, {})]
    context = policies.PreservationContext()
    assert best.should_preserve(found, context=context) == [True, True]
    with pytest.raises(KeyError):
        best.should_preserve([*found, Checkpoint(3, {"loss": 2.0})], context=context)
