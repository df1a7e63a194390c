"""Many bricks in one model: each example has its own, whatever else is in the batch."""

from __future__ import annotations

import functools
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.bricks import (
    IA3,
    Adapter,
    Bias,
    BrickConfig,
    DoRA,
    LoRA,
    NormTuning,
    Plugged,
    Settings,
    initial_bricks,
    plugged,
)
from modbrick.decoder.arguments import spread
from modbrick.decoder.decoder import Decoder
from modbrick.decoder.functional import functional_decoder, initial_parameters
from modbrick.errors import InputError
from modbrick.layers.context import Context
from modbrick.layers.offer import Offer
from modbrick.parallel.choice import Choice
from tests.compilation import OPTIMISED, max_traces
from tests.modbrick.bricks import tiny
from tests.modbrick.bricks.tiny import FEW_SITES as BRICKS
from tests.modbrick.bricks.tiny import MODEL

pytestmark = pytest.mark.usefixtures("quick_compilation")
DECODER = functional_decoder(MODEL)
TOKENS = np.random.default_rng(0).integers(0, 31, (6, 7))
SETS = [
    *("de+tone+gain", None, "law+de+norms", "drift+style+beg", "tone+each", "back+fore+ask"),
]


def random_bricks(bricks: dict[str, BrickConfig] = BRICKS) -> dict[str, Any]:
    return tiny.random_bricks(bricks)


@pytest.fixture(scope="module")
def parameters() -> Any:
    return initial_parameters(MODEL, jax.random.key(0))


@jax.jit
def logits(
    parameters: Any, tokens: Any, bricks: Plugged | None, ids: Any, weights: Any = None
) -> Any:
    model = DECODER.bind(parameters)
    return model(tokens, bricks=bricks, brick_ids=ids, brick_weights=weights).logits


@pytest.fixture(scope="module")
def trained() -> Plugged:
    return plugged(MODEL, BRICKS, random_bricks())


# In stacks with room for the others, one program computes each set; in its own, each compiles.
@pytest.mark.parametrize("room", [True, pytest.param(False, marks=pytest.mark.verify)])
def test_a_batch_of_many_sets_is_each_example_alone(
    parameters: Any, trained: Plugged, room: bool
) -> None:
    together = np.asarray(logits(parameters, TOKENS, trained, trained.ids(SETS)))
    values = random_bricks()
    for example, given in enumerate(SETS):
        tokens = np.repeat(TOKENS[example : example + 1], len(SETS), axis=0)
        names = {} if given is None else {name: BRICKS[name] for name in given.split("+")}
        # Plugged in alone, without ids: all apply.
        plug = plugged(MODEL, names, values, like=trained if room else None)
        alone = logits(parameters, tokens, plug, None)[0]
        np.testing.assert_allclose(together[example], alone, rtol=1e-5, atol=1e-5)
        if given is not None:
            plain = logits(parameters, tokens, None, None)[0]
            assert np.abs(together[example] - plain).max() > 1e-2, given


def test_without_bricks_an_example_keeps_its_bits(parameters: Any, trained: Plugged) -> None:
    """Whatever bricks are plugged in: the program is one, the values are not."""
    new = plugged(MODEL, BRICKS, initial_bricks(MODEL, BRICKS, jax.random.key(1)))
    none = trained.ids([None] * len(TOKENS))
    base = logits(parameters, TOKENS, new, np.broadcast_to(none, (len(TOKENS), 1, 3)))
    mixed = logits(parameters, TOKENS, trained, trained.ids(SETS))
    assert np.array_equal(mixed[1], base[1])
    np.testing.assert_allclose(base, logits(parameters, TOKENS, None, None), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("capture", [(), ("feed_forward.up",)])
def test_where_nobody_has_a_brick_in_a_bank_it_runs_as_one_operation(
    parameters: Any, capture: tuple[str, ...]
) -> None:
    """To the bit, which in bfloat16 it does not product by product."""
    bricks = {name: BRICKS[name] for name in ("each", "gain")}
    plug = plugged(MODEL, bricks, random_bricks(bricks))
    decoder = functional_decoder(MODEL.replace(dtype="bfloat16"))

    @functools.partial(jax.jit, compiler_options=OPTIMISED)
    def run(bricks: Plugged | None, ids: Any) -> Any:
        model = decoder.bind(parameters)
        tokens = jnp.asarray(TOKENS)
        return model(tokens, bricks=bricks, brick_ids=ids, capture=capture if bricks else ())

    plain = np.asarray(run(None, None).logits)
    nobody = run(plug, plug.ids([None] * len(TOKENS)))
    assert np.array_equal(nobody.logits, plain)
    assert set(nobody.captured) == set(capture)
    somebody = run(plug, plug.ids(["each", *[None] * 5]))
    assert np.abs(somebody.logits[0] - plain[0]).max() > 0.03
    np.testing.assert_allclose(somebody.logits[1:], plain[1:], atol=0.03)


def test_tokens_have_bricks_of_their_own_with_weights(parameters: Any, trained: Plugged) -> None:
    """From the fourth token on half of one brick: those before do not know."""
    ids = np.full((*TOKENS.shape, 1), -1)
    ids[:, 3:] = trained.names.index("de")
    weights = np.full(ids.shape, 0.5, np.float32)
    half = np.asarray(logits(parameters, TOKENS, trained, ids, weights))
    plain = np.asarray(logits(parameters, TOKENS, None, None))
    np.testing.assert_allclose(half[:, :3], plain[:, :3], rtol=1e-5, atol=1e-6)
    assert (np.abs(half[:, 3:] - plain[:, 3:]).max(-1) > 1e-4).all()
    # Half the weight of a LoRA is half its `up`.
    values = random_bricks()
    smaller = {
        p: x * (0.5 if p.startswith("bricks.de.") and p.endswith("up") else 1)
        for p, x in values.items()
    }
    whole = logits(parameters, TOKENS, plugged(MODEL, BRICKS, smaller), ids, np.ones_like(weights))
    np.testing.assert_allclose(half, whole, rtol=1e-5, atol=1e-5)


def test_adding_swapping_and_removing_compiles_nothing(parameters: Any) -> None:
    query = ("layer.*.attention.query",)
    big, small = BrickConfig(query, LoRA(rank=3)), BrickConfig((*query, "head"), LoRA(rank=2))
    bricks = {"one": big, "two": small, "three": small}
    values = random_bricks(bricks)
    first = plugged(MODEL, bricks, values)
    sets = ["one", "two", None, "three", "two", None]
    wanted = np.asarray(logits(parameters, TOKENS, first, first.ids(sets)))
    with max_traces(Decoder, "features", 0):
        # Removed, and in another order.
        fewer = plugged(MODEL, {"two": small}, values, like=first)
        ids = fewer.ids(["two" if given == "two" else None for given in sets])
        found = np.asarray(logits(parameters, TOKENS, fewer, ids))
        np.testing.assert_array_equal(found[[1, 4]], wanted[[1, 4]])
        # Another one in its place.
        new = plugged(
            MODEL, {"new": small, "one": big}, random_bricks({"new": small, "one": big}), like=first
        )
        found = logits(parameters, TOKENS, new, new.ids(["one", "new", None, "new", None, None]))
        assert not np.array_equal(found, wanted)


def test_longer_prefixes_and_prompts_leave_room_for_shorter_ones(parameters: Any) -> None:
    bricks = {name: BRICKS[name] for name in ("fore", "back", "ask", "beg")}
    values = random_bricks()
    first = plugged(MODEL, bricks, values)
    sets = ["back", "beg", "beg+back", *[None] * 3]
    wanted = logits(parameters, TOKENS, first, first.ids(sets))
    with max_traces(Decoder, "features", 0):
        fewer = plugged(MODEL, {n: BRICKS[n] for n in ("beg", "back")}, values, like=first)
        found = logits(parameters, TOKENS, fewer, fewer.ids(sets))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BrickConfig(("layer.*.attention.query",), LoRA(rank=5)), "before there was room for"),
        (
            BrickConfig(("layer.*.attention.key",), LoRA(rank=2)),
            "at segments.0.attention.key before",
        ),
        (BrickConfig(("layer.*.attention.query",), IA3()), "bricks of another kind"),
        (BrickConfig(("head",), LoRA(rank=2)), "no bricks were plugged in at head before"),
    ],
)
def test_what_would_compile_again_is_refused(config: BrickConfig, message: str) -> None:
    first = {"one": BrickConfig(("layer.*.attention.query",), LoRA(rank=2))}
    like = plugged(MODEL, first, random_bricks(first))
    with pytest.raises(InputError, match=message):
        plugged(MODEL, {"other": config}, random_bricks({"other": config}), like=like)


def test_a_model_has_what_is_plugged_in(parameters: Any) -> None:
    plug = plugged(MODEL, {name: BRICKS[name] for name in ("de", "gain", "fore")}, random_bricks())
    model = DECODER.bind(parameters).plug(plug)
    want = logits(parameters, TOKENS, plug, None)
    np.testing.assert_allclose(
        jax.jit(lambda t: model(t).logits)(TOKENS), want, rtol=1e-5, atol=1e-6
    )


RANDOM = np.random.default_rng(1)
EXPERTS = jnp.asarray(RANDOM.integers(0, 4, (2, 3, 2)))


def drawn(*shape: int) -> Any:
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


# At a site of each sort: what it has, and the kinds.
AT: dict[str, tuple[tuple[Any, Any, Offer], dict[str, Settings]]] = {
    "attention.key": (
        (drawn(2, 3, 16), drawn(2, 3, 8), Offer(drawn(16, 8), drawn(8))),
        {
            "lora": LoRA(rank=2),
            "dora": DoRA(rank=2),
            "adapter": Adapter(hidden=3),
            "ia3": IA3(),
            "bias": Bias(),
        },
    ),
    "attention.query": (
        (drawn(2, 3, 16), drawn(2, 3, 2, 8), Offer(None, None, EXPERTS, drawn(2, 3, 2))),
        {"lora": LoRA(rank=2), "each": LoRA(rank=2, pairs="expert")},
    ),
    "attention_norm": ((drawn(2, 3, 16), drawn(2, 3, 16), Offer()), {"norm": NormTuning()}),
}


@pytest.mark.parametrize(
    ("site", "first", "second"),
    [(site, *pair) for site, (_, kinds) in AT.items() for pair in product(kinds, kinds)],
)
def test_two_kinds_at_one_site_are_what_they_are_alone(site: str, first: str, second: str) -> None:
    """In one batch with all others, and in either order of their names."""
    (x, y, offer), kinds = AT[site]
    names = [f"{kind}{i}" for kind in kinds for i in (1, 2)]
    bricks = {name: BrickConfig((f"layer.*.{site}",), kinds[name[:-1]]) for name in names}
    values = random_bricks(bricks)
    a, b = f"{first}1", f"{second}2"

    def chosen(*sets: str) -> Choice | None:
        return spread(jnp.asarray(together.ids(sets)), None, x)

    def at_site(plug: Plugged, ids: Any) -> np.ndarray:
        banks = jax.tree.map(lambda array: array[1], plug.segments["0"][site])
        return np.asarray(Context(bricks={site: banks}, choice=ids).at(site, x, y, offer))

    together = plugged(MODEL, bricks, values)
    mixed = at_site(together, chosen(f"{a}+{b}", f"{b}+{a}"))
    for row, order in enumerate(((a, b), (b, a))):
        alone = at_site(plugged(MODEL, {n: bricks[n] for n in order}, values), None)
        np.testing.assert_allclose(mixed[row], alone[row], rtol=1e-5, atol=1e-5)
    if (first, second) != ("adapter", "adapter"):
        same = at_site(together, chosen(f"{a}+{b}", f"{a}+{b}"))
        np.testing.assert_allclose(same[1], mixed[1], rtol=1e-5, atol=1e-6)


def test_names_do_not_pass_through_compiled_functions(trained: Plugged) -> None:
    """They would be those of the first call."""
    out = jax.jit(lambda plug: plug)(trained)
    assert out.names == ()
    with pytest.raises(InputError, match="no brick 'de' is plugged in"):
        out.ids(["de"])


def test_longer_sets_have_room() -> None:
    plug = plugged(MODEL, {"de": BRICKS["de"]}, random_bricks())
    assert plug.ids(["de"], places=3).tolist() == [[[0, -1, -1]]]
    with pytest.raises(InputError, match="a set of 1 bricks does not fit 0 places"):
        plug.ids(["de"], places=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: None, "is missing among the parameters"),
        (lambda x: x[:1], r"has shape \[1, 16, 4\], the brick on this model needs \[3, 16, 4\]"),
        (lambda x: x[:, :8], r"has shape \[3, 8, 4\]"),
        (lambda x: x[..., :2], r"has shape \[3, 16, 2\]"),
    ],
    ids=["missing", "fewer layers", "narrower", "lower rank"],
)
def test_values_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    values = random_bricks()
    down = "bricks.law.segments.0.attention.query.down"
    if (changed := change(values.pop(down))) is not None:
        values[down] = changed
    with pytest.raises(InputError, match=message):
        plugged(MODEL, {"law": BRICKS["law"]}, values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"brick_ids": [12] * 6}, "brick ids from 12 to 12 do not fit 12 bricks"),
        ({"brick_ids": [-2] * 6}, "do not fit 12 bricks"),
        ({"brick_ids": [0] * 4}, r"brick_ids of shape \(4,\) do not fit tokens \(6, 7\)"),
        ({"brick_ids": [0.0] * 6}, "brick_ids are integers"),
        ({"brick_weights": [1.0] * 6}, "brick_weights stand beside brick_ids"),
        (
            {"brick_ids": [0] * 6, "brick_weights": [[[1.0, 1.0]]] * 6},
            "brick_weights for 2 bricks a token do not fit brick_ids for 1",
        ),
    ],
)
def test_ids_and_weights_that_cannot_be_are_refused(
    parameters: Any, trained: Plugged, arguments: dict[str, Any], message: str
) -> None:
    model = DECODER.bind(parameters)
    given: Any = {name: jnp.asarray(value) for name, value in arguments.items()}
    with pytest.raises(InputError, match=message):
        model.features(jnp.asarray(TOKENS), bricks=trained, **given)


def test_without_bricks_there_are_no_ids(parameters: Any) -> None:
    with pytest.raises(InputError, match="do not fit 0 bricks"):
        DECODER.bind(parameters).features(jnp.asarray(TOKENS), brick_ids=jnp.zeros(6, jnp.int32))


def test_weights_are_shaped_as_ids() -> None:
    """An example's weight is that of all its tokens, also where as many tokens as examples are."""
    tokens = jnp.zeros((3, 3), jnp.int32)
    choice = spread(jnp.zeros(3, jnp.int32), jnp.array([0.0, 1.0, 2.0]), tokens)
    assert choice is not None
    assert choice.weights is not None
    np.testing.assert_array_equal(choice.weights[..., 0], [[0] * 3, [1] * 3, [2] * 3])


def test_ids_name_sets(trained: Plugged) -> None:
    assert trained.ids(["law", None, "de+law"]).tolist() == [[[1, -1]], [[-1, -1]], [[0, 1]]]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["dee"], "no brick 'dee' is plugged in; did you mean 'de'"),
        (["de+law+de"], "brick 'de' stands twice in de[+]law[+]de"),
    ],
)
def test_sets_that_cannot_be_are_refused(trained: Plugged, sets: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trained.ids(sets)
