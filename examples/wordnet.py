"""Tells a language model of things it hardly knows: a knowledge brick on WordNet's nouns.

    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
    python examples/wordnet.py --model=MODEL --wordnet=wordnet/usr/share/wordnet \
        --workdir=DIR --json=FILE

An entity's vector comes from the graph alone: of each thing that it is a kind of, a random vector,
the less the farther away. A row is the noun, a placeholder, ` is a kind of`; the answer is the
field of WordNet that it belongs to, such as ` plant`. The map from vectors to embeddings trains on
some nouns; others are held out. Its control is the same brick with vectors of other nouns.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from modbrick import command_line
from modbrick.bricks import BrickConfig, Knowledge
from modbrick.data.entities import Entities
from modbrick.errors import InputError
from modbrick.models import open_model
from modbrick.training.control import against_control
from modbrick.training.tasks.examples import FEATURES, next_token_examples

MODEL = flags.DEFINE_string("model", None, "A model with a tokenizer.", required=True)
WORDNET = flags.DEFINE_string("wordnet", None, "Directory with WordNet's data.noun.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory for both runs.", required=True)
STEPS = flags.DEFINE_integer("steps", 200, "Of training.", lower_bound=1)
PER_FIELD = flags.DEFINE_integer("per_field", 400, "Nouns of each field.", lower_bound=5)
BATCH = flags.DEFINE_integer("batch_size", 16, "Examples in a step.", lower_bound=1)
PLACEHOLDER = flags.DEFINE_integer("placeholder", 3, "Token that marks the place of an entity.")
JSON = flags.DEFINE_string("json", None, "File for the results.", required=True)

# Lexicographer files of WordNet (lexnames(5WN)), and the word that answers.
FIELDS = {5: "animal", 6: "artifact", 13: "food", 15: "place", 18: "person", 20: "plant"}
WIDTH = 64


def synsets(file: Path) -> Iterator[tuple[str, int, str, list[str]]]:
    """Yields offset, lexicographer file, first name and hypernyms of each noun (wndb(5WN))."""
    for line in file.read_text().splitlines():
        if line.startswith(" "):
            continue  # the licence
        offset, field, _, _, name = line.split(" ")[:5]
        yield offset, int(field), name.replace("_", " "), re.findall(r"@i? (\d{8}) n", line)


def vector(offset: str, above: dict[str, list[str]]) -> np.ndarray:
    """Returns the vector of a noun, of length 1."""
    total, here, weight = np.zeros(WIDTH), above[offset], 1.0
    while here:
        for other in here:
            total += weight * np.random.default_rng(zlib.crc32(other.encode())).normal(size=WIDTH)
        here, weight = sorted({far for near in here for far in above[near]}), weight * 0.8
    return total / np.linalg.norm(total)


def main(argv: Sequence[str]) -> None:
    """Trains brick and control, and writes what they reach."""
    del argv
    command_line.check_output(JSON)
    file = Path(WORDNET.value) / "data.noun"
    if not file.is_file():
        raise InputError(f"there is no {file}: --wordnet=DIR names WordNet's files")
    found = list(synsets(file))
    above = {offset: hypernyms for offset, _, _, hypernyms in found}
    random = np.random.default_rng(0)
    chosen = []
    for field in FIELDS:
        nouns = [s for s in found if s[1] == field and s[3] and " " not in s[2]]
        chosen += [nouns[i] for i in random.permutation(len(nouns))[: PER_FIELD.value]]
    chosen = [chosen[i] for i in random.permutation(len(chosen))]
    tokenizer = open_model(MODEL.value).tokenizer()
    known = Entities(
        tuple(name for _, _, name, _ in chosen),
        np.stack([vector(offset, above) for offset, *_ in chosen]).astype(np.float32) * WIDTH**0.5,
    )
    rows, entities = [], []
    for number, (_, field, name, _) in enumerate(chosen):
        prompt = [*tokenizer.encode(name).tolist(), PLACEHOLDER.value]
        prompt += tokenizer.encode(" is a kind of").tolist()
        rows.append((prompt, tokenizer.encode(f" {FIELDS[field]}").tolist()))
        entities.append([number])
    examples = next_token_examples(rows) | {f"{FEATURES}entities": known.features(entities)}
    cut = len(rows) * 4 // 5
    results = against_control(
        MODEL.value,
        BrickConfig(("features",), Knowledge(PLACEHOLDER.value, WIDTH)),
        {name: array[:cut] for name, array in examples.items()},
        {name: array[cut:] for name, array in examples.items()},
        Path(WORKDIR.value),
        steps=STEPS.value,
        batch_size=BATCH.value,
    )
    command_line.write_output(JSON, json.dumps(results, indent=1))


if __name__ == "__main__":
    command_line.run(main)
