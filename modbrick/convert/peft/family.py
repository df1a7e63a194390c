"""Family of a model: whose names of modules an adapter uses."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from modbrick.config import ModelConfig
from modbrick.convert.format import Format, Translation
from modbrick.convert.huggingface.exported_config import changes
from modbrick.convert.peft.bank import family_banks
from modbrick.convert.peft.module import Module, plain_modules
from modbrick.convert.registry import FORMATS, format_named
from modbrick.errors import InputError

PREFIX = "base_model.model."
"""In front of the names of modules in PEFT's files."""


def form_of(model: ModelConfig, family: str | None, tensors: Iterable[str]) -> Format:
    """Returns the family of a model.

    Args:
      model: the base.
      family: by name; None: of those that can express the model, the one that knows most tensors.
      tensors: names of an adapter's.

    Raises:
      InputError: the family is none, or there is no family that can express the model.
    """
    if family is not None:
        return format_named(family)
    named = [name.removeprefix(PREFIX) for name in tensors]
    candidates = [form for form in FORMATS.values() if _says(form, model)]
    if not candidates:
        raise InputError("the model is of no family of the transformers library, as PEFT's are")

    def known(form: Format) -> int:
        modules = family_modules(form, model)
        paths = {*modules, *(name.rpartition(".")[0] for name in modules)}
        return sum(_known(name, paths) for name in named)

    return max(candidates, key=known)


def family_modules(form: Format, model: ModelConfig) -> dict[str, Module]:
    """Lists the modules of a model in a family, and the weights of its banks, by name.

    Raises:
      InputError: the family has no place for something that the model has.
    """
    return plain_modules(form, model) | family_banks(form, model)


def _says(form: Format, model: ModelConfig) -> bool:
    """Returns whether a family can express a model."""
    if form.write_config is None:
        return False
    try:
        written = form.write_config(Translation(model))
    except InputError:
        return False
    return not changes(form, written, model)


def _known(tensor: str, paths: Collection[str]) -> bool:
    """Returns whether a tensor is named after a module."""
    parts = tensor.split(".")
    return any(".".join(parts[:count]) in paths for count in range(1, len(parts)))
