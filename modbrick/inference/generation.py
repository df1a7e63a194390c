"""Generation: prompts in, continuations out, with a key-value cache.

Prompts are padded on the left into one batch. One call fills the cache and chooses the first token;
a compiled loop then runs until every sequence has ended. Lengths are rounded up, so that few shapes
compile; how many tokens to make, the temperature and top_p are arguments of the compiled functions.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from modbrick.decoder.arguments import check_ids
from modbrick.decoder.decoder import Decoder
from modbrick.decoder.prompts import PROMPT
from modbrick.errors import InputError
from modbrick.inference.prompts import (
    check_prompts,
    check_token_ids,
    left_padded,
    rounded_up,
)
from modbrick.inference.result import GenerationResult
from modbrick.inference.sampling import DEFAULT_SAMPLING, SamplingConfig, greedy, sample
from modbrick.layers.cache import Cache
from modbrick.layers.context import Bricks

OnTokens = Callable[[int, list[int]], bool]
"""Gets the number of a sequence and its new tokens; True ends that sequence."""


def generate(
    model: Decoder | tuple[nnx.GraphDef[Decoder], Any],
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig = DEFAULT_SAMPLING,
    stop_tokens: Sequence[int] = (),
    seed: int | Sequence[int] = 0,
    bricks: Bricks | None = None,
    brick_ids: Sequence[int] | Int[np.ndarray, "B 1 K"] | None = None,
    brick_features: Mapping[str, Float[np.ndarray, "B P W"]] | None = None,
    on_tokens: OnTokens | None = None,
) -> GenerationResult:
    """Continues each prompt.

    What a prompt gets does not depend on the other prompts.

    Args:
      model: a decoder, or its graph and parameters as `nnx.split` returns them.
      prompts: token ids, of any lengths.
      max_new_tokens: at most so many for each prompt.
      sampling: how tokens are drawn.
      stop_tokens: ids that end a sequence.
      seed: of each sequence's draws, one for each prompt, below 2^32; a single one stands for seed,
        seed + 1, ...
      bricks: what is attached to the model; None: what is plugged into it.
      brick_ids: which of the bricks each prompt uses, -1 none; or which several, as
        `Plugged.ids` returns them. None: all.
      brick_features: of bricks that put them where a prompt has a placeholder, by name.
      on_tokens: called for each sequence after every token, in the order of the prompts.

    Examples:
        >>> import modbrick
        >>> modbrick.generate(modbrick.load_model("run"), [[1]], max_new_tokens=2).finish_reasons
        ['length']

    Raises:
      InputError: no prompt, an empty one, ids beyond the vocabulary, a number out of range; or
        logits that are not finite.
    """
    # As in `train_program`: imported by a trace, it would have the second call traced again.
    importlib.import_module("jax.experimental.pallas.tpu")
    graph, parameters = nnx.split(model) if isinstance(model, Decoder) else model
    bound = nnx.merge(graph, parameters)
    vocabulary = bound.config.vocabulary
    check_prompts(prompts, vocabulary)
    check_token_ids(stop_tokens, vocabulary, "stop_tokens")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    if brick_ids is not None and len(brick_ids) != len(prompts):
        raise InputError(f"{len(brick_ids)} brick_ids do not fit {len(prompts)} prompts")
    ids = None if brick_ids is None else jnp.asarray(brick_ids, jnp.int32)
    check_ids(ids, bricks or bound.plugged or Bricks())
    if PROMPT in (attached := bricks or bound.plugged or Bricks()).decoder:
        bricks = _encoded(nnx.as_pure(parameters), attached, graph=graph)
    request = _Request(
        parameters=nnx.as_pure(parameters),
        random_keys=_random_keys(seed, len(prompts)),
        temperature=jnp.float32(sampling.temperature),
        top_p=None if sampling.top_p in (None, 1.0) else jnp.float32(sampling.top_p),
        stop_tokens=jnp.asarray(stop_tokens, jnp.int32),
        bricks=bricks,
        brick_ids=ids,
        brick_features={name: jnp.asarray(x) for name, x in (brick_features or {}).items()},
    )
    static = {"graph": graph, "greedily": sampling.temperature == 0, "top_k": sampling.top_k}
    tokens, mask = left_padded(prompts)
    capacity = rounded_up(tokens.shape[1] + max_new_tokens)
    progress = _prefill(request, tokens, mask, capacity=capacity, **static)
    advance = functools.partial(_decode, request, **static)
    if on_tokens is None:
        progress, stopped = advance(progress, max_new_tokens), frozenset[int]()
    else:
        progress, stopped = _watched(advance, progress, max_new_tokens, on_tokens)
    return _result(progress, stopped)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Request:
    """Values that stay the same from the first token to the last."""

    parameters: Any
    random_keys: Key[Array, "B"]
    temperature: Float[Array, ""]
    top_p: Float[Array, ""] | None
    stop_tokens: Int[Array, "N"]
    bricks: Bricks | None
    brick_ids: Int[Array, "B"] | Int[Array, "B 1 K"] | None
    brick_features: dict[str, Float[Array, "B P W"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Progress:
    """State of generation: `step` tokens chosen, `lengths` of them up to each sequence's end."""

    cache: Cache
    tokens: Int[Array, "B N"]
    log_probabilities: Float[Array, "B N"]
    lengths: Int[Array, "B"]
    stopped: Bool[Array, "B"]
    step: Int[Array, ""]


@functools.partial(jax.jit, static_argnames="graph")
def _encoded(parameters: Any, bricks: Bricks, *, graph: nnx.GraphDef[Decoder]) -> Bricks:
    """Makes keys and values of prompts, once for all tokens."""
    return nnx.merge(graph, parameters).encoded(bricks)


@functools.partial(jax.jit, static_argnames=("graph", "greedily", "top_k", "capacity"))
def _prefill(
    request: _Request,
    tokens: Int[Array, "B S"],
    mask: Bool[Array, "B S"],
    *,
    graph: nnx.GraphDef[Decoder],
    greedily: bool,
    top_k: int | None,
    capacity: int,
) -> _Progress:
    """Runs the prompts and chooses the first token."""
    model = nnx.merge(graph, request.parameters)
    batch, room = tokens.shape[0], capacity - tokens.shape[1]
    features = model.features(
        tokens,
        attention_mask=mask,
        cache=Cache.empty(model.config, batch, capacity),
        bricks=request.bricks,
        brick_ids=request.brick_ids,
        brick_features=request.brick_features,
    )
    assert features.cache is not None
    progress = _Progress(
        cache=features.cache,
        tokens=jnp.zeros((batch, room), jnp.int32),
        log_probabilities=jnp.zeros((batch, room), jnp.float32),
        lengths=jnp.zeros(batch, jnp.int32),
        stopped=jnp.zeros(batch, bool),
        step=jnp.zeros((), jnp.int32),
    )
    return _chosen(model, request, progress, features.hidden[:, -1:], greedily, top_k)


@functools.partial(
    jax.jit, static_argnames=("graph", "greedily", "top_k"), donate_argnames="progress"
)
def _decode(
    request: _Request,
    progress: _Progress,
    limit: Int[Array, ""] | int,
    *,
    graph: nnx.GraphDef[Decoder],
    greedily: bool,
    top_k: int | None,
) -> _Progress:
    """Goes on until `limit` tokens are chosen or every sequence has stopped."""

    def unfinished(progress: _Progress) -> Bool[Array, ""]:
        return (progress.step < limit) & ~progress.stopped.all()

    def advance(progress: _Progress) -> _Progress:
        model = nnx.merge(graph, request.parameters)
        last = jax.lax.dynamic_slice_in_dim(progress.tokens, progress.step - 1, 1, axis=1)
        features = model.features(
            last, cache=progress.cache, bricks=request.bricks, brick_ids=request.brick_ids
        )
        assert features.cache is not None
        progress = dataclasses.replace(progress, cache=features.cache)
        return _chosen(model, request, progress, features.hidden, greedily, top_k)

    return jax.lax.while_loop(unfinished, advance, progress)


def _chosen(
    model: Decoder,
    request: _Request,
    progress: _Progress,
    hidden: Float[Array, "B 1 D"],
    greedily: bool,
    top_k: int | None,
) -> _Progress:
    """Chooses each sequence's next token; one that has stopped gets tokens that are not counted."""
    logits = model.logits(hidden, bricks=request.bricks, brick_ids=request.brick_ids)[:, 0]
    if greedily:
        token = greedy(logits)
    else:
        random_keys = jax.vmap(jax.random.fold_in, (0, None))(request.random_keys, progress.step)
        token = sample(
            random_keys, logits, temperature=request.temperature, top_k=top_k, top_p=request.top_p
        )
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    chosen = jnp.take_along_axis(log_probabilities, token[:, None], axis=-1)
    update = jax.lax.dynamic_update_slice_in_dim
    return dataclasses.replace(
        progress,
        tokens=update(progress.tokens, token[:, None], progress.step, axis=1),
        log_probabilities=update(progress.log_probabilities, chosen, progress.step, axis=1),
        lengths=progress.lengths + ~progress.stopped,
        stopped=progress.stopped | (token[:, None] == request.stop_tokens).any(-1),
        step=progress.step + 1,
    )


def _watched(
    advance: Callable[[_Progress, int], _Progress],
    progress: _Progress,
    max_new_tokens: int,
    on_tokens: OnTokens,
) -> tuple[_Progress, frozenset[int]]:
    """Advances token by token under the eyes of the caller, by the same compiled loop."""
    stopped: set[int] = set()
    seen = np.zeros(progress.tokens.shape[0], np.int32)
    for step in range(1, max_new_tokens + 1):
        lengths, tokens = np.asarray(progress.lengths), np.asarray(progress.tokens)
        for index in np.flatnonzero(lengths > seen).tolist():
            if on_tokens(index, tokens[index, seen[index] : lengths[index]].tolist()):
                stopped.add(index)
        seen = lengths.copy()
        over = np.asarray(progress.stopped).copy()
        over[sorted(stopped)] = True
        if over.all() or step == max_new_tokens:
            break
        progress = advance(dataclasses.replace(progress, stopped=jnp.asarray(over)), step + 1)
    return progress, frozenset(stopped)


def _result(progress: _Progress, stopped: frozenset[int]) -> GenerationResult:
    tokens, log_probabilities, lengths, ended = jax.device_get(
        (progress.tokens, progress.log_probabilities, progress.lengths, progress.stopped)
    )
    rows = range(len(lengths))
    scores = [log_probabilities[row, : lengths[row]] for row in rows]
    if not all(np.isfinite(score).all() for score in scores):
        raise InputError("the model's logits are not finite: parameters are damaged or diverged")
    return GenerationResult(
        [tokens[row, : lengths[row]].tolist() for row in rows],
        ["stop" if ended[row] or row in stopped else "length" for row in rows],
        [score.tolist() for score in scores],
    )


def _random_keys(seed: int | Sequence[int], count: int) -> Key[Array, "B"]:
    seeds = [seed + index for index in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise InputError(f"{len(seeds)} seeds do not fit {count} prompts: one each, or just one")
    for value in seeds:
        if not 0 <= value < 1 << 32:
            raise InputError(f"a seed must be at least 0 and below 2^32, got {value}")
    return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
