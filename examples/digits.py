"""Lets a language model read handwritten digits: a modality brick on real images.

    uv pip install scikit-learn
    python examples/digits.py --model=MODEL --workdir=DIR --json=FILE

Each image of scikit-learn's digits (8 x 8, UCI) is four patches, each with its place: the features
of a small encoder that nobody trains. A row is `Digit`, four placeholders, ` is`; the answer is the
number as a word. The brick trains on four fifths of the images. Its control is the same brick with
images that belong to other rows, which learns everything but to look.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from modbrick import command_line
from modbrick.bricks import BrickConfig, Modality
from modbrick.data.tokenizers.tokenizer import Tokenizer
from modbrick.errors import InputError
from modbrick.models import open_model
from modbrick.training.control import against_control
from modbrick.training.tasks.examples import FEATURES, next_token_examples

MODEL = flags.DEFINE_string("model", None, "A model with a tokenizer.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory for both runs.", required=True)
STEPS = flags.DEFINE_integer("steps", 200, "Of training.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch_size", 16, "Examples in a step.", lower_bound=1)
PLACEHOLDER = flags.DEFINE_integer("placeholder", 3, "Token that marks the place of a patch.")
JSON = flags.DEFINE_string("json", None, "File for the results.", required=True)
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PATCHES = 4


def patches(images: np.ndarray) -> np.ndarray:
    """Returns `[N, 4, 20]`: the 16 points of each quarter of images `[N, 8, 8]`, and its place."""
    quarters = images.reshape(-1, 2, 4, 2, 4).swapaxes(2, 3).reshape(-1, PATCHES, 16)
    places = np.broadcast_to(np.eye(PATCHES), (len(images), PATCHES, PATCHES))
    return np.concatenate([quarters / 8 - 1, places], -1).astype(np.float32)


def examples_of(
    images: np.ndarray, digits: np.ndarray, tokenizer: Tokenizer
) -> dict[str, np.ndarray]:
    """Returns the arrays of a task, one example an image."""
    prompt = [
        *tokenizer.encode("Digit").tolist(),
        *[PLACEHOLDER.value] * PATCHES,
        *tokenizer.encode(" is").tolist(),
    ]
    answers = [tokenizer.encode(f" {word}").tolist() for word in WORDS]
    rows = [(prompt, answers[digit]) for digit in digits]
    return next_token_examples(rows) | {f"{FEATURES}digits": patches(images)}


def main(argv: Sequence[str]) -> None:
    """Trains brick and control, and writes what they reach."""
    del argv
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("the images come with scikit-learn: uv pip install scikit-learn") from None
    command_line.check_output(JSON)
    found, tokenizer = load_digits(), open_model(MODEL.value).tokenizer()
    examples = examples_of(found.images, found.target, tokenizer)
    order = np.random.default_rng(0).permutation(len(found.target))
    cut = len(order) * 4 // 5
    kind = Modality(PLACEHOLDER.value, PATCHES + 16, "digits", hidden=128)
    results = against_control(
        MODEL.value,
        BrickConfig(("features",), kind),
        {name: array[order[:cut]] for name, array in examples.items()},
        {name: array[order[cut:]] for name, array in examples.items()},
        Path(WORKDIR.value),
        steps=STEPS.value,
        batch_size=BATCH.value,
    )
    command_line.write_output(JSON, json.dumps(results, indent=1))


if __name__ == "__main__":
    command_line.run(main)
