"""Texts continued by a model: ids in and out of `generate`, and text as it comes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from modbrick.checkpoints import describe, tokenizer_file
from modbrick.data import Tokenizer, load_tokenizer
from modbrick.decoder.decoder import Decoder
from modbrick.errors import InputError
from modbrick.inference.generation import generate
from modbrick.inference.result import GenerationResult
from modbrick.inference.sampling import DEFAULT_SAMPLING, SamplingConfig
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

    Args:
      directory: a run's or a model's.
      step: which checkpoint of a run; None: the newest.

    Raises:
      InputError: there is no checkpoint or no tokenizer, or it does not fit the model.
    """
    metadata = describe(directory, step).metadata
    path = str(tokenizer_file(directory))
    tokenizer = load_tokenizer(path, identity=metadata.tokenizer or None)
    if tokenizer.vocabulary > metadata.model.vocabulary:
        raise InputError(
            f"the tokenizer of {directory} has {tokenizer.vocabulary} tokens, its model only "
            f"{metadata.model.vocabulary}"
        )
    return tokenizer


def continue_texts(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig = DEFAULT_SAMPLING,
    seed: int = 0,
    stop: Sequence[str] = (),
    on_text: OnText | None = None,
) -> Continuation:
    """Continues texts, as the beginnings of documents.

    Args:
      model: the model.
      tokenizer: its tokenizer; a continuation ends with its end of a document.
      prompts: the texts.
      max_new_tokens: at most so many for each.
      sampling: how tokens are drawn.
      seed: of the draws; prompt i gets seed + i.
      stop: texts that end a continuation and are left out.
      on_text: is handed each piece as it comes.

    Raises:
      InputError: an empty prompt without a start token, or an empty stop text.
    """
    began = time.perf_counter()
    start, end = tokenizer.start_of_document, tokenizer.end_of_document
    opening = [] if start is None else [start]
    ids = [[*opening, *encoded.tolist()] for encoded in tokenizer.encode_batch(prompts)]
    streams = [TextStream(tokenizer, prompt, stop) for prompt in ids]
    pieces: list[list[str]] = [[] for _ in ids]

    def show(index: int, text: str, last: bool) -> None:
        pieces[index].append(text)
        if on_text is not None:
            on_text(index, text, last)

    def on_tokens(index: int, tokens: list[int]) -> bool:
        stream = streams[index]
        text = stream.push(token for token in tokens if token != end)
        show(index, text + (stream.close() if end in tokens else ""), stream.stopped)
        return stream.stopped

    result = generate(
        model,
        ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_tokens=[] if end is None else [end],
        seed=seed,
        on_tokens=on_tokens,
    )
    for index, stream in enumerate(streams):
        if not stream.stopped:
            show(index, stream.close(), True)
    seconds = time.perf_counter() - began
    return Continuation(tuple(prompts), tuple(map("".join, pieces)), result, seconds)
