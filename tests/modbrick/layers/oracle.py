"""The layers written down as their definitions say: NumPy, float64, one sequence, plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from flax import nnx

from modbrick.config import AttentionConfig, FeedForwardConfig, LayerConfig, NormConfig
from modbrick.decoder.decoder import Decoder
from modbrick.layers.positions import rope_frequencies
from tests.modbrick.layers.test_activations import FORMULAS, erf

Parameters = dict[str, np.ndarray]


def parameters_of(model: Decoder) -> Parameters:
    """The model's parameters by dotted path."""
    return {
        ".".join(map(str, path)): np.asarray(value[...], np.float64)
        for path, value in nnx.to_flat_state(nnx.state(model))
    }


def under(parameters: Parameters, prefix: str) -> Parameters:
    """The parameters below a path, by what follows it."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in parameters.items() if k.startswith(start)}


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


def norm(config: NormConfig | None, parameters: Parameters, x: np.ndarray) -> np.ndarray:
    assert config is not None
    if config.kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.epsilon) * parameters["scale"]
    return x + parameters.get("bias", 0.0)


def affine(parameters: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    return x @ parameters[f"{name}.weight"] + parameters.get(f"{name}.bias", 0.0)


def route(parameters: Parameters, top_k: int, x: np.ndarray) -> list[tuple[int, float]]:
    """Experts and gates of one token by an MLP router."""
    hidden = affine(parameters, "router.hidden", x)
    logits = affine(parameters, "router.output", hidden * (1 + erf(hidden / np.sqrt(2))) / 2)
    probabilities = softmax(logits)
    return [(e, probabilities[e]) for e in np.argsort(-probabilities)[:top_k]]


def rotated(config: AttentionConfig, x: np.ndarray, position: int) -> np.ndarray:
    """One head, turned pair by pair."""
    if config.rope is None:
        return x
    angles = position * rope_frequencies(config.rope, len(x)).astype(np.float64)
    half = len(angles)
    y = x.copy()
    for pair, angle in enumerate(angles):
        first, second = x[pair], x[pair + half]
        y[pair] = first * np.cos(angle) - second * np.sin(angle)
        y[pair + half] = second * np.cos(angle) + first * np.sin(angle)
    return y


def clipped(config: AttentionConfig, x: np.ndarray) -> np.ndarray:
    return x if config.clip is None else np.minimum(np.maximum(x, -config.clip), config.clip)


def heads_of(
    config: AttentionConfig, parameters: Parameters, name: str, x: np.ndarray, position: int | None
) -> np.ndarray:
    """Splits one token's queries, keys or values into heads, normalised and turned."""
    normed = config.query_key_norm is not None and name != "value"
    if normed and config.query_key_norm_axis == "all":
        x = norm(config.query_key_norm, under(parameters, f"{name}_norm"), x)
    heads = x.reshape(-1, config.head_width)
    if normed and config.query_key_norm_axis == "head":
        heads = norm(config.query_key_norm, under(parameters, f"{name}_norm"), heads)
    heads = clipped(config, heads)
    if position is None:
        return heads
    return np.stack([rotated(config, head, position) for head in heads])


def weights_of(
    config: AttentionConfig, query: np.ndarray, keys: np.ndarray, seen: list[int]
) -> np.ndarray:
    """Weights of one query head for the keys that it sees, the farthest first; zero elsewhere."""
    scale = config.head_width**-0.5 if config.scale is None else config.scale
    logits = scale * keys @ query
    weights = np.zeros(len(keys))
    if config.kind == "softmax":
        if seen:
            weights[seen] = softmax(logits[seen])
        return weights
    left = 1.0
    for j in reversed(seen):
        weights[j] = left * sigmoid(logits[j])
        left *= 1 - sigmoid(logits[j])
    return weights


def attention(
    config: AttentionConfig, parameters: Parameters, x: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Output `[S, D]` and weights `[N, S, S]`; heads of all slots by (key head, slot, head)."""
    length, groups = len(x), config.grouped_heads
    identity = config.key_value == "identity"
    keys = np.stack(
        [
            heads_of(config, parameters, "key", k, p)
            for k, p in zip(x if identity else affine(parameters, "key", x), positions, strict=True)
        ]
    )
    values = clipped(config, x if identity else affine(parameters, "value", x))
    values = values.reshape(length, groups, -1)
    outputs, all_weights = [], []
    for i in range(length):
        nearest = i if config.attend_current else i - 1
        farthest = 0 if config.window is None else max(0, i - config.window + 1)
        seen = list(range(farthest, nearest + 1))
        if config.experts is None:
            slots: Sequence[tuple[int | None, float]] = [(None, 1.0)]
        else:
            slots = route(parameters, config.experts.top_k, x[i])
        y = np.zeros(x.shape[1])
        weights = np.zeros((groups, len(slots), config.heads // groups, length))
        for slot, (expert, gate) in enumerate(slots):
            if expert is None:
                query = affine(parameters, "query", x[i])
            else:
                query = x[i] @ parameters["query.weight"][expert]
            query = heads_of(config, parameters, "query", query, positions[i])
            heads = []
            for head in range(config.heads):
                group = head // (config.heads // groups)
                row = weights_of(config, query[head], keys[:, group], seen)
                weights[group, slot, head % (config.heads // groups)] = row
                heads.append(row @ values[:, group])
            mixed = np.concatenate(heads)
            if expert is None:
                y = affine(parameters, "output", mixed)
            else:
                y = y + gate * mixed @ parameters["output.weight"][expert]
        outputs.append(y + parameters.get("output_bias", 0.0))
        all_weights.append(weights.reshape(-1, length))
    return np.stack(outputs), np.stack(all_weights, axis=1)


def feed_forward(config: FeedForwardConfig, parameters: Parameters, x: np.ndarray) -> np.ndarray:
    activation = FORMULAS[config.activation]

    def one(p: Parameters, token: np.ndarray) -> np.ndarray:
        hidden = affine(p, "up", token)
        gated = activation(affine(p, "gate", token)) * hidden if config.gated else None
        return affine(p, "down", activation(hidden) if gated is None else gated)

    if config.experts is None:
        return one(parameters, x)
    bank = {k: v for k, v in parameters.items() if k.split(".")[0] in ("up", "gate", "down")}
    rows = []
    for token in x:
        y = parameters.get("output_bias", 0.0)
        for expert, gate in route(parameters, config.experts.top_k, token):
            y = y + gate * one({k: v[expert] for k, v in bank.items()}, token)
        rows.append(y)
    return np.stack(rows)


def layer(
    config: LayerConfig, parameters: Parameters, x: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The stream after the layer, and the attention weights."""
    normed = norm(config.norm, under(parameters, "attention_norm"), x)
    y, weights = attention(config.attention, under(parameters, "attention"), normed, positions)
    x = x + config.residual_multiplier * y
    normed = norm(config.norm, under(parameters, "feed_forward_norm"), x)
    y = feed_forward(config.feed_forward, under(parameters, "feed_forward"), normed)
    return x + config.residual_multiplier * y, weights


def decode(model: Decoder, tokens: np.ndarray) -> dict[str, Any]:
    """Logits `[S, V]`, hidden states `[L+1, S, D]` and each layer's weights for one sequence."""
    config, parameters = model.config, parameters_of(model)
    positions = np.arange(len(tokens))
    x = parameters["embedding"][tokens] * config.embedding_multiplier
    hidden, weights = [x], []
    for index, segment in enumerate(config.segments):
        stacked = under(parameters, f"segments.{index}")
        for repeat in range(segment.repeats):
            own = {name: value[repeat] for name, value in stacked.items()}
            x, row = layer(segment.layer, own, x, positions)
            hidden.append(x)
            weights.append(row)
    final = norm(config.norm, under(parameters, "norm"), x)
    head = parameters["embedding"].T if config.tied_head else parameters["head.weight"]
    logits = final @ head * config.logit_multiplier
    return {"logits": logits, "hidden_states": np.stack(hidden), "attention_weights": weights}
