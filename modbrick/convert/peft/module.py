"""Modules of a model as the transformers library has them, and the sites here that they are."""

from __future__ import annotations

import dataclasses

from modbrick.config import ModelConfig
from modbrick.convert.correspondence import Place, correspondence
from modbrick.convert.format import Format
from modbrick.convert.transforms import TRANSPOSED
from modbrick.decoder.sites import model_sites
from modbrick.parameters import ParameterTable

_WEIGHT = ".weight"


@dataclasses.dataclass(frozen=True)
class Share:
    """Share of a module's outputs: those of one site; fused projections have several.

    Attributes:
      address: of the site.
      start, stop: among the module's outputs.
    """

    address: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Module:
    """A module that has a weight.

    Attributes:
      name: `model.layers.3.self_attn.q_proj`.
      input_width: of the linear map.
      output_width: of the linear map.
      shares: of its outputs, in their order.
      inputs: address of the site that sees what goes in and nothing else; "": there is none.
      biased: it has a bias.
      obstacle: why no brick can be attached there; "": one can.
    """

    name: str
    input_width: int = 0
    output_width: int = 0
    shares: tuple[Share, ...] = ()
    inputs: str = ""
    biased: bool = False
    obstacle: str = ""


def family_modules(form: Format, model: ModelConfig) -> dict[str, Module]:
    """Lists the modules of a model in a family, by name.

    Raises:
      InputError: the family has no place for something that the model has.
    """
    table = correspondence(form, model)
    sites = site_addresses(model)
    modules = {}
    for name, place in table.places.items():
        by_expert = len(place.parts[0].index) > 1  # in files only, the library has them as one
        if name.endswith(_WEIGHT) and not by_expert:
            module = _module(name.removesuffix(_WEIGHT), place, table.parameters, sites)
            biased = f"{module.name}.bias" in table.places
            modules[module.name] = dataclasses.replace(module, biased=biased)
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


def _module(name: str, place: Place, parameters: ParameterTable, sites: list[str]) -> Module:
    if any("expert" in parameters[part.path].axes for part in place.parts):
        return Module(name, obstacle="a bank of experts, each of which would need one of its own")
    if place.transform != TRANSPOSED or any(len(part.shape) != 2 for part in place.parts):
        return Module(name, obstacle="no linear map")
    if name == "lm_head":
        return Module(name, obstacle="the head, with which PEFT stores the weight of the base")
    if any(parameters[part.path].role == "router" for part in place.parts):
        return Module(name, obstacle="a router, which the library has as a bare parameter mostly")
    shares = []
    for number, part in enumerate(place.parts):
        info = parameters[part.path]
        address = info.address(layer=part.index[0]).removesuffix(_WEIGHT)
        if address not in sites:
            return Module(name, obstacle=f"no site here ({address})")
        span = place.span(number) if len(place.parts) > 1 else slice(0, part.shape[1])
        shares.append(Share(address, span.start, span.stop))
    hidden = shares[0].address.removesuffix("down") + "hidden"
    inputs = hidden if shares[0].address.endswith(".down") and hidden in sites else ""
    return Module(name, place.parts[0].shape[0], shares[-1].stop, tuple(shares), inputs)
