"""Customized bricks: out of runs into files, in libraries, and whether they fit a model.

    python scripts/bricks.py save RUN FILE [--name=NAME --license=L --tags=A,B --notes=TEXT]
    python scripts/bricks.py list MODEL|LIBRARY|FILE
    python scripts/bricks.py check FILE MODEL [--allow_base=any]
    python scripts/bricks.py add LIBRARY FILE [--tags=A,B]
    python scripts/bricks.py find LIBRARY [--tag=TAG] [--like=TEXT]
    python scripts/bricks.py remove LIBRARY NAME
    python scripts/bricks.py rename LIBRARY OLD NEW
    python scripts/bricks.py extract MODEL ADDRESS FILE [--name= --license= --tags= --notes=]
    python scripts/bricks.py fold MODEL FILE --output=MODEL [--allow_base=any]
    python scripts/bricks.py unfold MODEL --output=MODEL
    python scripts/bricks.py import PEFT FILE --model=MODEL [--family= --license= --tags= --notes=]
    python scripts/bricks.py export FILE,... PEFT --family=NAME [--model=MODEL]

A brick is one file, which says what it is and what it fits; a library is a directory of such files.
`fold` puts a brick into the weights of a new model, `unfold` gives the one before, to the bit.
RUN is a run's directory, or one of its checkpoints; PEFT is that of an adapter. `--like` ranks by
how many words of the text stand in a brick's name, tags and notes. --json prints one JSON object
instead of tables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from absl import flags

from modbrick import command_line, library
from modbrick.analysis import listing
from modbrick.errors import InputError
from modbrick.models import extract_brick, fold_model, open_model, unfold_model

NAME = flags.DEFINE_string("name", None, "save: of the brick, where the run has several.")
LICENSE = flags.DEFINE_string("license", "", "save: under which it may be used, as Apache-2.0.")
NOTES = flags.DEFINE_string("notes", "", "save: free text.")
TAGS = flags.DEFINE_list("tags", [], "save, add: words to find it by, as lang:de.")
TAG = flags.DEFINE_string("tag", None, "find: a tag that they have.")
LIKE = flags.DEFINE_string("like", None, "find: words of their names, tags and notes.")
BASE = flags.DEFINE_enum("allow_base", "same", ["same", "any"], "check, fold: weights it is for.")
OUTPUT = flags.DEFINE_string("output", None, "fold, unfold: directory of the new model.")
MODEL = flags.DEFINE_string("model", None, "import, export: that it is for.")
FAMILY = flags.DEFINE_string("family", None, "import, export: whose names modules have, as llama.")
JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of tables.")

USAGE = dict(re.findall(r"bricks\.py (\w+) (.*)", __doc__))


def main(argv: Sequence[str]) -> None:
    """Does what the command says, and shows what came of it."""
    command = argv[1] if argv[1:] else ""
    usage = f"{command} {USAGE[command]}" if command in USAGE else "|".join(USAGE)
    for flag in (NAME, LICENSE, NOTES, TAGS, TAG, LIKE, BASE, OUTPUT, MODEL, FAMILY):
        if flag.present and f"--{flag.name}=" not in usage:
            raise InputError(f"--{flag.name} means nothing here; expected: bricks.py {usage}")
    if (found := act(*argv[1:])) is None:
        raise InputError(f"expected: bricks.py {usage}")
    found.show(as_json=JSON.value)


def act(*words: str) -> listing.Listing | None:
    """Returns what a command has made, found or left; None: these are not the words of one."""
    said: dict[str, Any] = {"licence": LICENSE.value, "tags": TAGS.value, "notes": NOTES.value}
    match words:
        case "save", run, file:
            library.write_brick(file, *library.brick_of_run(run, NAME.value, **said))
            return listing.of_path(file)
        case "list", path:
            return listing.of_path(path)
        case "check", file, model:
            return listing.of_check(file, open_model(model), allow_base=BASE.value)
        case "add", place, file:
            return listing.of_brick(library.Library.create(place).add(file, tags=TAGS.value))
        case "find", place:
            found = library.Library.open(place).find(tag=TAG.value, like=LIKE.value)
            return listing.of_library(place, found)
        case "remove", place, name:
            library.Library.open(place).remove(name)
            return listing.of_path(place)
        case "rename", place, old, new:
            library.Library.open(place).rename(old, new)
            return listing.of_brick(library.Library.open(place).stored(new))
        case "extract", model, address, file:
            taken = extract_brick(open_model(model), address, name=NAME.value, **said)
            library.write_brick(file, *taken)
            return listing.of_path(file)
        case "fold", model, file if OUTPUT.value:
            fold_model(open_model(model).with_bricks([file], allow_base=BASE.value), OUTPUT.value)
            return listing.of_path(OUTPUT.value)
        case "unfold", model if OUTPUT.value:
            unfold_model(open_model(model), OUTPUT.value)
            return listing.of_path(OUTPUT.value)
        case "import", adapter, file if MODEL.value:
            base = open_model(MODEL.value)
            made = library.import_adapter(adapter, file, base, family=FAMILY.value, **said)
            return listing.of_bricks(made)
        case "export", listed, adapter if FAMILY.value:
            known = open_model(MODEL.value) if MODEL.value else None
            files = listed.split(",")
            library.export_adapter(files, adapter, FAMILY.value, model=known)
            return listing.of_bricks([library.open_brick(file) for file in files])
    return None


if __name__ == "__main__":
    command_line.run(main, positional="COMMAND PATH")
