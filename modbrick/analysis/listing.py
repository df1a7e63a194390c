"""Listings of bricks: as tables for people, as plain data for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from modbrick.analysis.summary import summarise
from modbrick.errors import InputError
from modbrick.library import Library, StoredBrick, check, open_brick
from modbrick.library.index import INDEX, SUFFIX, Entry
from modbrick.models import StoredModel, open_model
from modbrick.paths import as_path
from modbrick.schema import json_text, to_mapping


@dataclasses.dataclass(frozen=True)
class Listing:
    """A listing.

    Attributes:
      shown: for people, to be printed by rich.
      record: JSON-able data.
      complaint: what is wrong with what is listed; None: nothing.
    """

    shown: RenderableType
    record: Mapping[str, Any]
    complaint: str | None = None

    def show(self, *, as_json: bool) -> None:
        """Prints it on standard output, for people or as one line of JSON.

        Raises:
          InputError: it has a complaint.
        """
        if as_json:
            print(json_text(self.record))
        else:
            Console().print(self.shown)
        if self.complaint is not None:
            raise InputError(self.complaint)


def of_bricks(bricks: Iterable[StoredBrick]) -> Listing:
    """Lists the files of several bricks."""
    found = [of_brick(brick) for brick in bricks]
    return Listing(
        Group(*(each.shown for each in found)), {"bricks": [dict(each.record) for each in found]}
    )


def of_path(path: str) -> Listing:
    """Lists what lies somewhere: a brick in a file, a library, or a model and its bricks.

    Raises:
      InputError: nothing of these is there, or it is damaged.
    """
    place = as_path(path)
    if place.is_file() and place.suffix.lower() != ".gguf":
        return of_brick(open_brick(place))
    if place.is_dir() and _is_library(place):
        return of_library(path, Library.open(place).entries())
    return of_model(open_model(path))


def of_brick(brick: StoredBrick) -> Listing:
    """Lists what a brick in a file says about itself, and its sites."""
    manifest = brick.manifest
    record = to_mapping(manifest)
    if manifest.base is not None:
        record["base"] = {"fingerprint": manifest.base.fingerprint}  # its config is long
    settings = record["brick"]["settings"]
    origin = manifest.provenance
    facts = {
        "kind": settings["kind"],
        "settings": ", ".join(f"{k} {v}" for k, v in settings.items() if k != "kind"),
        "at": ", ".join(manifest.brick.at),
        "granularity": manifest.granularity,
        "parameters": f"{brick.parameters:,}",
        "base": manifest.base.fingerprint if manifest.base else "any with its sites",
        "tokenizer": manifest.tokenizer.name if manifest.tokenizer else "",
        "steps": "" if origin.steps is None else f"{origin.steps:,}",
        "metrics": ", ".join(f"{name} {value:.4g}" for name, value in origin.metrics.items()),
        "licence": manifest.licence,
        "tags": ", ".join(manifest.tags),
        "notes": manifest.notes,
    }
    table = _table(f"brick {manifest.name}", (), [(k, v) for k, v in facts.items() if v])
    sites = _table(None, ("site", ">inputs", ">outputs"), _widths(brick))
    record |= {"parameters": brick.parameters, "file": str(brick.path)}
    return Listing(Group(table, sites), record)


def of_library(path: str, entries: Iterable[Entry]) -> Listing:
    """Lists bricks of a library."""
    rows = [
        (e.name, e.kind, ", ".join(e.at), f"{e.parameters:,}", ", ".join(e.tags), e.licence)
        for e in entries
    ]
    columns = ("brick", "kind", "at", ">parameters", "tags", "licence")
    return Listing(
        _table(f"library {path}", columns, rows),
        {"library": path, "bricks": [to_mapping(entry) for entry in entries]},
    )


def of_model(model: StoredModel) -> Listing:
    """Lists the bricks that a model is made of, and customized ones that it has."""
    summary = summarise(model.config)
    record = {
        "model": model.origin,
        "emergent": [dataclasses.asdict(group) for group in summary.groups],
        "customized": {name: to_mapping(config) for name, config in model.bricks.items()},
    }
    rows = [
        (name, config.settings.kind, ", ".join(config.at)) for name, config in model.bricks.items()
    ]
    custom = [_table("customized bricks", ("brick", "kind", "at"), rows)] if rows else []
    return Listing(Group(Text(model.origin), summary.table(), *custom), record)


def of_check(file: str, model: StoredModel, *, allow_base: str = "same") -> Listing:
    """Lists what of a brick in a file does not fit a model.

    Raises:
      InputError: the file is not that of a brick, or is damaged.
    """
    brick = open_brick(file)
    brick.read()
    remarks = check(brick.manifest, model, allow_base=allow_base)
    record = {"brick": file, "model": model.origin, "fits": not remarks, "mismatches": remarks}
    if not remarks:
        return Listing(Text(f"{file} fits {model.origin}"), record)
    count = f"{len(remarks)} mismatch{'es' if len(remarks) > 1 else ''}"
    shown = _table(None, ("mismatch",), [(remark,) for remark in remarks])
    return Listing(shown, record, f"{file} does not fit {model.origin}: {count}")


def _widths(brick: StoredBrick) -> list[tuple[str, str, str]]:
    """Returns a row for each site, layers of equal widths together."""
    found: dict[tuple[str, int, int], list[int]] = {}
    for address, site in brick.manifest.sites.items():
        layers = found.setdefault((site.name, site.input_width, site.output_width), [])
        if address != site.name:
            layers.append(int(address.split(".")[1]))
    return [
        (f"layer.{_spans(layers)}.{name}" if layers else name, str(inputs), str(outputs))
        for (name, inputs, outputs), layers in found.items()
    ]


def _spans(numbers: list[int]) -> str:
    """Returns `0-3,7` for 0, 1, 2, 3 and 7."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _is_library(path: epath.Path) -> bool:
    return (path / INDEX).exists() or any(p.name.endswith(SUFFIX) for p in path.iterdir())


def _table(title: str | None, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """Returns a table; columns whose names begin with > are of numbers."""
    table = Table(title=title, title_justify="left", show_header=bool(columns))
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column[0] == ">" else "left")
    for row in rows:
        # What files say is text, whatever brackets stand in it.
        table.add_row(*map(Text, row))
    return table
