r"""Pre-tokenizers: what splits a text into words before any merge.

GGUF files have only their names. The patterns are those of the models that the names belong to, as
github.com/ggml-org/llama.cpp, src/llama-vocab.cpp, has them; several names may mean the same. Like
llama.cpp, none of them normalises a text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def _ranges(text: str) -> str:
    """Returns what stands in a class of a pattern for characters by number: `41-5a b5`."""
    ends = (characters.split("-") for characters in text.split())
    return "".join("-".join(rf"\x{{{end}}}" for end in pair) for pair in ends)


_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN_2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PUNCTUATION = r"[\p{P}$+<=>^~|]+"
_PUNCTUATION_OF_FALCON = r"[\p{P}$+<=>^~|`]+"
_THREE_DIGITS = "[0-9][0-9][0-9]"

# As DeepSeek LLM lists them, which are fewer than Unicode has today.
_CASED_LETTERS = """
41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376-377 37b-37d 37f 386
388-38a 38c 38e-3a1 3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba
1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59
1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec
1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d 212f-2134 2139
213c-213f 2145-2149 214e 2183-2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2-2cf3 a640-a66d a680-a69b
a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f
104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943
"""
_EAST_ASIAN = r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+"
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_ranges(_CASED_LETTERS)}]+",
    r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+",
    r"\s+$",
    _EAST_ASIAN,
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN, r"\p{N}")


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """A pre-tokenizer.

    Attributes:
      patterns: each splits what the one before has left together; what lies between two matches is
        a word too.
      whole_words: words that are tokens are taken before any merge.
      begins: texts begin with the start token where the file does not say it.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    begins: bool = False

    def to_mapping(self) -> dict[str, Any]:
        """Returns the entry `pre_tokenizer` of a `tokenizer.json`, symbols for bytes included."""
        splits = [
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            }
            for pattern in self.patterns
        ]
        return {"type": "Sequence", "pretokenizers": [*splits, BYTE_LEVEL]}


BYTE_LEVEL: dict[str, Any] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
"""The step to symbols for bytes, and back."""

_LIKE_LLAMA_3 = PreTokenizer((_LLAMA_3,), whole_words=True, begins=True)
_KINDS: Mapping[PreTokenizer, tuple[str, ...]] = {
    PreTokenizer((_PUNCTUATION, _GPT_2, r"\p{N}+", _THREE_DIGITS)): ("default",),
    PreTokenizer((_GPT_2,)): (
        *("gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "a.x-4.0", "mellum"),
        *("exaone4", "trillion", "granite-docling"),
    ),
    PreTokenizer((r"\p{N}", _GPT_2)): (
        *("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        "mellum2",
    ),
    PreTokenizer((_LLAMA_3,)): ("smaug-bpe", "dbrx"),
    _LIKE_LLAMA_3: (
        *("llama-bpe", "llama-v3", "llama3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    ),
    PreTokenizer((_TEKKEN,), whole_words=True, begins=True): ("tekken",),
    PreTokenizer((_QWEN_2,)): (
        *("qwen2", "deepseek-r1-qwen", "kormo", "stablelm2", "megrez", "hunyuan", "solar-open"),
    ),
    PreTokenizer(_DEEPSEEK_LLM): ("deepseek-llm",),
    PreTokenizer(_DEEPSEEK_CODER): ("deepseek-coder",),
    PreTokenizer((_PUNCTUATION_OF_FALCON, _GPT_2, _THREE_DIGITS)): ("falcon",),
}
PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    name: kind for kind, names in _KINDS.items() for name in names
}
"""By name; a file without one has `default`."""
