"""Configs of models: frozen, validated records, readable from and writable to JSON.

A decoder is a sequence of segments; a segment is one layer config and how often it repeats.
Families of models (ModuleFormer, JetMoE, Mixtral, Llama, ...) are values of these records, not
classes of their own. Axis letters: D width, H heads, E experts, K experts per token, F hidden
width, V vocabulary, L layers.
"""

from modbrick.config.attention import AttentionConfig, Projection
from modbrick.config.experts import ExpertsConfig, RouterConfig
from modbrick.config.feed_forward import Activation, FeedForwardConfig
from modbrick.config.model import LayerConfig, ModelConfig, SegmentConfig
from modbrick.config.norm import NormConfig
from modbrick.config.rope import (
    LinearScaling,
    Llama3Scaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)

__all__ = [
    "Activation",
    "AttentionConfig",
    "ExpertsConfig",
    "FeedForwardConfig",
    "LayerConfig",
    "LinearScaling",
    "Llama3Scaling",
    "ModelConfig",
    "NormConfig",
    "Projection",
    "RopeConfig",
    "RopeScaling",
    "RouterConfig",
    "SegmentConfig",
    "YarnScaling",
]
