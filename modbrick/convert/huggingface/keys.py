"""Keys of a `config.json` of the transformers library that need no translation.

The library keeps every key that it does not read, so a config may hold any. One that is not known
here is refused, for it may belong to a variant of the model that computes something else; unless
its value says that there is nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from modbrick.errors import InputError

# fmt: off
IGNORED = frozenset({
    "_name_or_path", "architectures", "auto_map", "model_type", "transformers_version",
    "torchscript", "use_cache", "use_bfloat16", "return_dict", "output_attentions",
    "output_hidden_states", "chunk_size_feed_forward", "bos_token_id", "eos_token_id",
    "pad_token_id", "sep_token_id", "cls_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "tokenizer_class", "prefix", "suppress_tokens", "begin_suppress_tokens",
    "bad_words_ids", "task_specific_params", "problem_type", "finetuning_task", "id2label",
    "label2id", "tf_legacy_loss", "cross_attention_hidden_size", "tie_encoder_decoder",
    "is_decoder", "max_length", "min_length", "do_sample", "early_stopping", "num_beams",
    "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "num_return_sequences", "output_scores", "return_dict_in_generate",
    "exponential_decay_length_penalty", "remove_invalid_values", "pretraining_tp",
    "attn_implementation", "experts_implementation", "num_labels", "classifier_dropout",
    "tie_last_hidden_states", "name_or_path", "unk_token_id", "mask_token_id", "initializer_factor",
    "output_router_probs", "gradient_checkpointing", "max_new_tokens",
    "min_new_tokens", "max_time", "stop_strings", "stop_token_ids", "min_p", "top_h",
    "guidance_scale", "penalty_alpha", "epsilon_cutoff", "eta_cutoff", "encoder_repetition_penalty",
    "low_memory", "constraints", "force_words_ids", "renormalize_logits", "token_healing",
    "sequence_bias", "cache_implementation", "cache_config", "return_legacy_cache",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "assistant_lookbehind", "target_lookbehind", "prompt_lookup_num_tokens", "dola_layers",
    "watermarking_config", "is_llama_config", "transformers.js_config", "unsloth_fixed",
    "unsloth_version", "use_flash_attn", "use_flash_attention", "use_flash_attention_2", "use_sdpa",
    "model_max_length", "max_seq_len", "max_seq_length", "max_sequence_length", "seq_len",
    "seq_length", "n_ctx", "n_positions", "tokenizer_model_max_length", "bos_token", "eos_token",
    "pad_token", "unk_token",
})
# fmt: on
"""Keys that change nothing in what a causal language model computes: bookkeeping, ids of special
tokens, defaults of generation, other heads, other names of the context's length, and how the
original library runs; all that begin with an underline are such too. (In training, the library
gives the embedding of `pad_token_id` no gradient; here it learns like any other.)"""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention_chunk_size": (None,),
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1),
    "expert_layer_period": (None, 1),
    "is_causal": (None, True),
    "kv_sharing_modes": (None,),
    "layer_norm_type": (None, "rms", "rmsnorm", "rms_norm"),
    "lm_head_multiplier": (None, 1),
    "logit_scale": (None, 1),
    "logits_scaling": (None, 1),
    "moe_layer_freq": (None, 1),
    "moe_layer_frequency": (None, 1),
    "n_group": (None, 0, 1),
    "norm_type": (None, "rms", "rmsnorm", "rms_norm"),
    "normalization_function": (None, "rmsnorm"),
    "position_embedding_type": (None, "rope", "rotary"),
    "residual_multiplier": (None, 1),
    "rope_ratio": (None, 1),
    "rotary_pct": (None, 1),
    "routed_scaling_factor": (None, 1),
    "scoring_func": (None, "softmax"),
    "sliding_window": (None,),
    "topk_group": (None, 0, 1),
    "topk_method": (None, "greedy"),
}
"""Keys of other families, and their values that change nothing in one that does not read them."""

REFUSED_IF_SET = frozenset(
    {"quantization_config", "pruned_heads", "is_encoder_decoder", "add_cross_attention"}
)
"""Keys whose value must be empty or false, as `read_fields` checks."""


_NOISE = re.compile(
    r"(.*_)?(((dropout|pdrop|drop_path|layerdrop|jitter_noise|jitter_eps)(_(prob|rate|p))?)"
    r"|drop_(prob|rate))"
)
_FACTOR = re.compile(r".*(scal|multiplier|factor|theta|eps|temperature|base).*")


def is_noise(key: str) -> bool:
    """Returns whether a key is the strength of something random that only training has."""
    return _NOISE.fullmatch(key) is not None


def changes_nothing(key: str, value: Any) -> bool:
    """Returns whether a key that a family does not read can be left aside.

    Those of `IGNORED` can, and random things that only training has. Others can if their value says
    that there is nothing: null, false, empty, or no more than zero of what is no factor.

    Args:
      key: of the config.
      value: that it has.
    """
    if key in IGNORED or key.startswith("_"):
        return True
    if key in NEUTRAL:
        return any(value is known or value == known for known in NEUTRAL[key])
    number = isinstance(value, int | float)
    if is_noise(key):
        return value is None or number
    if number and value == 0:
        return value is False or not _FACTOR.fullmatch(key)
    return value is None or value in ("", [], {})


def noise(config: Mapping[str, Any]) -> dict[str, float]:
    """Returns what the original does at random in training, by key; nothing of it is done here."""
    return {
        key: value
        for key, value in config.items()
        if is_noise(key) and isinstance(value, int | float) and value
    }


def without_keys(
    config: Mapping[str, Any], keys: Collection[str], where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a config without some of its keys, and those with their values.

    Args:
      config: the parsed file.
      keys: `outer.inner` is one within another, unless there is a key of that name.
      where: begins the message.

    Raises:
      InputError: a key that is not there.
    """
    left, taken = dict(config), {}
    for key in keys:
        outer, _, inner = key.partition(".")
        within = left.get(outer)
        if key in left:
            taken[key] = left.pop(key)
        elif isinstance(within, Mapping) and inner in within:
            taken[key] = within[inner]
            left[outer] = {name: value for name, value in within.items() if name != inner}
        else:
            raise InputError(f"{where}: there is no key {key!r} to ignore")
    return left, taken
