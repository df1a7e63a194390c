"""Keys of a `config.json` of the transformers library that need no translation."""

from __future__ import annotations

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
    "attn_implementation", "_attn_implementation_autoset",
})
# fmt: on
"""Keys that change nothing in what a causal language model computes: bookkeeping, ids of special
tokens, defaults of generation, other heads, and how the original library runs. (In training, the
library gives the embedding of `pad_token_id` no gradient; here it learns like any other.)"""

REFUSED_IF_SET = frozenset(
    {"quantization_config", "pruned_heads", "is_encoder_decoder", "add_cross_attention"}
)
"""Keys whose value must be empty or false, as `read_fields` checks."""
