from pathlib import Path

import numpy as np
import pytest

from modbrick.data.dataset import Dataset
from modbrick.data.manifest import Split
from modbrick.data.tokenizers.byte import ByteTokenizer
from modbrick.data.writer import DatasetWriter


def write_dataset(directory: Path, texts: dict[Split, dict[str, list[str]]], **options) -> Dataset:
    """Writes texts by split and domain as bytes."""
    tokenizer = ByteTokenizer()
    with DatasetWriter(str(directory), **options) as writer:
        writer.set_tokenizer(tokenizer)
        for split, domains in texts.items():
            for domain, documents in domains.items():
                for text in documents:
                    ids = np.concatenate([[256], tokenizer.encode(text), [256]])
                    writer.add(split, domain, ids, len(text.encode()))
        writer.commit(sources={}, source_lines="", arguments={})
    return Dataset.open(str(directory))


def random_texts(seed: int, count: int, longest: int) -> list[str]:
    """Returns texts of random letters, all different."""
    generator = np.random.default_rng(seed)
    return [
        f"{seed}.{i}:" + "".join(map(chr, generator.integers(97, 123, generator.integers(longest))))
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def texts() -> dict[Split, dict[str, list[str]]]:
    return {
        "train": {"code": random_texts(1, 60, 300), "prose": random_texts(2, 40, 120)},
        "held_out": {"code": random_texts(3, 9, 300), "prose": random_texts(4, 7, 120)},
    }


@pytest.fixture(scope="session")
def dataset(tmp_path_factory, texts) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("data") / "set", texts)


@pytest.fixture
def write():
    return write_dataset
