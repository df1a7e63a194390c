"""Reading an adapter: every setting and every tensor is accounted for."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

import numpy as np

from modbrick.bricks.brick import Brick
from modbrick.bricks.config import check_name
from modbrick.config import ModelConfig
from modbrick.convert.opening import DTYPES
from modbrick.convert.peft import whole
from modbrick.convert.peft.base import Base, Weights
from modbrick.convert.peft.family import PREFIX, family_modules, form_of
from modbrick.convert.peft.kinds import virtual_tokens
from modbrick.convert.peft.kinds.adalora import AdaLoRASettings
from modbrick.convert.peft.kinds.ia3 import IA3Settings
from modbrick.convert.peft.kinds.lora import LoRASettings
from modbrick.convert.peft.kinds.low_rank import Shapes
from modbrick.convert.peft.kinds.norms import NormSettings
from modbrick.convert.peft.kinds.vera import VeRASettings
from modbrick.convert.peft.kinds.virtual_tokens import EMBEDDINGS, VirtualTokens
from modbrick.convert.peft.module import Module
from modbrick.convert.peft.piece import Piece, bricks_of
from modbrick.convert.peft.settings import read_settings
from modbrick.errors import InputError, listed, located
from modbrick.formats.safetensors import read_safetensors
from modbrick.formats.stored_tensor import StoredTensor
from modbrick.formats.strict_json import read_object
from modbrick.schema import nearest

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

Settings = LoRASettings | AdaLoRASettings | VeRASettings | IA3Settings | NormSettings

KINDS: Mapping[str, type[Settings]] = {
    "LORA": LoRASettings,
    "ADALORA": AdaLoRASettings,
    "VERA": VeRASettings,
    "IA3": IA3Settings,
    "LN_TUNING": NormSettings,
}
"""By `peft_type`."""


def read_adapter(
    directory: str | Path,
    model: ModelConfig,
    *,
    family: str | None = None,
    name: str = "default",
    weights: Weights | None = None,
) -> dict[str, Brick]:
    """Reads an adapter of PEFT as bricks, which together compute the same.

    One brick has one rank and one scale: modules for which `rank_pattern` or `alpha_pattern` say
    otherwise are bricks of their own (`NAME-r4`, `NAME-a16`, `NAME-r4-a16`), as are the biases of
    `lora_bias` (`NAME-bias`) and the pairs of experts (`NAME-experts`). AdaLoRA and VeRA become
    LoRA, p-tuning becomes a prompt. What an adapter has its own copy of becomes its difference from
    the base, if there is any: biases (`NAME-base-bias`) and `modules_to_save` (`NAME-saved-head`
    and so on).

    Args:
      directory: with `adapter_config.json` and `adapter_model.safetensors`.
      model: the base.
      family: of the names of modules, such as `llama`; None: what the model and the names say.
      name: of the brick.
      weights: returns the base's parameters by path; DoRA, norm tuning, and copies of the base's
        weights need them.

    Returns:
      Bricks by name, with float32 values.

    Raises:
      InputError: settings that are not supported, targets that match nothing, tensors that are
        missing, unexpected, of the wrong shape or dtype or not finite, each of them by name;
        weights in a pickle; or a copy of the base's weights that is another one.
    """
    check_name(name)
    directory = Path(directory)
    where = str(directory / SETTINGS)
    data = read_object(directory / SETTINGS)
    kind, known = data.get("peft_type"), {**KINDS, **virtual_tokens.KINDS}
    if not isinstance(kind, str) or kind not in known:
        raise InputError(f"{where}: peft_type {kind!r} is not read; what is: {', '.join(known)}")
    cls = known[kind]
    settings = read_settings(cls, data, where, aside=cls.aside, neutral=cls.neutral)
    stored = _stored(directory)
    with located(where):
        form = form_of(model, family, stored)
    if isinstance(settings, VirtualTokens):
        return _virtual(settings, stored, model, directory, name)
    with located(where):
        base = Base(form, model, weights)
        adapter = _Adapter(settings, family_modules(form, model), base)
    with located(str(directory / WEIGHTS)):
        tensors = _read(stored, adapter.shapes(stored))
        bricks = bricks_of(adapter.pieces(tensors, name), model)
        if not bricks:
            raise InputError("the adapter changes nothing in this base")
        return bricks


def _virtual(
    settings: VirtualTokens,
    stored: Mapping[str, StoredTensor],
    model: ModelConfig,
    directory: Path,
    name: str,
) -> dict[str, Brick]:
    """Returns a prompt or a prefix."""
    with located(str(directory / SETTINGS)):
        settings.check(model)
    with located(str(directory / WEIGHTS)):
        rows = _read(stored, {EMBEDDINGS: settings.shape(model)})[EMBEDDINGS]
    return bricks_of(settings.pieces(rows, name, model), model)


class _Adapter:
    """What an adapter has in its file, by the names of tensors there."""

    def __init__(self, settings: Settings, modules: Mapping[str, Module], base: Base):
        self._settings, self._modules, self._base = settings, modules, base
        self._chosen = settings.chosen(modules)
        self._saved = settings.saved(modules, self._chosen)
        self._biases = settings.changed_biases(self._chosen, base.biases())

    def shapes(self, stored: Container[str]) -> Shapes:
        """Returns the shapes of all tensors; those of the base may be there or not."""
        shapes = dict(self._settings.shared(self._chosen))
        for module in self._chosen:
            for end, shape in self._settings.shapes(module).items():
                shapes[PREFIX + module.key + end] = shape
        for module in self._saved:
            for end, shape in whole.shapes(module).items():
                shapes[PREFIX + module.name + end] = shape
        for name, here in self._biases.items():
            shapes[PREFIX + here] = self._base.shape(name)
        for name, module in self._copies().items():
            if name in stored:
                shapes[name] = module.weight_shape
        return shapes

    def pieces(self, tensors: Mapping[str, np.ndarray], name: str) -> Iterator[Piece]:
        """Yields what bricks have at each site; `name` is that of the adapter's own brick."""
        settings, base = self._settings, self._base
        common = {key: tensors[key] for key in settings.shared(self._chosen)}
        by_module = {
            m: common | {end: tensors[PREFIX + m.key + end] for end in settings.shapes(m)}
            for m in self._chosen
        }
        yield from settings.pieces(by_module, name, base)
        for module in self._saved:
            copy = {end: tensors[PREFIX + module.name + end] for end in whole.shapes(module)}
            saved = f"{name}-saved"
            yield from whole.difference(module, copy, base, saved, norms=f"{saved}-norms")
        for bias, here in self._biases.items():
            yield from self._bias(bias, tensors[PREFIX + here], f"{name}-base-bias")
        for copied, module in self._copies().items():
            own = f"{module.name}{whole.WEIGHT}"
            if copied in tensors and not base.has(own, tensors[copied]):
                raise InputError(f"{copied} is not the base's {own}")

    def _copies(self) -> dict[str, Module]:
        """Returns the names that the base's embedding and head may have in the file.

        The library stores them beside an adapter that is there, or whose base was extended.
        """
        adapted = {module.name for module in self._chosen}
        return {
            PREFIX + name + (".base_layer.weight" if name in adapted else ".weight"): module
            for name, module in self._modules.items()
            if module.outermost and module not in self._saved
        }

    def _bias(self, name: str, bias: np.ndarray, brick: str) -> Iterator[Piece]:
        module = self._modules.get(name.removesuffix(whole.BIAS))
        if module is not None and module.kind == "linear":
            yield from whole.bias_difference(module, bias, self._base, brick)
        elif not self._base.has(name, bias):
            raise InputError(f"{name} differs from the base's, and no site here has it")


def _stored(directory: Path) -> dict[str, StoredTensor]:
    path = directory / WEIGHTS
    pickle = directory / "adapter_model.bin"
    if not path.exists() and pickle.exists():
        raise InputError(
            f"{pickle}: a pickle, which can run code as it is read; save the adapter as {WEIGHTS}"
        )
    return read_safetensors(path)


def _read(stored: Mapping[str, StoredTensor], shapes: Shapes) -> dict[str, np.ndarray]:
    """Returns all tensors in float32, after comparing them with what is expected."""
    problems = [f"{name} is missing" for name in shapes if name not in stored]
    for name, tensor in stored.items():
        if name not in shapes:
            problems.append(f"{name} is not expected ({nearest(name, shapes)})")
        elif tensor.shape != shapes[name]:
            problems.append(f"{name} has shape {list(tensor.shape)}, not {list(shapes[name])}")
        elif tensor.dtype not in DTYPES:
            problems.append(f"{name} has dtype {tensor.dtype}")
    if problems:
        raise InputError(f"{len(problems)} tensors do not fit: {listed(problems, '; ')}")
    tensors = {name: stored[name].read().astype(np.float32) for name in shapes}
    for name, values in tensors.items():
        if count := math.prod(values.shape) - int(np.isfinite(values).sum()):
            problems.append(f"{count} in {name}")
    if problems:
        raise InputError(f"values that are not finite: {listed(problems, '; ')}")
    return tensors
