"""Plugging: bricks by name become one argument of the forward pass, stacked and padded."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from modbrick.bricks.attachment import Attachment, attachments
from modbrick.bricks.bank import Bank
from modbrick.bricks.config import BrickConfig, dropout
from modbrick.bricks.kinds.kind import Form, LeafInfo, MemoryForm
from modbrick.bricks.memory import MemoryBank, PromptBank
from modbrick.bricks.table import leaf_path
from modbrick.config import ModelConfig
from modbrick.decoder.sites import Hook
from modbrick.errors import InputError
from modbrick.layers.context import Bricks, SiteBricks
from modbrick.schema import nearest

AnyForm = Form | MemoryForm
AnyBank = Bank | MemoryBank | PromptBank

BANKS: Mapping[Hook, Any] = types.MappingProxyType({"memory": MemoryBank, "prompt": PromptBank})
"""Bricks of a form at a site, stacked, by the site's hook; else `Bank`."""


@dataclasses.dataclass(frozen=True)
class Plugged(Bricks):
    """Bricks plugged into a model, an argument of its call.

    As a pytree it is its arrays: names make no difference to a compiled function, and what comes
    out of one has none.

    Attributes:
      names: of the bricks; the index of a name is its id.
    """

    names: tuple[str, ...] = ()

    def ids(
        self, sets: Sequence[str | None], places: int | None = None
    ) -> Int[np.ndarray, "B 1 K"]:
        """Returns the ids of one set of bricks an example.

        Args:
          sets: names with `+` between them (`de+law`); None: none. Their order matters among serial
            adapters; kinds apply one after another in an order of their own.
          places: K, so that longer sets compile nothing again; None: as many as the longest has.

        Raises:
          InputError: a name that is not plugged in, or stands twice in a set; or too few places.
        """
        return set_ids(self.names, sets, places)[:, None]


jax.tree_util.register_pytree_with_keys(
    Plugged,
    lambda plug: (
        (
            (jax.tree_util.GetAttrKey("segments"), plug.segments),
            (jax.tree_util.GetAttrKey("decoder"), plug.decoder),
        ),
        None,
    ),
    lambda _, children: Plugged(*children),
)


def set_ids(
    names: Sequence[str], sets: Sequence[str | None], places: int | None = None
) -> Int[np.ndarray, "B K"]:
    """Returns the ids of sets of bricks, see `Plugged.ids`.

    Args:
      names: of the bricks that are plugged in, in the order of their ids.
      sets: names with `+` between them; None: none.
      places: K; None: as many as the longest set has.
    """
    parts = [[] if given is None else given.split("+") for given in sets]
    for members in parts:
        for name in members:
            if name not in names:
                raise InputError(f"no brick {name!r} is plugged in; {nearest(name, names)}")
            if members.count(name) > 1:
                raise InputError(f"brick {name!r} stands twice in {'+'.join(members)}")
    longest = max([1, *map(len, parts)])
    if places is not None and places < longest:
        raise InputError(f"a set of {longest} bricks does not fit {places} places")
    ids = np.full((len(sets), places or longest), -1, np.int32)
    for row, members in zip(ids, parts, strict=True):
        row[: len(members)] = [names.index(name) for name in members]
    return ids


def sets_of_domains(
    bricks: Iterable[str], sets: Mapping[str, str], domains: Sequence[str]
) -> Int[np.ndarray, "D K"] | None:
    """Returns the ids of the bricks that documents of each domain use; None: all use all.

    Args:
      bricks: names, in the order of their ids.
      sets: of bricks by domain, see `set_ids`; documents of other domains use none.
      domains: of the data, in the order of their indices.
    """
    return set_ids(tuple(bricks), [sets.get(name) for name in domains]) if sets else None


def plugged(
    model: ModelConfig,
    bricks: Mapping[str, BrickConfig],
    parameters: Mapping[str, Array],
    *,
    like: Plugged | None = None,
) -> Plugged:
    """Stacks bricks as the forward pass takes them.

    Args:
      model: into which they are plugged.
      bricks: by name; their order gives the ids.
      parameters: of the bricks, by path, see `modbrick.bricks.table`; arrays or traced values.
      like: what was plugged in before, to whose sizes these are padded: programs that were compiled
        for it run as they are.

    Raises:
      InputError: a pattern covers no site; or something does not fit `like`: more bricks, another
        site or kind, a larger rank.
    """
    at: dict[Attachment, dict[AnyForm, list[tuple[int, str, BrickConfig, Attachment]]]] = {}
    for number, (name, config) in enumerate(bricks.items()):
        for place in attachments(model, config):
            forms = at.setdefault(dataclasses.replace(place, layers=()), {})
            forms.setdefault(config.settings.form, []).append((number, name, config, place))
    repeats = {name: segment.repeats for name, _, segment in model.placed_segments()}
    segments: dict[str, dict[str, tuple[AnyBank, ...]]] = {}
    decoder: dict[str, tuple[AnyBank, ...]] = {}
    for place, forms in at.items():
        banks = tuple(
            _bank(form, members, parameters, len(bricks), repeats.get(place.segment))
            for form, members in sorted(forms.items(), key=lambda item: repr(item[0]))
        )
        into = segments.setdefault(place.segment, {}) if place.segment else decoder
        into[place.site.name] = banks
    found = Plugged(segments, decoder, tuple(bricks))
    return found if like is None else _fitted(found, like)


def with_dropout(bricks: Plugged, configs: Mapping[str, BrickConfig]) -> Plugged:
    """Returns bricks that drop, in calls with random keys, what their settings say.

    Args:
      bricks: plugged in.
      configs: of the same bricks, in the same order.
    """
    rates = {name: dropout(config.settings) for name, config in configs.items()}
    forms = {configs[name].settings.form for name, rate in rates.items() if rate}

    def dropping(sites: SiteBricks) -> SiteBricks:
        return {
            site: tuple(
                dataclasses.replace(bank, rates=tuple(rates.values()))
                if isinstance(bank, Bank) and bank.form in forms
                else bank
                for bank in banks
            )
            for site, banks in sites.items()
        }

    segments = {name: dropping(sites) for name, sites in bricks.segments.items()}
    return Plugged(segments, dropping(bricks.decoder), bricks.names)


def _fitted(bricks: Plugged, like: Plugged) -> Plugged:
    """Pads bricks to the sites, forms and sizes of others."""

    def at_site(name: str, have: tuple[Any, ...], want: tuple[Any, ...]) -> tuple[AnyBank, ...]:
        by_form = {bank.form: bank for bank in have}
        if by_form.keys() - {bank.form for bank in want}:
            raise InputError(f"bricks of another kind were plugged in at {name} before")
        return tuple(_fitted_bank(name, by_form.get(bank.form), bank) for bank in want)

    def at_sites(where: str, have: SiteBricks, want: SiteBricks) -> dict[str, tuple[AnyBank, ...]]:
        if unknown := sorted(have.keys() - want.keys()):
            raise InputError(f"no bricks were plugged in at {where}{unknown[0]} before")
        return {
            site: at_site(where + site, have.get(site, ()), banks) for site, banks in want.items()
        }

    if unknown := sorted(bricks.segments.keys() - like.segments.keys()):
        raise InputError(f"no bricks were plugged in at segments.{unknown[0]} before")
    segments = {
        name: at_sites(f"segments.{name}.", bricks.segments.get(name, {}), want)
        for name, want in like.segments.items()
    }
    return Plugged(segments, at_sites("", bricks.decoder, like.decoder), bricks.names)


def _fitted_bank(name: str, bank: AnyBank | None, like: AnyBank) -> AnyBank:
    """Pads a bank to the sizes of another; None: no brick is here."""
    if bank is None:
        nowhere = jnp.full(like.rows.shape, -1, like.rows.dtype)
        nothing = jax.tree.map(jnp.zeros_like, like.leaves)
        return dataclasses.replace(like, leaves=nothing, rows=nowhere)

    def fitted(leaf: str, have: Array, want: Array, fill: int = 0) -> Array:
        if any(more < less for less, more in zip(have.shape, want.shape, strict=True)):
            raise InputError(
                f"{leaf} of the bricks at {name} is {have.shape}, before there was room for "
                f"{want.shape}"
            )
        return _padded(have, want.shape, fill)

    leaves = {leaf: fitted(leaf, have, like.leaves[leaf]) for leaf, have in bank.leaves.items()}
    rows = fitted("rows", bank.rows, like.rows, -1)
    return dataclasses.replace(like, leaves=leaves, rows=rows)


def _bank(
    form: AnyForm,
    members: list[tuple[int, str, BrickConfig, Attachment]],
    parameters: Mapping[str, Array],
    count: int,
    layers: int | None,
) -> AnyBank:
    """Returns the bricks of a form at a site; `layers` of its segment, None: the decoder's own."""
    rows = np.full((layers or 1, count), -1, np.int32)
    leaves: dict[str, list[Any]] = {}
    infos = [config.settings.leaves(place.site) for _, _, config, place in members]
    shapes = {
        leaf: tuple(map(max, *(info[leaf].shape for info in infos), info.shape))
        for leaf, info in infos[0].items()
    }
    for row, ((number, name, config, place), own) in enumerate(zip(members, infos, strict=True)):
        rows[list(place.layers) or [0], number] = row
        for leaf, info in own.items():
            values = _checked(parameters, leaf_path(name, place, leaf), info, len(place.layers))
            values = values if place.layers else values[None]
            values = _padded(values, (len(values), *shapes[leaf]), info.padding)
            if layers is not None and len(place.layers) < layers:
                whole = jnp.full((layers, *shapes[leaf]), info.padding, values.dtype)
                values = whole.at[np.array(place.layers)].set(values)
            leaves.setdefault(leaf, []).append(values)
        for leaf, number_ in config.settings.constants().items():
            constant = np.full(layers or 1, number_, np.float32)
            leaves.setdefault(leaf, []).append(jnp.asarray(constant))
    stacked = {leaf: jnp.stack(values, axis=1) for leaf, values in leaves.items()}
    bank: AnyBank = BANKS.get(members[0][3].site.hook, Bank)(stacked, jnp.asarray(rows), form)
    return bank if layers is not None else jax.tree.map(lambda x: x[0], bank)


def _checked(parameters: Mapping[str, Array], path: str, info: LeafInfo, layers: int) -> Array:
    """Returns a brick's array, which must be there and of its shape."""
    if path not in parameters:
        raise InputError(f"{path} is missing among the parameters of the bricks")
    shape = (layers, *info.shape) if layers else info.shape
    if parameters[path].shape != shape:
        have = list(parameters[path].shape)
        raise InputError(f"{path}: has shape {have}, the brick on this model needs {list(shape)}")
    return parameters[path]


def _padded(values: Array, shape: tuple[int, ...], padding: float) -> Array:
    """Returns values padded behind to a shape."""
    behind = [(0, want - have) for want, have in zip(shape, values.shape, strict=True)]
    if values.shape == shape:
        return values
    return jnp.pad(values, behind, constant_values=padding)
