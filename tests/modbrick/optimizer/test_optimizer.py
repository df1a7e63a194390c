"""Updates against Optax and, brick by brick, against the rules of the config."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from modbrick.errors import InputError
from modbrick.optimizer import GroupConfig, MuonConfig, Optimizer, OptimizerConfig, ScheduleConfig
from modbrick.parameters import ParameterInfo, ParameterTable, Partition

pytestmark = pytest.mark.usefixtures("quick_compilation")
LAYERS, EXPERTS, WIDTH, HIDDEN = 3, 4, 8, 12
UP = "segments.0.feed_forward.up.weight"
DOWN = "segments.0.feed_forward.down.weight"
ROUTER = "segments.0.feed_forward.router.output.weight"
NORM = "segments.0.feed_forward_norm.scale"
KEY = "segments.0.attention.key.weight"
TABLE = ParameterTable(
    [
        ParameterInfo("embedding", (16, WIDTH), ("vocabulary", "width"), role="embedding"),
        ParameterInfo("head.weight", (WIDTH, 16), ("width", "vocabulary"), role="head"),
        ParameterInfo("norm.bias", (WIDTH,), ("width",)),
        ParameterInfo.of_segment(KEY, (LAYERS, WIDTH, WIDTH), ("layer", "width", "key_heads")),
        ParameterInfo.of_segment(NORM, (LAYERS, WIDTH), ("layer", "width")),
        ParameterInfo.of_segment(
            ROUTER, (LAYERS, WIDTH, EXPERTS), ("layer", "width", "router_expert"), role="router"
        ),
        ParameterInfo.of_segment(
            UP, (LAYERS, EXPERTS, WIDTH, HIDDEN), ("layer", "expert", "width", "hidden")
        ),
        ParameterInfo.of_segment(
            DOWN, (LAYERS, EXPERTS, HIDDEN, WIDTH), ("layer", "expert", "hidden", "width")
        ),
    ]
)
CONSTANT = ScheduleConfig("constant")
PLAIN = OptimizerConfig(
    learning_rate=1e-2, schedule=CONSTANT, weight_decay=0.0, max_gradient_norm=None
)


def values(seed, scale=1.0):
    random = np.random.default_rng(seed)
    return {
        info.path: jnp.asarray(scale * random.normal(size=info.shape), jnp.float32)
        for info in TABLE
    }


def setup(config, total_steps=100):
    partition = Partition(TABLE, trainable=config.trainable, frozen=config.frozen)
    optimizer = Optimizer(config, partition, total_steps)
    trainable, _ = partition.split(values(0))
    return partition, jax.jit(optimizer.update), optimizer.init(trainable), trainable


def one_update(config, scale=1.0):
    """Returns what one update changes, flat, with the parameters before it."""
    partition, update, state, before = setup(config)
    gradients, _ = partition.split(values(1, scale))
    after, _, _ = update(gradients, state, before)
    return {p: np.asarray(x) for p, x in jax.tree.map(jnp.subtract, after, before).items()}


def assert_close(a, b, rtol=2e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-8), a, b)


def test_adamw_equals_optax_step_by_step():
    config = OptimizerConfig(
        learning_rate=1e-2,
        schedule=ScheduleConfig("cosine", warm_up_steps=2),
        weight_decay=0.1,
        no_weight_decay=(),
        max_gradient_norm=1.0,
    )
    _, update, state, parameters = setup(config, total_steps=6)
    reference = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            optax.warmup_cosine_decay_schedule(0.0, 1e-2, 2, 6, 1e-3),
            b1=config.b1,
            b2=config.b2,
            eps=config.epsilon,
            weight_decay=0.1,
        ),
    )
    expected, reference_state = parameters, reference.init(parameters)
    reference_update = jax.jit(reference.update)
    for step in range(6):
        gradients = values(step + 1, scale=10.0 ** (step - 3))  # clipped, and not
        parameters, state, metrics = update(gradients, state, parameters)
        changes, reference_state = reference_update(gradients, reference_state, expected)
        expected = optax.apply_updates(expected, changes)
        assert_close(parameters, expected)
        np.testing.assert_allclose(metrics.gradient_norm, optax.tree.norm(gradients), rtol=1e-6)
    assert int(state.step) == 6
    assert int(state.adamw.count) == 6


def test_muon_equals_muon_of_each_matrix():
    config = dataclasses.replace(
        PLAIN, kind="muon", weight_decay=0.1, muon=MuonConfig(consistent_rms=0.2)
    )
    _, update, state, parameters = setup(config)
    reference = optax.contrib.muon(1e-2, weight_decay=0.1, consistent_rms=0.2)
    matrices = {
        (path, *index): parameters[path][index]
        for path in (KEY, UP, DOWN)
        for index in np.ndindex(*TABLE[path].bank_shape)
    }
    states = {name: reference.init(matrix) for name, matrix in matrices.items()}
    reference_update = jax.jit(reference.update)
    for step in range(2):
        gradients = values(step + 1)
        parameters, state, _ = update(gradients, state, parameters)
        for (path, *index), matrix in matrices.items():
            name = (path, *index)
            gradient = gradients[path][tuple(index)]
            change, states[name] = reference_update(gradient, states[name], matrix)
            matrices[name] = matrix + change
    for (path, *index), matrix in matrices.items():
        got = parameters[path][tuple(index)]
        np.testing.assert_allclose(got, matrix, rtol=1e-4, atol=1e-6)


def test_muon_leaves_the_rest_to_adamw():
    muon, adamw = (one_update(dataclasses.replace(PLAIN, kind=kind)) for kind in ("muon", "adamw"))
    for path in muon:
        equal = np.allclose(muon[path], adamw[path], rtol=1e-5)
        assert equal == (path not in (KEY, UP, DOWN)), path


def test_muon_on_members_of_a_bank_equals_muon_on_the_bank():
    config = dataclasses.replace(PLAIN, kind="muon")
    whole = one_update(config)[UP]
    part = one_update(dataclasses.replace(config, frozen=("layer.1.feed_forward.expert.2",)))[UP]
    kept = np.delete(whole.reshape(-1, WIDTH, HIDDEN), EXPERTS + 2, axis=0)
    np.testing.assert_allclose(part, kept, rtol=1e-4, atol=1e-7)


def test_multipliers_reach_exactly_the_addressed_bricks():
    groups = (
        GroupConfig(("layer.*.*.router",), 0.5),
        GroupConfig(("layer.1.feed_forward.expert.2",), 3.0),
        GroupConfig(("embedding",), 0.0),
    )
    base = one_update(PLAIN)
    got = one_update(dataclasses.replace(PLAIN, groups=groups))
    expected = {path: np.ones(change.shape, np.float32) for path, change in base.items()}
    expected[ROUTER][:] = 0.5
    expected["embedding"][:] = 0.0
    for path in (UP, DOWN):
        expected[path][1, 2] = 3.0
    for path, change in base.items():
        assert np.abs(change).min() > 1e-3  # each value moves, so that each one tests something
        np.testing.assert_allclose(got[path], change * expected[path], rtol=1e-4, atol=1e-7)


def test_multipliers_reach_members_of_a_partly_frozen_bank():
    config = dataclasses.replace(PLAIN, frozen=("layer.0.feed_forward.expert.1",))
    grouped = (GroupConfig(("layer.1.feed_forward.expert.2",), 3.0),)
    base = one_update(config)[UP]
    got = one_update(dataclasses.replace(config, groups=grouped))[UP]
    factor = np.ones((LAYERS * EXPERTS - 1, 1, 1))
    factor[EXPERTS + 2 - 1] = 3.0
    np.testing.assert_allclose(got, base * factor, rtol=1e-4, atol=1e-7)


def test_the_last_group_that_covers_a_brick_counts():
    groups = (GroupConfig(("layer",), 5.0), GroupConfig(("layer.2",), 2.0))
    base = one_update(PLAIN)[KEY]
    got = one_update(dataclasses.replace(PLAIN, groups=groups))[KEY]
    np.testing.assert_allclose(got, base * np.array([5, 5, 2])[:, None, None], rtol=1e-4)


def test_weight_decay_spares_its_exceptions():
    decay = 0.5
    config = dataclasses.replace(PLAIN, weight_decay=decay)
    group = GroupConfig(("layer.0.feed_forward.expert.3",), weight_decay=0.25)
    base, got = one_update(PLAIN), one_update(dataclasses.replace(config, groups=(group,)))
    before = values(0)
    for path, change in got.items():
        factor = np.zeros(change.shape) if path in ("embedding", "norm.bias", NORM) else decay
        if path in (UP, DOWN):
            factor = np.full(change.shape, decay)
            factor[0, 3] = 0.25
        expected = -PLAIN.learning_rate * factor * np.asarray(before[path])
        np.testing.assert_allclose(change - base[path], expected, rtol=1e-3, atol=2e-6)


def test_a_group_may_decay_what_its_class_excludes():
    group = GroupConfig(("embedding",), weight_decay=1.0)
    base = one_update(PLAIN)["embedding"]
    got = one_update(dataclasses.replace(PLAIN, groups=(group,)))["embedding"]
    expected = -PLAIN.learning_rate * np.asarray(values(0)["embedding"])
    np.testing.assert_allclose(got - base, expected, rtol=1e-3, atol=2e-6)


def test_clipping_scales_gradients_to_the_norm():
    clipped = dataclasses.replace(PLAIN, max_gradient_norm=0.5, b1=0.5)
    _, update, state, parameters = setup(clipped)
    gradients = values(1)
    norm = optax.tree.norm(gradients)
    _, new, metrics = update(gradients, state, parameters)
    np.testing.assert_allclose(metrics.gradient_norm, norm, rtol=1e-6)
    # After one step the first moment is half of the gradient used.
    np.testing.assert_allclose(2 * optax.tree.norm(new.adamw.mu), 0.5, rtol=1e-5)
    small = jax.tree.map(lambda g: g * (0.25 / norm), gradients)
    _, new, _ = update(small, state, parameters)
    assert_close(jax.tree.map(lambda m: 2 * m, new.adamw.mu), small, rtol=1e-6)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("path", ["norm.bias", UP])
def test_non_finite_gradients_change_nothing_and_are_counted(kind, bad, path):
    _, update, state, parameters = setup(dataclasses.replace(PLAIN, kind=kind))
    parameters, state, metrics = update(values(1), state, parameters)
    assert not metrics.skipped
    flat = values(2)
    flat[path] = flat[path].at[(0,) * flat[path].ndim].set(bad)
    before, moments = parameters, (state.adamw, state.muon)
    for count in (1, 2):
        parameters, state, metrics = update(flat, state, parameters)
        jax.tree.map(np.testing.assert_array_equal, parameters, before)
        jax.tree.map(np.testing.assert_array_equal, (state.adamw, state.muon), moments)
        assert metrics.skipped
        assert not np.isfinite(metrics.gradient_norm)
        assert int(metrics.skipped_in_a_row) == int(metrics.skipped_total) == count
    assert int(state.step) == 3  # the schedule goes on
    parameters, state, metrics = update(values(2), state, parameters)
    assert not metrics.skipped
    assert int(metrics.skipped_in_a_row) == int(state.skipped_in_a_row) == 0
    assert int(metrics.skipped_total) == int(state.skipped_total) == 2
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), parameters, before)
    assert all(jax.tree.leaves(changed))


def test_a_skipped_update_is_as_if_it_had_not_been():
    """Moments and their bias corrections do not see it; with a constant rate nothing does."""
    _, update, state, parameters = setup(PLAIN)
    clean_state, clean = state, parameters
    bad = jax.tree.map(lambda x: x * jnp.nan, values(9))
    for step, gradients in enumerate([bad, values(1), bad, values(2)]):
        parameters, state, _ = update(gradients, state, parameters)
        if step % 2:
            clean, clean_state, _ = update(gradients, clean_state, clean)
    jax.tree.map(np.testing.assert_array_equal, parameters, clean)


def test_without_the_guard_non_finite_gradients_show():
    _, update, state, parameters = setup(dataclasses.replace(PLAIN, skip_non_finite=False))
    bad = jax.tree.map(lambda x: x * jnp.nan, values(9))
    parameters, _, metrics = update(bad, state, parameters)
    assert not metrics.skipped
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(parameters))


def test_one_nan_among_many_values_is_seen():
    """Wide reductions may lose NaN on a CPU; this one must not, wherever it stands."""
    table = ParameterTable([ParameterInfo("head.weight", (96, 4097), ("width", "vocabulary"))])
    optimizer = Optimizer(PLAIN, Partition(table), 10)
    parameters = {"head.weight": jnp.ones((96, 4097))}
    state, update = optimizer.init(parameters), jax.jit(optimizer.update)
    for where in [(0, 0), (50, 2048), (95, 4096)]:
        gradients = {"head.weight": jnp.ones((96, 4097)).at[where].set(jnp.nan)}
        assert update(gradients, state, parameters)[2].skipped


FIXED = 4 * 4  # step, AdamW's count, skipped_total, skipped_in_a_row


@pytest.mark.parametrize(
    ("config", "trained"),
    [
        (OptimizerConfig(), sum(info.size for info in TABLE)),
        (
            OptimizerConfig(trainable=("layer.1.feed_forward.expert.2",)),
            2 * WIDTH * HIDDEN,
        ),
        (
            OptimizerConfig(frozen=("layer.0-1",)),
            sum(info.size // (LAYERS if "layer" in info.axes else 1) for info in TABLE),
        ),
        (
            OptimizerConfig(frozen=("layer.*.*.router",)),
            sum(info.size for info in TABLE) - TABLE[ROUTER].size,
        ),
        (
            OptimizerConfig(frozen=("layer.*.feed_forward.expert.0",)),
            sum(info.size for info in TABLE) - 2 * LAYERS * WIDTH * HIDDEN,
        ),
    ],
)
def test_what_is_frozen_has_no_gradient_and_no_state(config, trained):
    partition, _, state, trainable = setup(config)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == FIXED + 2 * 4 * trained
    _, rest = partition.split(values(0))

    def loss(part):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(partition.join(part, rest)))

    gradients = jax.grad(loss)(trainable)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(gradients)) == 4 * trained


def test_muon_holds_one_moment_instead_of_two():
    _, _, state, _ = setup(OptimizerConfig(kind="muon"))
    size = {info.path: info.size for info in TABLE}
    matrices = sum(size[path] for path in (KEY, UP, DOWN))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.muon.mu)) == matrices
    rest = sum(size.values()) - matrices
    for moment in (state.adamw.mu, state.adamw.nu):
        assert sum(leaf.size for leaf in jax.tree.leaves(moment)) == rest


def test_the_update_makes_one_loop_for_each_result_and_copies_nothing():
    """Of each leaf three results (two moments and the parameter), all in place."""
    config = OptimizerConfig(groups=(GroupConfig(("layer.1.feed_forward.expert.2",), 3.0),))
    partition = Partition(TABLE)
    optimizer = Optimizer(config, partition, 100)
    trainable = values(0)
    state = optimizer.init(trainable)

    def step(trainable, state, gradients):
        return optimizer.update(gradients, state, trainable)

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(trainable, state, values(1)).compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    assert text is not None
    assert memory is not None
    entry = text[text.index("ENTRY") :].splitlines()
    whole = "f32[" + ",".join(map(str, TABLE[UP].shape)) + "]"
    made = [line for line in entry if f"= {whole}" in line and " parameter(" not in line]
    if jax.default_backend() == "cpu":
        assert len(made) == 3, "\n".join(made)
        assert all(" fusion(" in line for line in made), "\n".join(made)
    assert memory.alias_size_in_bytes >= 3 * sum(info.size for info in TABLE) * 4
    bank = TABLE[UP].size * 4
    assert memory.temp_size_in_bytes < bank + 4096


def test_misspelt_group_names_the_nearest_brick():
    config = OptimizerConfig(groups=(GroupConfig(("layer.0.feed_forward.ruoter",)),))
    with pytest.raises(InputError, match=r"did you mean 'layer\.0\.feed_forward\.router'"):
        setup(config)


def test_the_update_is_deterministic():
    _, update, state, parameters = setup(OptimizerConfig())
    first = update(values(1), state, parameters)
    for _ in range(3):
        jax.tree.map(np.testing.assert_array_equal, update(values(1), state, parameters), first)
