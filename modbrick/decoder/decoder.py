"""The decoder: embedding, segments of layers, final norm, head."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from modbrick.config import ModelConfig
from modbrick.decoder.arguments import (
    BrickFeatures,
    BrickIds,
    BrickWeights,
    check_ids,
    check_values,
    checked_features,
    spread,
    visible,
)
from modbrick.decoder.captures import by_router, gather_captures, recorded_names
from modbrick.decoder.output import DecoderOutput, Features
from modbrick.decoder.prompts import PROMPT, keys_in_front, with_encoded_prompts
from modbrick.decoder.segment import run_segments, stacked_block
from modbrick.execution import ExecutionConfig
from modbrick.layers.block import Block
from modbrick.layers.cache import Cache, SegmentCache
from modbrick.layers.context import Bricks, Context
from modbrick.layers.norms import Norm
from modbrick.layers.offer import Offer
from modbrick.layers.parameters import Initialiser, normal, parameter, uniform_fan_in
from modbrick.layers.projections import Projection, matmul
from modbrick.parallel import constrain, gathered
from modbrick.parallel.choice import Choice


class Decoder(nnx.Module):
    """A decoder-only language model, as its config describes it.

    The module holds float32 parameters; `nnx.split` it once and run the pure function
    `nnx.merge(graph, parameters)(...)` under `jax.jit`.

    Examples:
        >>> import jax.numpy as jnp
        >>> import modbrick
        >>> model = modbrick.load_model("run")  # or a new one: modbrick.Decoder(config)
        >>> model(jnp.asarray([[1, 2, 3]])).hidden.shape  # [B, S, D]
        (1, 3, 16)
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        key: jax.Array | None = None,
        execution: ExecutionConfig | None = None,
    ):
        """Initialises the parameters.

        Args:
          config: the model.
          key: of the initial values; None: `jax.random.key(0)`.
          execution: how to run it; None: as is best here.
        """
        self.config = config
        self.plugged: Bricks | None = None
        self.execution = ExecutionConfig() if execution is None else execution
        key = jax.random.key(0) if key is None else key
        outer, inner = jax.random.split(key)
        rngs = nnx.Rngs(params=outer)
        scale = config.initial_scale
        expert_initialiser: Initialiser = (
            uniform_fan_in if config.expert_initialiser == "uniform_fan_in" else normal(scale)
        )
        self.embedding = parameter(
            rngs,
            normal(scale),
            (config.vocabulary, config.width),
            ("vocabulary", "width"),
            role="embedding",
        )
        self.norm = Norm(config.norm, config.width, rngs=rngs)
        if not config.tied_head:
            self.head = Projection(
                (config.width, config.vocabulary),
                ("width", "vocabulary"),
                initialiser=normal(scale),
                role="head",
                rngs=rngs,
            )
        self.segments: nnx.Dict[Block] = nnx.Dict()
        for name, first_layer, segment in config.placed_segments():
            self.segments[name] = stacked_block(
                segment, first_layer, config.width, scale, expert_initialiser, inner
            )

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        *,
        attention_mask: Bool[Array, "B S"] | None = None,
        segment_ids: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
        cache: Cache | None = None,
        bricks: Bricks | None = None,
        brick_ids: BrickIds | None = None,
        brick_weights: BrickWeights | None = None,
        brick_features: BrickFeatures | None = None,
        capture: Iterable[str] = (),
        random_keys: Key[Array, "B"] | None = None,
    ) -> DecoderOutput:
        """Returns the logits of the next token at every position.

        Args:
          tokens: ids below the vocabulary size.
          attention_mask: which tokens are real; padding is never attended to, and counts in router
            statistics only if the config says so. None: all.
          segment_ids: documents of a packed row, which do not see each other; 0 is padding.
          positions: of each token in its document; None: counted over real tokens.
          cache: keys and values of the tokens before these.
          bricks: what is attached; None: what is plugged in, see `plug`.
          brick_ids: which of the bricks each example `[B]` or token `[B, S]` uses, or which several
            `[B, S, K]`, -1 none; an axis S of 1 stands for all tokens. None: all, in their order.
          brick_weights: by which the change of each is multiplied, shaped alike; None: 1.
          brick_features: `[B, P, W]` by name, of bricks that put them where these tokens have a
            placeholder; None: they change nothing.
          capture: intermediate values to return: names of `CAPTURES`, or of sites
            (`modbrick.decoder.sites.model_sites` lists them).
          random_keys: one for each sequence, of sampled top-k routing and of what bricks drop; None
            (evaluation): plain top-k, and nothing is dropped.

        Raises:
          ValueError: an unknown capture, or shapes that disagree.
          InputError: ids beyond the vocabulary or of no brick, or a full cache, where values are
            not traced; ids or weights of bricks whose shapes do not fit.
        """
        capture = tuple(capture)
        names = recorded_names(capture)
        features = self.features(
            tokens,
            attention_mask=attention_mask,
            segment_ids=segment_ids,
            positions=positions,
            cache=cache,
            bricks=bricks,
            brick_ids=brick_ids,
            brick_weights=brick_weights,
            brick_features=brick_features,
            capture=[name for name in capture if name != "head"],
            random_keys=random_keys,
        )
        choice = spread(brick_ids, brick_weights, features.hidden)
        context = self._head_context(bricks, choice, random_keys, names)
        logits = self._logits(features.hidden, context)
        if "sites" in names:
            features.captured["sites"]["decoder"] |= context.captured["sites"]
        if "head" in names:
            features.captured["head"] = context.captured["head"]
        return DecoderOutput(logits, **vars(features))

    def features(
        self,
        tokens: Int[Array, "B S"],
        *,
        attention_mask: Bool[Array, "B S"] | None = None,
        segment_ids: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
        cache: Cache | None = None,
        bricks: Bricks | None = None,
        brick_ids: BrickIds | None = None,
        brick_weights: BrickWeights | None = None,
        brick_features: BrickFeatures | None = None,
        capture: Iterable[str] = (),
        random_keys: Key[Array, "B"] | None = None,
    ) -> Features:
        """Runs everything but the head; arguments as in a call."""
        capture = tuple(capture)
        config, bricks = self.config, self._attached(bricks)
        check_values(tokens, config.vocabulary, cache)
        check_ids(brick_ids, bricks)
        brick_features = checked_features(brick_features, bricks, tokens)
        bricks = self.encoded(bricks)
        visibility, real, positions, cache = visible(
            tokens, attention_mask, segment_ids, positions, cache
        )
        context = Context(
            positions,
            visibility,
            None if config.router_statistics == "all" else real,
            random_keys,
            choice=spread(brick_ids, brick_weights, tokens),
            execution=self.execution,
            capture=recorded_names(capture),
        )
        outer = dataclasses.replace(context, bricks=bricks.decoder, captured={})
        x = outer.at("embedding", tokens, self.embed(tokens))
        if outer.looks_at("features"):
            given = tokens if real is None else jnp.where(real, tokens, -1)
            x = outer.at("features", given, x, Offer(features=brick_features), "tokens")
        outer.declare(PROMPT, x, x, "prompt")
        x, inner, cached = run_segments(self.segments, config, x, context, bricks, cache)
        hidden = self.norm(x, outer, "norm")
        if cache is not None:
            length = cache.length + tokens.shape[1]
            cache = dataclasses.replace(cache, segments=cached, length=length)
        return Features(
            hidden,
            by_router({name: of.statistics for name, of in inner.items()}),
            cache,
            gather_captures(capture, outer, inner),
        )

    def embed(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S D"]:
        """Returns what the first layer reads of tokens."""
        embedding = gathered(self.embedding[...], self.embedding.axes)
        # Weights may be kept in less than float32; the product is not.
        x = embedding[tokens].astype(jnp.float32) * self.config.embedding_multiplier
        return constrain(x.astype(self.config.dtype), "batch", "sequence", "width")

    def encoded(self, bricks: Bricks | None = None) -> Bricks:
        """Returns bricks with their prompts as keys and values, which no call encodes again.

        Args:
          bricks: what is attached; None: what is plugged in.
        """
        return with_encoded_prompts(self._attached(bricks), self.keys_and_values)

    def keys_and_values(
        self, x: Float[Array, "N P D"], lengths: Int[Array, "N"]
    ) -> dict[str, SegmentCache]:
        """Runs what stands in front of documents through the layers, without bricks.

        Args:
          x: what the first layer reads, of N rows each for itself.
          lengths: of the rows; padding stands behind. The last of a row stands at position -1.

        Returns:
          Keys and values of each segment's layers, `[L, N, P, G, W]`.
        """
        return keys_in_front(self.segments, self.config, self.execution, x, lengths)

    def logits(
        self,
        hidden: Float[Array, "B S D"],
        *,
        bricks: Bricks | None = None,
        brick_ids: BrickIds | None = None,
        brick_weights: BrickWeights | None = None,
        random_keys: Key[Array, "B *S"] | None = None,
    ) -> Float[Array, "B S V"]:
        """Applies the head to final hidden states; float32.

        Args:
          hidden: final hidden states.
          bricks: as in a call, as the others.
          brick_ids: of these tokens.
          brick_weights: of these tokens.
          random_keys: one for each sequence, or for each of these tokens, of what bricks drop.
        """
        choice = spread(brick_ids, brick_weights, hidden)
        return self._logits(hidden, self._head_context(bricks, choice, random_keys))

    def plug(self, bricks: Bricks) -> Decoder:
        """Returns the same model with bricks that a call without `bricks` has."""
        model = nnx.merge(*nnx.split(self))
        model.plugged = nnx.data(bricks)
        return model

    def _attached(self, bricks: Bricks | None) -> Bricks:
        if bricks is not None:
            return bricks
        return Bricks() if self.plugged is None else self.plugged

    def _head_context(
        self,
        bricks: Bricks | None,
        choice: Choice | None,
        random_keys: Key[Array, "B *S"] | None,
        capture: frozenset[str] = frozenset(),
    ) -> Context:
        at_head = self._attached(bricks).decoder
        return Context(random_keys=random_keys, bricks=at_head, choice=choice, capture=capture)

    def _logits(self, hidden: Float[Array, "B S D"], context: Context) -> Float[Array, "B S V"]:
        multiplier = self.config.logit_multiplier
        logits = matmul(hidden, self.head_weight) * multiplier
        if not context.looks_at("head"):
            return logits
        return context.at("head", hidden, logits, Offer(self.head_weight * multiplier))

    @property
    def head_weight(self) -> Float[Array, "D V"]:
        """Weight of the head as it is held: the embedding, transposed, if tied."""
        return self.embedding[...].T if self.config.tied_head else self.head.weight[...]
