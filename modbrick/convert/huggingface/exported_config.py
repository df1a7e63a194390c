"""The `config.json` of an export, which reads back as the same model or is refused."""

from __future__ import annotations

from typing import Any

from modbrick.checkpoints import Metadata
from modbrick.config import ModelConfig
from modbrick.convert.format import Format, Translation
from modbrick.errors import InputError, listed
from modbrick.schema import differences, to_mapping

ASIDE = ("dtype", "router_statistics", "initial_scale", "expert_initialiser")
"""Fields of a model that do not change what it computes: how precisely it computes, what counts for
losses, where training began."""


def foreign_config(
    form: Format, metadata: Metadata, dtype: str, where: str, *, cast: bool = False
) -> dict[str, Any]:
    """Returns the `config.json` of a model.

    A model that was imported from the same format and is still what it was has its original back;
    otherwise the original keeps what the model does not say, if the two can stand together.

    Args:
      form: the format.
      metadata: of the checkpoint.
      dtype: of the tensors, or of most of them.
      where: begins every message.
      cast: the tensors' dtype is not the one that they were imported with.

    Raises:
      InputError: the format cannot express the model; lists every field that would be another.
    """
    assert form.write_config is not None, "formats to export to have one"
    extra = metadata.extra
    translation = Translation(metadata.model, extra.get("objective", {}))
    try:
        written = form.write_config(translation)
    except InputError as error:
        raise InputError(f"{where}: cannot become {form.name}: {error}") from None
    names = {"model_type": form.model_type, "architectures": [form.architecture]}
    original = extra.get("config", {}) if extra.get("imported") == form.name else {}
    key = "dtype" if "dtype" in original and "torch_dtype" not in original else "torch_dtype"
    kept = names | ({key: dtype} if cast else {})
    candidates = [original | kept, original | written | kept] if original else []
    changed: list[str] = []
    for config in (*candidates, written | names | {"torch_dtype": dtype}):
        changed = changes(form, config, metadata.model)
        if not changed:
            return config
    raise InputError(
        f"{where}: {form.name} cannot express it; this would be another: {listed(changed, '; ')}"
    )


def changes(form: Format, config: dict[str, Any], model: ModelConfig) -> list[str]:
    """Lists the fields of the model that are lost on the way through a config."""
    try:
        back = form.read_config(config, "config.json").model
    except InputError as error:
        return [str(error)]
    ours, theirs = to_mapping(model), to_mapping(back)
    for name in ASIDE:
        del ours[name], theirs[name]
    return differences(ours, theirs)
