"""The configuration of the original ModuleFormer, github.com/IBM/ModuleFormer, and its meaning."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

from modbrick.config import (
    Activation,
    AttentionConfig,
    ExpertsConfig,
    FeedForwardConfig,
    LayerConfig,
    ModelConfig,
    NormConfig,
    RouterConfig,
    SegmentConfig,
)
from modbrick.errors import InputError
from modbrick.schema import from_mapping

MODEL_TYPE, ARCHITECTURE = "moduleformer", "ModuleFormerForCausalLM"

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu_squared",
    "tanh": "tanh",
    "linear": "identity",
}
"""Names in `transformers`; the first of several for the same function is the one to write."""

ALIASES = {"hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}

NORM_EPSILON = 1e-5
"""Of every LayerNorm: the original builds them all with PyTorch's default, and nothing reads its
`layer_norm_epsilon`."""

SWITCH_Z_SHARE = 0.1
"""The original's `switch` loss is the switch loss plus this much of the router z-loss."""


@dataclasses.dataclass(frozen=True)
class ModuleFormerConfig:
    """The fields of `config.json` that the original reads, under its names and with its defaults.

    Attributes:
      att_hidden: width of all heads of one attention expert together.
      block_size, history_length: tokens of a training step and of the history before it.
      k_att, k_mlp: experts per token.
      gating_size: hidden width of `mlp` routers, width of the centroids of `gmm` routers.
      sample_topk: experts sampled in training.
      aux_loss_type: `mi` (mutual information) or `switch`.
      resid_pdrop, embd_pdrop, moe_pdrop: dropout. (The original declares a dropout of attention
        weights, `attn_pdrop`, and never applies it.)
    """

    vocab_size: int = 50295
    block_size: int = 512
    history_length: int = 512
    n_embd: int = 1024
    n_layer: int = 24
    n_head: int = 8
    att_hidden: int = 512
    ffd_hidden: int = 2048
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.0
    embd_pdrop: float = 0.0
    moe_pdrop: float = 0.0
    sample_topk: int = 0
    gating_size: int = 256
    n_att_experts: int = 32
    k_att: int = 2
    n_mlp_experts: int = 32
    k_mlp: int = 2
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    aux_loss_type: str = "mi"
    aux_loss_weight: float = 0.0
    gate_type: str = "mlp"
    torch_dtype: str | None = None

    @property
    def has_key_value(self) -> bool:
        """Whether keys and values are projected: a single head of full width has none of it."""
        return not (self.n_head == 1 and self.att_hidden == self.n_embd)


def read_config(data: Mapping[str, Any], where: str) -> ModuleFormerConfig:
    """Returns the known fields of a `config.json`.

    Keys that the original does not read are left aside, as it leaves them, unless they look like a
    misspelling of one that is missing.

    Args:
      data: the parsed file.
      where: begins every message.

    Raises:
      InputError: another kind of model, a key that is misspelt or contradicted by its alias, or a
        value of the wrong type.
    """
    if data.get("model_type") != MODEL_TYPE:
        raise InputError(
            f"{where}: model_type is {data.get('model_type')!r}; only {MODEL_TYPE!r} is read"
        )
    architectures = data.get("architectures")
    if architectures is not None and architectures != [ARCHITECTURE]:
        raise InputError(
            f"{where}: architectures is {architectures!r}, expected [{ARCHITECTURE!r}]"
        )
    for key in ("quantization_config", "pruned_heads", "is_encoder_decoder", "add_cross_attention"):
        if data.get(key):
            raise InputError(f"{where}: {key} is {data[key]!r}, which is not supported")
    fields = {field.name for field in dataclasses.fields(ModuleFormerConfig)}
    known = {key: value for key, value in data.items() if key in fields}
    for alias, name in ALIASES.items():
        if alias in data and known.setdefault(name, data[alias]) != data[alias]:
            raise InputError(f"{where}: {alias} and {name} are the same thing, and differ")
    for key in data.keys() - fields - ALIASES.keys():
        meant = difflib.get_close_matches(key, fields - known.keys(), n=1, cutoff=0.85)
        if meant:
            raise InputError(f"{where}: unknown key {key!r}; did you mean {meant[0]!r}?")
    return from_mapping(ModuleFormerConfig, known, where)


def model_config(original: ModuleFormerConfig, where: str) -> ModelConfig:
    """Returns the model that the original would build.

    Raises:
      InputError: anything that this library would compute otherwise, by name.
    """
    for name in ("resid_pdrop", "embd_pdrop", "moe_pdrop"):
        if getattr(original, name) != 0:
            raise InputError(
                f"{where}: {name} is {getattr(original, name)}, but there is no dropout here; "
                "set it to 0 to use the model as it runs in evaluation"
            )
    activation = _choice(original.activation_function, ACTIVATIONS, "activation_function", where)
    dtypes = {None: "float32", "float32": "float32", "float16": "float32", "bfloat16": "bfloat16"}
    dtype = _choice(original.torch_dtype, dtypes, "torch_dtype", where)
    if original.n_head < 1 or original.att_hidden % original.n_head:
        raise InputError(
            f"{where}: att_hidden ({original.att_hidden}) does not divide into "
            f"{original.n_head} heads (n_head)"
        )
    kinds = {"mlp": "mlp", "linear": "linear", "gmm": "gmm"}
    try:
        router = RouterConfig(
            kind=_choice(original.gate_type, kinds, "gate_type", where),
            hidden=original.gating_size,
            sample_top_k=original.sample_topk,
        )
        layer = LayerConfig(
            attention=AttentionConfig(
                heads=original.n_head,
                head_width=original.att_hidden // original.n_head,
                kind="stickbreaking",
                key_value="projected" if original.has_key_value else "identity",
                biases=("key", "value") if original.has_key_value else (),
                experts=ExpertsConfig(original.n_att_experts, original.k_att, router),
            ),
            feed_forward=FeedForwardConfig(
                hidden=original.ffd_hidden,
                activation=activation,
                experts=ExpertsConfig(original.n_mlp_experts, original.k_mlp, router),
            ),
            norm=NormConfig(epsilon=NORM_EPSILON),
        )
        return ModelConfig(
            vocabulary=original.vocab_size,
            width=original.n_embd,
            segments=(SegmentConfig(layer, original.n_layer),),
            norm=NormConfig(epsilon=NORM_EPSILON),
            context=original.block_size + original.history_length,
            tied_head=original.tie_word_embeddings,
            dtype=dtype,
            router_statistics="all",
            initial_scale=original.initializer_range,
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def objective_weights(original: ModuleFormerConfig, where: str) -> dict[str, float]:
    """Returns the weights of the router losses that are not zero, as `ObjectiveConfig` names them.

    Raises:
      InputError: an unknown loss, or a negative weight.
    """
    weight = original.aux_loss_weight
    losses = {"mi": {"load_balancing": 1.0}, "switch": {"switch": 1.0, "router_z": SWITCH_Z_SHARE}}
    shares = _choice(original.aux_loss_type, losses, "aux_loss_type", where)
    if not 0 <= weight < math.inf:
        raise InputError(f"{where}: aux_loss_weight is {weight}, which is no weight of a loss")
    return {name: weight * share for name, share in shares.items()} if weight else {}


def _choice(value: Any, choices: Mapping[Any, Any], name: str, where: str) -> Any:
    if value not in choices:
        known = ", ".join(str(choice) for choice in choices if choice is not None)
        raise InputError(f"{where}: {name} {value!r} is not supported; it can be {known}")
    return choices[value]
