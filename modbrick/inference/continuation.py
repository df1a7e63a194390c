"""Texts continued by a model: ids in and out of `generate`, and text as it comes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import logging
from etils import epath

from modbrick.checkpoints import describe, tokenizer_file
from modbrick.data import Tokenizer, load_tokenizer
from modbrick.decoder.decoder import Decoder
from modbrick.inference.generation import generate
from modbrick.inference.result import GenerationResult
from modbrick.inference.sampling import DEFAULT_SAMPLING, SamplingConfig
from modbrick.inference.stopping import GENERATION, stop_tokens
from modbrick.inference.text import TextStream

OnText = Callable[[int, str, bool], None]
"""`on_text(index, text, last)`: gets the next piece of a continuation; `last` ends it."""


@dataclasses.dataclass(frozen=True)
class Continuation:
    """Continuations of texts.

    Attributes:
      prompts: the texts.
      texts: what follows each, up to a stop text or the end of the document.
      result: the ids, why each ended, and their log-probabilities.
      seconds: that it took, compilation included.
    """

    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    result: GenerationResult
    seconds: float

    def to_mapping(self) -> list[dict[str, Any]]:
        """Returns JSON-able data, a record for each prompt."""
        return [
            {
                "prompt": prompt,
                "text": text,
                "tokens": ids,
                "finish_reason": reason,
                "log_probabilities": scores,
            }
            for prompt, text, ids, reason, scores in zip(
                self.prompts,
                self.texts,
                self.result.tokens,
                self.result.finish_reasons,
                self.result.log_probabilities,
                strict=True,
            )
        ]

    def summary(self) -> str:
        """Returns in a line how many tokens came, in which time, and why each text ended."""
        count = sum(map(len, self.result.tokens))
        reasons = ", ".join(self.result.finish_reasons)
        return f"{count} tokens in {self.seconds:.1f} s, compilation included ({reasons})"


def checkpoint_tokenizer(directory: epath.PathLike, step: int | None = None) -> Tokenizer:
    """Loads the tokenizer beside a checkpoint.

    Tokens that its model has no row for are no fault of their own: a text with one is refused.

    Args:
      directory: a run's or a model's.
      step: which checkpoint of a run; None: the newest.

    Raises:
      InputError: there is no checkpoint or no tokenizer, or not the one that it says.
    """
    metadata = describe(directory, step).metadata
    path, imported = tokenizer_file(directory), "imported" in metadata.extra
    identity = metadata.tokenizer or None
    tokenizer = load_tokenizer(str(path), identity=identity, own_prompts=imported)
    if tokenizer.vocabulary > metadata.model.vocabulary:
        logging.warning(
            "the tokenizer of %s has %d tokens, its model only %d: texts with a token beyond are "
            "refused",
            directory,
            tokenizer.vocabulary,
            metadata.model.vocabulary,
        )
    if imported:
        said = path.parent / GENERATION
        content = said.read_bytes() if said.exists() else None
        tokenizer.stop_tokens = stop_tokens(
            content, metadata.extra.get("config", {}), str(directory), otherwise=tokenizer
        )
    return tokenizer


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[str], *, special_tokens: bool = False
) -> list[list[int]]:
    """Returns the ids of prompts, with the tokens that belong around them.

    Args:
      tokenizer: of the model.
      prompts: the texts.
      special_tokens: as for `continue_texts`.
    """
    before, behind = tokenizer.around_prompts.before, tokenizer.around_prompts.behind
    found = []
    for encoded in tokenizer.encode_batch(prompts, special_tokens=special_tokens):
        ids = encoded.tolist()
        begun = special_tokens and before and tuple(ids[: len(before)]) == before
        found.append([*(() if begun else before), *ids, *behind])
    return found


def continue_texts(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig = DEFAULT_SAMPLING,
    seed: int = 0,
    stop: Sequence[str] = (),
    special_tokens: bool = False,
    on_text: OnText | None = None,
) -> Continuation:
    """Continues texts, as the beginnings of documents.

    Args:
      model: the model.
      tokenizer: its tokenizer. It says which tokens stand around a prompt, such as a start token,
        and which end a continuation.
      prompts: the texts.
      max_new_tokens: at most so many for each.
      sampling: how tokens are drawn.
      seed: of the draws; prompt i gets seed + i.
      stop: texts that end a continuation and are left out.
      special_tokens: names of special tokens in prompts are these tokens, not text; a prompt that
        begins with the start token gets no other.
      on_text: is handed each piece as it comes.

    Raises:
      InputError: an empty prompt without a start token, or an empty stop text.
    """
    began = time.perf_counter()
    # Others cannot come: an original may name ids beyond its rows.
    ends = {number for number in tokenizer.stop_tokens if 0 <= number < model.config.vocabulary}
    ids = encode_prompts(tokenizer, prompts, special_tokens=special_tokens)
    streams = [TextStream(tokenizer, prompt, stop) for prompt in ids]
    pieces: list[list[str]] = [[] for _ in ids]

    def show(index: int, text: str, last: bool) -> None:
        pieces[index].append(text)
        if on_text is not None:
            on_text(index, text, last)

    def on_tokens(index: int, tokens: list[int]) -> bool:
        stream = streams[index]
        text = stream.push(token for token in tokens if token != tokenizer.end_of_document)
        ended = not ends.isdisjoint(tokens)
        show(index, text + (stream.close() if ended else ""), stream.stopped)
        return stream.stopped

    result = generate(
        model,
        ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_tokens=sorted(ends),
        seed=seed,
        on_tokens=on_tokens,
    )
    for index, stream in enumerate(streams):
        if not stream.stopped:
            show(index, stream.close(), True)
    seconds = time.perf_counter() - began
    return Continuation(tuple(prompts), tuple(map("".join, pieces)), result, seconds)
