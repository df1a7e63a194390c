"""Settings in an `adapter_config.json`: those that are understood, and refusal of all others."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from modbrick.convert.peft.module import Module
from modbrick.errors import InputError, listed
from modbrick.schema import from_mapping

NOTHING: tuple[Any, ...] = (None, False, {}, [])
"""Values by which a setting that is not known here changes nothing."""

INFORMATION = (
    "peft_type",
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
)
"""Settings that say where an adapter comes from."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
    "megatron_core": ("megatron.core",),
    "qalora_group_size": (16,),
}
"""Values of settings that change nothing, besides `NOTHING`."""

Names = tuple[str, ...] | str | None


@dataclasses.dataclass(frozen=True)
class Targets:
    """Settings that say which modules are adapted; the same for all kinds.

    Attributes:
      target_modules: names of modules or ends of them; a text is a regular expression.
      exclude_modules: the same, of modules that are not.
      layers_to_transform: the only layers of ends of names; a module named whole is in any.
      layers_pattern: what stands in front of the layer's index in a name.
      modules_to_save: ends of names of modules of which the adapter has a copy; they are no
        targets.
    """

    adapts: ClassVar[tuple[str, ...]] = ("linear",)
    """Kinds of modules that can be adapted."""

    target_modules: Names = None
    exclude_modules: Names = None
    layers_to_transform: tuple[int, ...] | int | None = None
    layers_pattern: Names = None
    modules_to_save: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.target_modules and not self._targets_more:
            raise InputError("target_modules names nothing")
        if not all(self.modules_to_save or ()):
            raise InputError("modules_to_save has an empty name")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise InputError("layers_to_transform has no effect where target_modules is a text")
        if self.layers_pattern and self.layers_to_transform is None:
            raise InputError("layers_pattern has no effect without layers_to_transform")

    def chosen(self, modules: Mapping[str, Module]) -> list[Module]:
        """Lists the modules that are adapted.

        Raises:
          InputError: a target that matches nothing, or a module that cannot be adapted here.
        """
        modules = {name: m for name, m in modules.items() if m.kind != "bank"}
        entries = self.target_modules
        entries = (entries,) if isinstance(entries, str) else entries or ()
        idle = [name for name in entries if not any(self._targets(m, name) for m in modules)]
        if idle:
            raise InputError(f"target_modules that match nothing: {listed(map(repr, idle))}")
        found = [module for name, module in modules.items() if self._covers(name)]
        if not found and not self._targets_more:
            raise InputError("target_modules match nothing in these layers")
        problems = [f"{m.name}: {m.obstacle}" for m in found if m.kind not in self.adapts]
        if problems:
            raise InputError(f"cannot be adapted here: {listed(problems, '; ')}")
        return found

    def saved(self, modules: Mapping[str, Module], chosen: Iterable[Module]) -> list[Module]:
        """Lists the modules of which the adapter has a copy.

        A name stands for a module with all that is inside, and for whatever ends with it.

        Args:
          modules: all, by name.
          chosen: those that are adapted.

        Raises:
          InputError: a name that matches nothing, or a module that cannot be replaced here.
        """
        entries = self.modules_to_save or ()
        idle = [entry for entry in entries if not any(saves(entry, name) for name in modules)]
        if idle:
            raise InputError(f"modules_to_save that match nothing: {listed(map(repr, idle))}")
        found = [m for name, m in modules.items() if any(saves(e, name) for e in entries)]
        problems = [f"{m.name}: {m.obstacle}" for m in found if m.kind in ("", "bank")]
        problems += [f"{m.name} is adapted, too" for m in found if m in chosen]
        if problems:
            raise InputError(f"modules_to_save cannot be replaced here: {listed(problems, '; ')}")
        return found

    def shared(self, modules: Sequence[Module]) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of tensors that all modules share, by name."""
        del modules
        return {}

    def changed_biases(self, chosen: Sequence[Module], biases: Collection[str]) -> dict[str, str]:
        """Returns which biases of the base the adapter has, each by the name that it has there."""
        del chosen, biases
        return {}

    @property
    def _targets_more(self) -> bool:
        """Whether there are targets of another sort than modules."""
        return False

    def _covers(self, name: str) -> bool:
        if self.exclude_modules and names(self.exclude_modules, name):
            return False
        copied = [rf"(?:^|.*\.){entry}(?:\Z|\.)" for entry in self.modules_to_save or ()]
        if any(_search(pattern, name) for pattern in copied):
            return False
        assert self.target_modules is not None, "checked at first"
        if not isinstance(self.target_modules, str) and name in self.target_modules:
            return True  # whatever the layers
        return names(self.target_modules, name) and self._in_layers(name)

    def _targets(self, name: str, entry: str) -> bool:
        return names(entry if isinstance(self.target_modules, str) else (entry,), name)

    def _in_layers(self, name: str) -> bool:
        layers = self.layers_to_transform
        if layers is None or layers == ():
            return True
        patterns = self.layers_pattern or ("[^.]*",)
        for pattern in (patterns,) if isinstance(patterns, str) else patterns:
            found = _search(rf"(?:^|.*?\.)(?:{pattern})\.(?P<layer>\d+)\.", name)
            if found is not None:
                index = int(found["layer"])
                return index == layers if isinstance(layers, int) else index in layers
        return False


def names(targets: tuple[str, ...] | str, name: str) -> bool:
    """Returns whether targets name a module: a text by matching, others whole or as its end."""
    if isinstance(targets, str):
        found = _search(rf"(?:{targets})\Z", name)
        return found is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def saves(entry: str, name: str) -> bool:
    """Returns whether a name in `modules_to_save` stands for a module, or for one around it."""
    parts = name.split(".")
    return any(".".join(parts[:count]).endswith(entry) for count in range(1, len(parts) + 1))


def of_pattern[T](patterns: Mapping[str, T] | None, name: str, default: T) -> T:
    """Returns the value of the first pattern that matches the end of a module's name."""
    for pattern, value in (patterns or {}).items():
        if _search(rf"(?:.*\.)?(?:{pattern})\Z", name) is not None:
            return value
    return default


def read_settings[T](
    cls: type[T],
    data: Mapping[str, Any],
    where: str,
    *,
    aside: Iterable[str] = (),
    neutral: Mapping[str, tuple[Any, ...]] = {},
) -> T:
    """Returns the settings that are understood; all others must be without effect.

    Args:
      cls: a frozen dataclass of them, under PEFT's names and with its defaults.
      data: the parsed file.
      where: begins every message.
      aside: names of settings that matter in training only.
      neutral: values of further settings that change nothing.

    Raises:
      InputError: settings that are not supported, each by name and value; or of the wrong type.
    """
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    without_effect = {**NEUTRAL, **neutral}
    known, problems = {}, []
    for key, value in data.items():
        if key in fields:
            known[key] = value
        elif key in INFORMATION or key in aside:
            continue
        elif not any(
            type(value) is type(one) and value == one
            for one in (*NOTHING, *without_effect.get(key, ()))
        ):
            problems.append(f"{key} ({value!r})")
    if problems:
        raise InputError(f"{where}: settings that are not supported: {listed(problems)}")
    return from_mapping(cls, known, where)


def _search(pattern: str, name: str) -> re.Match[str] | None:
    try:
        return re.match(pattern, name)
    except re.error as error:
        raise InputError(f"{pattern!r} is no regular expression ({error})") from None
