"""Modules of a model as the transformers library has them, and the sites here that they are."""

from __future__ import annotations

import dataclasses
from typing import Literal

from modbrick.config import ModelConfig
from modbrick.convert.correspondence import Correspondence, Place, correspondence
from modbrick.convert.format import Format
from modbrick.convert.transforms import SAME, TRANSPOSED
from modbrick.decoder.sites import model_sites
from modbrick.parameters import ParameterTable

_WEIGHT = ".weight"

_NO_SITE = "no linear map"


@dataclasses.dataclass(frozen=True)
class Share:
    """Share of a module's outputs: those of one site; fused projections have several.

    Attributes:
      address: of the site.
      start, stop: among the module's outputs.
      multiplier: by what the model multiplies them in front of the site.
    """

    address: str
    start: int
    stop: int
    multiplier: float = 1.0


@dataclasses.dataclass(frozen=True)
class Module:
    """A module that has a weight, or a weight of several axes that a module of experts has.

    Attributes:
      name: `model.layers.3.self_attn.q_proj`.
      kind: what it is; "": something else.
      input_width: of a linear map; of an embedding, the vocabulary.
      output_width: of the outputs.
      shares: of its outputs, in their order.
      inputs: address of the site that sees what goes in and nothing else; "": there is none.
      biased: it has a bias.
      obstacle: why no kind for linear maps can be attached there; "": one can.
      experts: of a bank, how many there are.
      prefix: what the names of an adapter's tensors begin with; "": with its own name.
    """

    name: str
    kind: Literal["linear", "embedding", "norm", "bank", ""] = ""
    input_width: int = 0
    output_width: int = 0
    shares: tuple[Share, ...] = ()
    inputs: str = ""
    biased: bool = False
    obstacle: str = ""
    experts: int = 0
    prefix: str = ""

    @property
    def key(self) -> str:
        """What the names of an adapter's tensors begin with."""
        return self.prefix or self.name

    @property
    def outermost(self) -> bool:
        """Whether it is the embedding or the head, whose weights PEFT stores beside adapters."""
        return bool(self.shares) and self.shares[0].address in ("embedding", "head")

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of its weight in the transformers library."""
        match self.kind:
            case "norm":
                return (self.output_width,)
            case "embedding":
                return (self.input_width, self.output_width)
            case _:
                return (self.output_width, self.input_width)


def plain_modules(form: Format, model: ModelConfig) -> dict[str, Module]:
    """Lists the modules of a model in a family that have one weight, by name.

    Raises:
      InputError: the family has no place for something that the model has.
    """
    table = correspondence(form, model)
    sites = site_addresses(model)
    modules = {}
    for name, place in table.places.items():
        by_expert = len(place.parts[0].index) > 1  # in files only, the library has them as one
        if name.endswith(_WEIGHT) and not by_expert:
            module = _module(name.removesuffix(_WEIGHT), place, table.parameters, sites, model)
            biased = f"{module.name}.bias" in table.places
            modules[module.name] = dataclasses.replace(module, biased=biased)
    modules |= _tied_head(table, model)
    return modules


def site_addresses(model: ModelConfig) -> list[str]:
    """Lists the sites of all layers, then those of the decoder, by address."""
    sites = model_sites(model)
    addresses = [
        f"layer.{first_layer + layer}.{site.name}"
        for name, first_layer, segment in model.placed_segments()
        for layer in range(segment.repeats)
        for site in sites.layers[name]
    ]
    return addresses + [site.name for site in sites.decoder]


def _module(
    name: str, place: Place, parameters: ParameterTable, sites: list[str], model: ModelConfig
) -> Module:
    infos = [parameters[part.path] for part in place.parts]
    if any("expert" in info.axes for info in infos):
        return Module(name, obstacle="a bank of experts, each of which would need one of its own")
    if infos[0].path == "embedding" and place.transform == SAME:
        share = Share("embedding", 0, model.width, model.embedding_multiplier)
        widths = model.vocabulary, model.width
        return Module(name, "embedding", *widths, (share,), obstacle=_NO_SITE)
    if place.transform == SAME and infos[0].path.endswith(".scale"):
        return _norm(name, place, parameters, sites)
    if place.transform != TRANSPOSED or any(len(part.shape) != 2 for part in place.parts):
        return Module(name, obstacle=_NO_SITE)
    if any(info.role == "router" for info in infos):
        return Module(name, obstacle="a router, which the library has as a bare parameter mostly")
    shares = []
    for number, (part, info) in enumerate(zip(place.parts, infos, strict=True)):
        address = _address(place, number, parameters, _WEIGHT)
        if address not in sites:
            return Module(name, obstacle=f"no site here ({address})")
        span = place.span(number) if len(place.parts) > 1 else slice(0, part.shape[1])
        multiplier = model.logit_multiplier if info.path == "head.weight" else 1.0
        shares.append(Share(address, span.start, span.stop, multiplier))
    hidden = shares[0].address.removesuffix("down") + "hidden"
    inputs = hidden if shares[0].address.endswith(".down") and hidden in sites else ""
    widths = place.parts[0].shape[0], shares[-1].stop
    return Module(name, "linear", *widths, tuple(shares), inputs)


def _norm(name: str, place: Place, parameters: ParameterTable, sites: list[str]) -> Module:
    address = _address(place, 0, parameters, ".scale")
    if address not in sites or len(place.parts) > 1:
        return Module(name, obstacle=_NO_SITE)
    (width,) = place.parts[0].shape
    return Module(name, "norm", width, width, (Share(address, 0, width),), obstacle=_NO_SITE)


def _tied_head(table: Correspondence, model: ModelConfig) -> dict[str, Module]:
    """Returns the head as the module that it is there even if its weight is the embedding."""
    share = Share("head", 0, model.vocabulary, model.logit_multiplier)
    names = [alias.removesuffix(_WEIGHT) for alias in table.aliases]
    return {n: Module(n, "linear", model.width, model.vocabulary, (share,)) for n in names}


def _address(place: Place, number: int, parameters: ParameterTable, end: str) -> str:
    """Returns the address of a part's site: that of the parameter without its end."""
    part = place.parts[number]
    layer = part.index[0] if part.index else None
    return parameters[part.path].address(layer=layer).removesuffix(end)
