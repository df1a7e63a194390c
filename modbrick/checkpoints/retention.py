"""Which checkpoints a policy keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping

from modbrick.checkpoints.config import CheckpointConfig


def kept_steps(
    config: CheckpointConfig, metrics: Mapping[int, Mapping[str, float]], newest: int
) -> set[int]:
    """Returns the steps to keep.

    Args:
      config: the policies.
      metrics: of every complete checkpoint, by step.
      newest: the step saved last, always kept.
    """
    steps = sorted(metrics)
    kept = {newest, *steps[-config.keep_latest :]}
    if config.keep_every:
        kept |= {step for step in steps if step % config.keep_every == 0}
    if config.keep_best:
        sign = 1.0 if config.best_mode == "min" else -1.0
        scored = [
            (sign * value, -step)
            for step in steps
            if math.isfinite(value := metrics[step].get(config.best_metric, math.nan))
        ]
        kept |= {-step for _, step in sorted(scored)[: config.keep_best]}
    return kept
