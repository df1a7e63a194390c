"""The formats that there are."""

from __future__ import annotations

from collections.abc import Mapping

from modbrick.convert.families import (
    granitemoe,
    jetmoe,
    llama,
    mistral,
    mixtral,
    moduleformer,
    olmoe,
    qwen3_moe,
)
from modbrick.convert.format import Format
from modbrick.convert.gguf.llama import GGUF_LLAMA
from modbrick.errors import InputError
from modbrick.schema import nearest

_FAMILIES = (
    moduleformer,
    llama,
    mistral,
    mixtral,
    granitemoe,
    olmoe,
    jetmoe,
    qwen3_moe,
)
FORMATS: Mapping[str, Format] = {
    form.name: form for form in (*(family.FORMAT for family in _FAMILIES), GGUF_LLAMA)
}
"""By name. A new format is a line above."""


def format_named(name: str) -> Format:
    """Returns a format that can be exported.

    Raises:
      InputError: there is none of that name, or it is only read.
    """
    writable = [form.name for form in FORMATS.values() if form.write_config is not None]
    if name not in writable:
        remark = "it is only read" if name in FORMATS else nearest(name, writable)
        raise InputError(f"no format {name!r} to export to; {remark}")
    return FORMATS[name]


def recognise(container: str, model_type: object, where: str) -> Format:
    """Returns the format of a source.

    Args:
      container: `directory` or `gguf`.
      model_type: as the source states it.
      where: begins the message.

    Raises:
      InputError: none of the formats.
    """
    of_kind = {form.model_type: form for form in FORMATS.values() if form.container == container}
    if not isinstance(model_type, str) or model_type not in of_kind:
        raise InputError(
            f"{where}: model_type is {model_type!r}, which is not read; "
            f"what is read: {', '.join(sorted(of_kind))}"
        )
    return of_kind[model_type]
