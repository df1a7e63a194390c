"""Measures plugging one brick of a large library into a running model."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from modbrick.bricks import Brick, BrickConfig, LoRA, Plugged, initial_bricks, plugged
from modbrick.config import ModelConfig
from modbrick.config.families import dense
from modbrick.decoder.functional import functional_decoder, initial_parameters
from modbrick.library import Library, Manifest, write_brick
from modbrick.training.benchmark.bricks import ATTENTION, in_turn, ratio
from modbrick.training.benchmark.cases import Case

LORA = BrickConfig(ATTENTION, LoRA(rank=8))


class OpenedFiles:
    """Notes which files in a directory this process opens, while in `with`.

    Attributes:
      files: the files; directories are none.
    """

    def __init__(self, directory: Path):
        """Begins to listen, which Python does not let one end."""
        self._directory, self._listening = directory, False
        self.files: set[Path] = set()
        sys.addaudithook(self._heard)

    @property
    def total(self) -> int:
        """Bytes of the files, each once."""
        return sum(path.stat().st_size for path in self.files)

    def __enter__(self) -> OpenedFiles:
        self._listening, self.files = True, set()
        return self

    def __exit__(self, *error: object) -> None:
        self._listening = False

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._listening and event == "open" and isinstance(arguments[0], str):
            path = Path(arguments[0])
            if path.is_relative_to(self._directory) and path.is_file():
                self.files.add(path)


def plugging_cost(case: Case, *, bricks: int, rounds: int) -> dict[str, Any]:
    """Plugs a brick of a library into a model, and the brick of a library of one, in turn.

    The model is a dense one of the case's sizes and runs with a LoRA of rank 8 on its attention
    projections; another of the same takes its place, out of the library, and the model goes on.

    Args:
      case: the sizes.
      bricks: in the library.
      rounds: of plugging; each takes another brick.

    Returns:
      Figures, JSON-able. Times are medians, from opening the library until the arrays are there;
      bytes are those of the files that are opened in it.

    Raises:
      RuntimeError: the model was compiled again.
    """
    config = dense(
        vocabulary=case.vocabulary,
        width=case.width,
        layers=case.layers,
        heads=case.heads,
        feed_forward_width=case.feed_forward_width,
        dtype="float32",
    )
    decoder, traces = functional_decoder(config), 0
    parameters = initial_parameters(config, jax.random.key(0))
    tokens = jnp.zeros((1, 8), jnp.int32)

    @jax.jit
    def run(parameters: Any, bricks: Plugged) -> jax.Array:
        nonlocal traces
        traces += 1
        return decoder.bind(parameters).features(tokens, bricks=bricks).hidden

    with tempfile.TemporaryDirectory() as folder:
        many, one = Path(folder) / "many", Path(folder) / "one"
        _library(one, config, 1)
        size = _library(many, config, bricks)
        before = _plug(config, one, "brick0", None)
        run(parameters, before).block_until_ready()
        names = np.random.default_rng(0).permutation(bricks)
        files = OpenedFiles(Path(folder))
        read: list[int] = []

        def timed(path: Path, *, counted: bool) -> float:
            name = f"brick{names[len(read) % bricks]}" if counted else "brick0"
            with files:
                start = time.perf_counter()
                after = _plug(config, path, name, before)
                seconds = time.perf_counter() - start
            if counted:
                read.append(files.total)
            run(parameters, after).block_until_ready()
            return seconds

        seconds = in_turn(
            {
                "many": functools.partial(timed, many, counted=True),
                "one": functools.partial(timed, one, counted=False),
            },
            rounds,
        )
    if traces > 1:
        raise RuntimeError(f"the model was traced {traces} times")
    return {
        "bricks": bricks,
        "case": dataclasses.asdict(case),
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "time_ratio": ratio(seconds["many"], seconds["one"]),
        "file_bytes": size,
        "read_bytes": max(read),
        "library_bytes": size * bricks,
        "rounds": seconds,
    }


def _plug(config: ModelConfig, library: Path, name: str, like: Plugged | None) -> Plugged:
    brick = Library.open(library)[name]
    values = brick.parameters("lora", config)
    found = plugged(config, {"lora": brick.config}, values, like=like)
    return jax.block_until_ready(found)


def _library(path: Path, config: ModelConfig, count: int) -> int:
    """Writes a library of LoRAs; returns the size of the largest file."""
    path.mkdir()
    values = initial_bricks(config, {"brick": LORA}, jax.random.key(1))
    brick = Brick.of_parameters("brick", LORA, config, values)
    manifest = Manifest.of("brick", LORA, config)
    files = [path / f"brick{number}.brick" for number in range(count)]
    for file in files:
        write_brick(file, brick, dataclasses.replace(manifest, name=file.stem))
    return max(file.stat().st_size for file in files)
