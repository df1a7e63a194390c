"""Addresses name the same bricks whatever the stacking; patterns cover exactly what they say."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modbrick.errors import InputError
from modbrick.parameters import ParameterInfo, ParameterTable, flatten, nest

LAYERS, EXPERTS = 3, 4
BANK = "segments.0.feed_forward.up.weight"
ROUTER = "segments.0.feed_forward.router.output.weight"
LATE = "segments.1.feed_forward.up.weight"
TABLE = ParameterTable(
    [
        ParameterInfo("embedding", (6, 2), ("vocabulary", "width")),
        ParameterInfo("norm.scale", (2,), ("width",)),
        ParameterInfo.of_segment(
            BANK, (LAYERS, EXPERTS, 2, 3), ("layer", "expert", "width", "hidden")
        ),
        ParameterInfo.of_segment(ROUTER, (LAYERS, 2, EXPERTS), ("layer", "width", "router_expert")),
        ParameterInfo.of_segment(LATE, (2, 2, 3), ("layer", "width", "hidden"), LAYERS),
    ]
)


def covered(*patterns):
    return {path: mask.tolist() for path, mask in TABLE.select(patterns).items()}


def test_addresses_are_absolute():
    assert TABLE[BANK].address(layer=1, expert=2) == "layer.1.feed_forward.expert.2.up.weight"
    assert TABLE[BANK].address(layer=1) == "layer.1.feed_forward.expert.*.up.weight"
    assert TABLE[LATE].address(layer=1) == "layer.4.feed_forward.up.weight"
    assert TABLE["norm.scale"].address() == "norm.scale"


def test_an_address_covers_its_own_member_only():
    for info in TABLE:
        for index in np.ndindex(*info.bank_shape):
            names = dict(zip(("layer", "expert"), index, strict=False))
            expected = np.zeros(info.bank_shape, bool)
            expected[index] = True
            assert covered(info.address(**names)) == {info.path: expected.tolist()}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("embedding", {"embedding": True}),
        ("layer.*.*.router", {ROUTER: [True] * LAYERS}),
        ("layer.3", {LATE: [True, False]}),
        ("layer.2-3.feed_forward.up", {LATE: [True, False]}),
        ("layer.0-1.*.router", {ROUTER: [True, True, False]}),
        ("layer.[02].*.router", {ROUTER: [True, False, True]}),
        ("layer.*.*.r*ter", {ROUTER: [True] * LAYERS}),
        ("layer.0.feed_forward.expert.0", {BANK: [[True, *[False] * 3], *[[False] * 4] * 2]}),
        ("layer.1.feed_forward.expert.2-3", {BANK: [[False] * 4, [0, 0, 1, 1], [False] * 4]}),
        ("layer.*.feed_forward.expert.[13]", {BANK: [[False, True, False, True]] * LAYERS}),
    ],
)
def test_patterns(pattern, expected):
    assert covered(pattern) == expected


def test_a_star_covers_everything():
    assert all(np.all(mask) for mask in covered("*").values())
    assert list(covered("*")) == [info.path for info in TABLE]


@given(st.sets(st.integers(0, LAYERS - 1), min_size=1), st.sets(st.integers(0, 3), min_size=1))
def test_several_patterns_cover_their_union(layers, experts):
    pairs = list(itertools.product(layers, experts))
    masks = TABLE.select(f"layer.{i}.feed_forward.expert.{e}" for i, e in pairs)
    assert set(masks) == {BANK}
    assert {tuple(map(int, pair)) for pair in np.argwhere(masks[BANK])} == set(pairs)


@pytest.mark.parametrize(
    ("pattern", "remark"),
    [
        ("embeding", "did you mean 'embedding'"),
        ("layer.0.feed_forward.expret.1", r"did you mean 'layer\.0\.feed_forward\.expert\.1'"),
        ("layer.5", "covers no parameter"),
        ("layer.0.feed_forward.expert.4", "covers no parameter"),
        ("embedding.weight", "did you mean 'embedding'"),
        ("", "covers no parameter"),
    ],
)
def test_a_pattern_that_covers_nothing_is_refused(pattern, remark):
    with pytest.raises(InputError, match=remark) as error:
        TABLE.select(["norm", pattern])
    assert repr(pattern) in str(error.value)


def test_bricks_are_listed_once_and_each_covers_something():
    bricks = TABLE.bricks()
    assert len(bricks) == len(set(bricks))
    experts = [name for name in bricks if ".expert." in name]
    assert len(experts) == LAYERS * EXPERTS
    assert {"embedding", "norm", "layer.2.feed_forward.router"} <= set(bricks)
    union = TABLE.select(bricks)
    assert all(mask.all() for mask in union.values())
    assert set(union) == {info.path for info in TABLE}


keys = st.from_regex("[a-z0-9]{1,2}", fullmatch=True)
leaves = st.dictionaries(keys, st.integers(), max_size=2)
branches = st.dictionaries(keys, st.integers() | leaves, max_size=3)


@given(st.dictionaries(keys, st.integers() | branches, max_size=3))
def test_flatten_and_unflatten_are_inverse(tree):
    flat = flatten(tree)
    assert all(isinstance(leaf, int) for leaf in flat.values())
    assert flatten(nest(flat)) == flat
