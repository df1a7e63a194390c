"""Tables that do not fit a model are refused, and fused tensors are taken apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from modbrick.config import (
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    RouterConfig,
    SegmentConfig,
)
from modbrick.convert.correspondence import correspondence
from modbrick.convert.format import Format, Row, Translation, fused, row
from modbrick.convert.transforms import TRANSPOSED
from modbrick.errors import InputError
from tests.contracts.conversion import check_rows

ATTENTION = AttentionConfig(heads=4, head_width=3, key_value_heads=2, biases=("query", "key"))
EXPERTS = ExpertsConfig(5, 2, RouterConfig(kind="linear"))
DENSE = LayerConfig(ATTENTION, FeedForwardConfig(7, gated=True))
SPARSE = LayerConfig(ATTENTION, FeedForwardConfig(6, gated=True, experts=EXPERTS))
MODEL = ModelConfig(
    11, 8, (SegmentConfig(DENSE, 2), SegmentConfig(SPARSE, 3), SegmentConfig(DENSE))
)

OUTER = (row("embedding", "in"), row("head.weight", "out", TRANSPOSED), *(
    row(f"norm.{part}", f"norm.{part}") for part in ("scale", "bias")
))  # fmt: skip
QKV = ("attention.query", "attention.key", "attention.value")
LAYER = (
    *(
        row(f"{norm}.{part}", f"{{layer}}.{norm}.{part}")
        for norm in ("attention_norm", "feed_forward_norm")
        for part in ("scale", "bias")
    ),
    fused(tuple(f"{name}.weight" for name in QKV), "{layer}.qkv", TRANSPOSED, axis=0),
    row("attention.query.bias", "{layer}.q.bias"),
    row("attention.key.bias", "{layer}.k.bias"),
    row("attention.value.bias", "{layer}.v.bias"),  # the model has none
    row("attention.output.weight", "{layer}.o", TRANSPOSED),
)
GATE_UP = ("feed_forward.gate.weight", "feed_forward.up.weight")
BY_EXPERT = (
    row(GATE_UP[0], "{layer}.experts.{expert}.gate", TRANSPOSED),
    row(GATE_UP[1], "{layer}.experts.{expert}.up", TRANSPOSED),
    row("feed_forward.down.weight", "{layer}.experts.{expert}.down", TRANSPOSED),
    row("feed_forward.router.output.weight", "{layer}.router", TRANSPOSED),
)
STACKED = (
    fused(GATE_UP, "{layer}.gate_up", TRANSPOSED, axis=1),
    row("feed_forward.down.weight", "{layer}.down", TRANSPOSED),
    row("feed_forward.router.output.weight", "{layer}.router", TRANSPOSED),
)


def form(sparse: tuple[Row, ...] = STACKED, *more: Row) -> Format:
    def layer(config: LayerConfig) -> tuple[Row, ...]:
        dense = (
            fused(GATE_UP, "{layer}.gate_up", TRANSPOSED, axis=0),
            row("feed_forward.down.weight", "{layer}.down", TRANSPOSED),
        )
        return LAYER + (dense if config.feed_forward.experts is None else sparse) + more

    return Format("any", "any", "Any", OUTER, layer, lambda data, where: Translation(MODEL), None)


@pytest.mark.parametrize("sparse", [STACKED, BY_EXPERT], ids=["stacked", "by_expert"])
def test_layers_of_several_kinds_and_fused_tensors(sparse: tuple[Row, ...]) -> None:
    check_rows(form(sparse), MODEL)
    check_rows(form(sparse), MODEL.replace(tied_head=True))


def test_names_count_layers_from_the_first() -> None:
    places = correspondence(form(BY_EXPERT), MODEL).places
    assert {name.split(".")[0] for name in places} >= {"0", "1", "2", "3", "4", "5"}
    place = places["3.experts.4.up"]
    assert [(part.path, part.index) for part in place.parts] == [
        ("segments.1.feed_forward.up.weight", (1, 4))
    ]
    assert places["5.gate_up"].shape == (14, 8)
    assert places["2.qkv"].shape == (12 + 6 + 6, 8)


def test_fused_values_stand_in_the_order_of_the_row() -> None:
    place = correspondence(form(), MODEL).places["2.gate_up"]
    gate, up = np.zeros((5, 8, 6)), np.ones((5, 8, 6))
    stored = place.theirs([gate, up])
    assert stored.shape == place.shape == (5, 12, 8)
    assert (stored[:, :6] == 0).all()
    assert (stored[:, 6:] == 1).all()


def test_tied_heads_have_two_names() -> None:
    assert correspondence(form(), MODEL).aliases == {}
    tied = correspondence(form(), MODEL.replace(tied_head=True))
    assert tied.aliases == {"out": "in"}
    assert "out" not in tied.places


REFUSED = {
    "nothing for a parameter": (
        dataclasses.replace(form(), outer=OUTER[1:]),
        "format any has no place for embedding",
    ),
    "part of a bank": (
        form((*BY_EXPERT[1:], row(GATE_UP[0], "{layer}.gate", TRANSPOSED), STACKED[1])),
        "keeps|names|no place",
    ),
    "a parameter twice": (
        form(STACKED, row("attention.output.weight", "{layer}.again", TRANSPOSED)),
        "keeps segments.0.attention.output.weight in two tensors",
    ),
    "a name twice": (
        form(STACKED, row("attention.output.weight", "{layer}.o", TRANSPOSED)),
        "names the tensor 0.o twice",
    ),
    "half of a fused tensor": (
        form(STACKED, fused(("attention.output.weight", "attention.gate"), "{layer}.x", axis=0)),
        "the model has no segments.0.attention.gate",
    ),
    "experts of a dense parameter": (
        form(STACKED, row("attention.output.weight", "{layer}.{expert}.o2")),
        "is one tensor an expert, but segments.0.attention.output.weight has no experts",
    ),
    "a layer without its number": (
        form(STACKED, row("attention.output.weight", "o2")),
        "o2: exactly the rows of layers name a",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_tables_that_contradict_themselves(case: str) -> None:
    table, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        correspondence(table, MODEL)
