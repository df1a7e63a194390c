"""Family of a model: whose names of modules an adapter uses."""

from __future__ import annotations

from collections.abc import Iterable

from modbrick.config import ModelConfig
from modbrick.convert.format import Format, Translation
from modbrick.convert.huggingface.exported_config import changes
from modbrick.convert.peft.module import Module, family_modules
from modbrick.convert.registry import FORMATS, format_named
from modbrick.errors import InputError

PREFIX = "base_model.model."
"""In front of the names of modules in PEFT's files."""


def modules_of(model: ModelConfig, family: str | None, tensors: Iterable[str]) -> dict[str, Module]:
    """Returns the modules of a model, by name, in its family.

    Args:
      model: the base.
      family: by name; None: of those that can express the model, the one that knows most tensors.
      tensors: names of an adapter's.

    Raises:
      InputError: the family is none, or there is no family that can express the model.
    """
    if family is not None:
        return family_modules(format_named(family), model)
    named = [name.removeprefix(PREFIX) for name in tensors]
    candidates = [family_modules(form, model) for form in FORMATS.values() if _says(form, model)]
    if not candidates:
        raise InputError("the model is of no family of the transformers library, as PEFT's are")
    return max(candidates, key=lambda modules: sum(_known(name, modules) for name in named))


def _says(form: Format, model: ModelConfig) -> bool:
    """Returns whether a family can express a model."""
    if form.write_config is None:
        return False
    try:
        written = form.write_config(Translation(model))
    except InputError:
        return False
    return not changes(form, written, model)


def _known(tensor: str, modules: dict[str, Module]) -> bool:
    """Returns whether a tensor is named after one of the modules."""
    parts = tensor.split(".")
    return any(".".join(parts[:count]) in modules for count in range(len(parts)))
