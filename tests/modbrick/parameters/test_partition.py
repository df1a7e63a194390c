"""Splitting by address: exact both ways, and its gradient is the masked full gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modbrick.errors import InputError
from modbrick.parameters import ParameterInfo, ParameterTable, Partition

LAYERS, EXPERTS = 3, 4
TABLE = ParameterTable(
    [
        ParameterInfo("embedding", (6, 2), ("vocabulary", "width")),
        ParameterInfo("norm.scale", (2,), ("width",)),
        ParameterInfo.of_segment(
            "segments.0.attention_norm.scale", (LAYERS, 2), ("layer", "width")
        ),
        ParameterInfo.of_segment(
            "segments.0.feed_forward.up.weight",
            (LAYERS, EXPERTS, 2, 3),
            ("layer", "expert", "width", "hidden"),
        ),
        ParameterInfo.of_segment(
            "segments.1.feed_forward.up.weight", (1, 2, 3), ("layer", "width", "hidden"), LAYERS
        ),
    ]
)
BANK = "segments.0.feed_forward.up.weight"


def parameters(seed=0):
    values = np.random.default_rng(seed)
    return {info.path: jnp.asarray(values.normal(size=info.shape), jnp.float32) for info in TABLE}


def mask_of(patterns_trainable, patterns_frozen):
    """Mask of the trained values, value by value, from the address table alone."""
    trained, held = TABLE.select(patterns_trainable), TABLE.select(patterns_frozen)
    masks = {}
    for info in TABLE:
        off = np.zeros(info.bank_shape, bool)
        mask = trained.get(info.path, off) & ~held.get(info.path, off)
        extra = len(info.shape) - mask.ndim
        masks[info.path] = np.broadcast_to(mask.reshape(mask.shape + (1,) * extra), info.shape)
    return masks


components = st.one_of(
    st.sampled_from(["*", "layer.*", "layer.0-1", "embedding", "norm", "layer.3"]),
    st.builds("layer.{}".format, st.integers(0, LAYERS)),
    st.builds(
        "layer.{}.feed_forward.expert.{}".format,
        st.sampled_from(["*", "0", "1", "2", "[02]", "1-2"]),
        st.sampled_from(["*", "0", "1", "2", "3", "[13]", "2-3"]),
    ),
)
patterns = st.lists(components, min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(trainable=patterns, frozen=st.lists(components, max_size=4))
def test_split_and_join_are_inverse_and_count_every_value_once(trainable, frozen):
    masks = mask_of(trainable, frozen)
    count = sum(int(mask.sum()) for mask in masks.values())
    if count == 0:
        with pytest.raises(InputError, match="nothing is left to train"):
            Partition(TABLE, trainable=trainable, frozen=frozen)
        return
    partition = Partition(TABLE, trainable=trainable, frozen=frozen)
    whole = parameters()
    part, rest = partition.split(whole)
    for path, leaf in part.items():
        members = partition.trainable[path]
        assert leaf.shape == members.shape
        assert len(members.axes) == leaf.ndim
        # The same values, in the order of layers and then experts.
        expected = np.asarray(whole[path])[masks[path]]
        np.testing.assert_array_equal(np.asarray(leaf).reshape(-1), expected)
    assert sum(leaf.size for leaf in jax.tree.leaves(part)) == count
    assert sum(x.size for x in jax.tree.leaves((part, rest))) == sum(info.size for info in TABLE)
    joined = partition.join(part, rest)
    jax.tree.map(np.testing.assert_array_equal, joined, whole)


@settings(max_examples=4, deadline=None)
@given(trainable=patterns)
def test_gradient_through_join_is_the_masked_full_gradient(trainable):
    partition = Partition(TABLE, trainable=trainable)
    whole, weights = parameters(), parameters(1)

    def loss(p):
        terms = jax.tree.map(lambda a, b: jnp.sum(jnp.sin(a * b)), p, weights)
        return sum(jax.tree.leaves(terms))

    full = jax.grad(loss)(whole)
    part, rest = partition.split(whole)
    got = jax.jit(jax.grad(lambda part: loss(partition.join(part, rest))))(part)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, partition.split(full)[0]
    )


@pytest.mark.parametrize(
    ("frozen", "shape", "axes"),
    [
        (("layer.1",), (2, EXPERTS, 2, 3), ("layer", "expert", "width", "hidden")),
        (("layer.*.feed_forward.expert.0",), (LAYERS, 3, 2, 3), TABLE[BANK].axes),
        (("layer.1.feed_forward.expert.0",), (11, 2, 3), ("brick", "width", "hidden")),
        ((), (LAYERS, EXPERTS, 2, 3), TABLE[BANK].axes),
    ],
)
def test_axes_are_kept_where_the_mask_allows(frozen, shape, axes):
    members = Partition(TABLE, frozen=frozen).trainable[BANK]
    assert members.shape == shape
    assert members.axes == axes
    assert members.brick_axes == len(shape) - 2


def test_whole_leaves_are_passed_on_without_copies():
    partition = Partition(TABLE, frozen=("embedding",))
    whole = parameters()
    part, rest = partition.split(whole)
    assert rest["embedding"] is whole["embedding"]
    joined = partition.join(part, rest)
    before, after = whole, joined
    assert all(after[path] is before[path] for path in before)


def test_selection_follows_the_members():
    partition = Partition(
        TABLE, trainable=("layer.0.feed_forward.expert.2", "layer.2.feed_forward")
    )
    masks = partition.select(("layer.2.feed_forward.expert.1", "embedding"))
    assert list(masks) == [BANK]
    # Members: (0, 2), (2, 0), (2, 1), (2, 2), (2, 3).
    np.testing.assert_array_equal(masks[BANK], [False, False, True, False, False])


def test_absolute_layers_reach_the_right_segment():
    partition = Partition(TABLE, trainable=("layer.3",))
    assert list(partition.trainable) == ["segments.1.feed_forward.up.weight"]


def test_misspelt_pattern_names_the_nearest_brick():
    with pytest.raises(InputError, match=r"'layer.0.feed_foward.expert.1'.*did you mean"):
        Partition(TABLE, frozen=("layer.0.feed_foward.expert.1",))
    with pytest.raises(InputError, match="did you mean 'embedding'"):
        Partition(TABLE, trainable=("embeding",))


def test_freezing_everything_is_refused():
    with pytest.raises(InputError, match="nothing is left to train"):
        Partition(TABLE, frozen=("*",))


def test_parameters_of_another_model_are_refused_by_name():
    partition = Partition(TABLE)
    whole = parameters()
    part, rest = partition.split(whole)
    del part["embedding"]
    with pytest.raises(ValueError, match="missing \\['embedding'\\]"):
        partition.join(part, rest)
    with pytest.raises(ValueError, match="unexpected \\['head'\\]"):
        partition.split(whole | {"head": jnp.zeros(2)})


def test_parts_under_jit_with_abstract_values():
    """The shapes that a checkpoint is restored into come from an abstract split."""
    partition = Partition(TABLE, frozen=("layer.1.feed_forward.expert.0",))
    part, _ = jax.eval_shape(partition.split, parameters())
    assert part[BANK].shape == partition.trainable[BANK].shape


def test_frozen_parameters_may_be_held_in_fewer_bits():
    frozen = ("embedding", "layer.*.feed_forward.expert.1")
    partition = Partition(TABLE, frozen=frozen, frozen_dtype="bfloat16")
    whole = parameters()
    part, rest = partition.split(whole)
    assert {leaf.dtype.name for leaf in part.values()} == {"float32"}
    assert {leaf.dtype.name for leaf in rest.values()} == {"bfloat16"}
    joined = partition.join(part, rest)
    assert joined["embedding"].dtype == jnp.bfloat16
    # A bank of both is one array, in which what is trained keeps its bits.
    assert joined[BANK].dtype == jnp.float32
    np.testing.assert_array_equal(joined[BANK][:, [0, 2, 3]], whole[BANK][:, [0, 2, 3]])
    np.testing.assert_array_equal(
        joined[BANK][:, 1], whole[BANK][:, 1].astype(jnp.bfloat16).astype(jnp.float32)
    )
