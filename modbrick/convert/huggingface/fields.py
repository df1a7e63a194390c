"""Fields of a `config.json`, as the original libraries read them: types, defaults, refusals."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from modbrick.config import Activation
from modbrick.convert.huggingface.keys import changes_nothing
from modbrick.errors import InputError, listed
from modbrick.schema import from_mapping

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

_COMPUTATION: Mapping[str | None, Literal["float32", "bfloat16"]] = {
    None: "float32",
    "float32": "float32",
    "float": "float32",
    "float16": "float32",
    "half": "float32",
    "float64": "float32",
    "double": "float32",
    "bfloat16": "bfloat16",
}

_UNSUPPORTED = (
    "quantization_config",
    "pruned_heads",
    "is_encoder_decoder",
    "add_cross_attention",
)


def read_fields[T](
    cls: type[T],
    data: Mapping[str, Any],
    where: str,
    *,
    architecture: str,
    aliases: Mapping[str, str] | None = None,
) -> T:
    """Returns the fields of a `config.json` that the original reads.

    Keys that it does not read are left aside, as it leaves them, unless they look like a
    misspelling of one that is missing. A missing one takes the original's default; a flag that is
    null is false, and a record that is false or empty is none.

    Args:
      cls: a frozen dataclass of the original's fields, under its names and with its defaults.
      data: the parsed file.
      where: begins every message.
      architecture: the only one of `architectures` that is meant, or its model without a head.
      aliases: other names of fields; `torch_dtype` can always be called `dtype`.

    Raises:
      InputError: another architecture, quantised or pruned weights, a key that is misspelt or
        contradicted by its alias, or a value of the wrong type.
    """
    architectures = data.get("architectures")
    if architectures and not _is_meant(architectures, architecture):
        raise InputError(
            f"{where}: architectures is {architectures!r}, expected [{architecture!r}]"
        )
    for key in _UNSUPPORTED:
        if data.get(key):
            raise InputError(f"{where}: {key} is {data[key]!r}, which is not supported")
    types = {field.name: str(field.type) for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    fields = types.keys()
    known = {key: _settled(value, types[key]) for key, value in data.items() if key in fields}
    aliases = {"dtype": "torch_dtype", **(aliases or {})}
    for alias, name in aliases.items():
        if data.get(alias) is None or name not in fields:
            continue
        if known.get(name) not in (None, data[alias]):
            raise InputError(f"{where}: {alias} and {name} are the same thing, and differ")
        known[name] = data[alias]
    others = data.keys() - fields - aliases.keys()
    for key in (other for other in others if not changes_nothing(other, data[other])):
        meant = difflib.get_close_matches(key, fields - known.keys(), n=1, cutoff=0.85)
        if meant:
            raise InputError(f"{where}: unknown key {key!r}; did you mean {meant[0]!r}?")
    return from_mapping(cls, known, where)


def _settled(value: Any, kind: str) -> Any:
    """Returns a value that says nothing as the type of its field says it."""
    if kind == "bool" and value is None:
        return False
    return None if kind.startswith("Mapping") and not value else value


def _is_meant(architectures: Any, architecture: str) -> bool:
    """Returns whether a config is of a class; early files write `LLaMAForCausalLM`."""
    names = {architecture.lower(), architecture.replace("ForCausalLM", "Model").lower()}
    return isinstance(architectures, list) and all(
        isinstance(name, str) and name.lower() in names for name in architectures
    )


def choice[T](value: Any, choices: Mapping[Any, T], name: str, where: str) -> T:
    """Returns what a setting means.

    Args:
      value: of the setting.
      choices: what each possible value means.
      name: of the setting.
      where: begins the message.

    Raises:
      InputError: another value.
    """
    if not isinstance(value, str | int | float | None) or value not in choices:
        known = ", ".join(str(option) for option in choices if option is not None)
        raise InputError(f"{where}: {name} {value!r} is not supported; it can be {known}")
    return choices[value]


def computation_dtype(torch_dtype: str | None, where: str) -> Literal["float32", "bfloat16"]:
    """Returns the dtype to compute in; float16 and float64, which are not here, become float32.

    Raises:
      InputError: another dtype.
    """
    return choice(torch_dtype, _COMPUTATION, "torch_dtype", where)


def check_layer_types(
    kinds: Sequence[str] | None, layers: int, window: int | None, where: str
) -> None:
    """Refuses kinds of attention that differ between layers, or from what the window says.

    Args:
      kinds: `layer_types`, one for each layer; None: as the window says.
      layers: how many there are.
      window: of all layers; None: none.
      where: begins the message.

    Raises:
      InputError: names `layer_types`.
    """
    if not kinds:
        return
    meant = {"sliding_attention"} if window else {"full_attention", "attention"}
    if not set(kinds) <= meant:
        raise InputError(
            f"{where}: layer_types has {listed(sorted(set(kinds)))}, but by the other settings "
            f"all layers have {max(meant)}"
        )
    if len(kinds) != layers:
        raise InputError(
            f"{where}: layer_types names {len(kinds)} layers, num_hidden_layers is {layers}"
        )


def name_of[T](value: T, choices: Mapping[str, T], what: str) -> str:
    """Returns the first name that means `value`, the inverse of `choice`.

    Raises:
      InputError: there is none.
    """
    for name, meaning in choices.items():
        if meaning == value:
            return name
    raise InputError(f"{what} {value!r} has no name in this format")
