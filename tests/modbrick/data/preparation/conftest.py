"""Preparations in one line, and what they made."""

from __future__ import annotations

from pathlib import Path

import pytest

from modbrick.data.dataset import Dataset
from modbrick.data.preparation.inputs import Input
from modbrick.data.preparation.preparation import PreparationConfig, Report, prepare
from modbrick.data.preparation.work_units import ReadingOptions


class Preparation:
    """Prepares inputs in a directory of its own; `held_out` is none unless it is given."""

    def __init__(self, root: Path):
        self.root = root

    def __call__(self, *inputs, held_out_inputs=(), held_out=0.0, **options) -> Report:
        reading = ReadingOptions(
            options.pop("text_field", "text"), held_out, options.pop("separator", None)
        )
        config = PreparationConfig(
            (
                *(Input.parse(str(text)) for text in inputs),
                *(Input.parse(str(text), "held_out") for text in held_out_inputs),
            ),
            options.pop("tokenizer", "byte"),
            str(self.root / "set"),
            reading=reading,
            **{"workers": 1, "overwrite": True, **options},
        )
        return prepare(config)

    def texts(self) -> dict[str, list[str]]:
        """The documents of the data set by split."""
        data = Dataset.open(str(self.root / "set"), verify_hashes=True)
        tokenizer = data.tokenizer()
        found: dict[str, list[str]] = {}
        for split in ("train", "held_out"):
            found[split] = []
            if not data.domains(split):
                continue
            documents = data.documents(split)
            for number, targets in enumerate(documents.targets.tolist()):
                found[split].append(tokenizer.decode(documents.read(number, 0, targets + 1)))
        return found


@pytest.fixture
def preparation(tmp_path_factory) -> Preparation:
    return Preparation(tmp_path_factory.mktemp("prepared"))
