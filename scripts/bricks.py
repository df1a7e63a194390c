"""Customized bricks: out of runs into files, in libraries, and whether they fit a model.

    python scripts/bricks.py save RUN FILE [--name=NAME --license=L --tags=A,B --notes=TEXT]
    python scripts/bricks.py list MODEL|LIBRARY|FILE
    python scripts/bricks.py check FILE MODEL [--allow_base=any]
    python scripts/bricks.py add LIBRARY FILE [--tags=A,B]
    python scripts/bricks.py find LIBRARY [--tag=TAG] [--like=TEXT]
    python scripts/bricks.py remove LIBRARY NAME
    python scripts/bricks.py rename LIBRARY OLD NEW

A brick is one file, which says what it is and what it fits; a library is a directory of such files.
RUN is a run's directory, or one of its checkpoints. `--like` ranks by how many words of the text
stand in a brick's name, tags and notes. --json prints one JSON object instead of tables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from absl import flags

from modbrick import command_line
from modbrick.analysis.listing import Listing, listing, of_brick, of_check, of_library
from modbrick.errors import InputError
from modbrick.library import Library, brick_of_run, open_brick, write_brick
from modbrick.models import open_model

NAME = flags.DEFINE_string("name", None, "save: of the brick, where the run has several.")
LICENSE = flags.DEFINE_string("license", "", "save: under which it may be used, as Apache-2.0.")
NOTES = flags.DEFINE_string("notes", "", "save: free text.")
TAGS = flags.DEFINE_list("tags", [], "save, add: words to find it by, as lang:de.")
TAG = flags.DEFINE_string("tag", None, "find: a tag that they have.")
LIKE = flags.DEFINE_string("like", None, "find: words of their names, tags and notes.")
BASE = flags.DEFINE_enum("allow_base", "same", ["same", "any"], "check: weights that it is for.")
JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of tables.")

USAGE = dict(re.findall(r"bricks\.py (\w+) (.*)", __doc__))


def main(argv: Sequence[str]) -> None:
    """Does what the command says, and shows what came of it."""
    command = argv[1] if argv[1:] else ""
    usage = f"{command} {USAGE[command]}" if command in USAGE else "|".join(USAGE)
    for flag in (NAME, LICENSE, NOTES, TAGS, TAG, LIKE, BASE):
        if flag.present and f"--{flag.name}=" not in usage:
            raise InputError(f"--{flag.name} means nothing here; expected: bricks.py {usage}")
    if (found := act(*argv[1:])) is None:
        raise InputError(f"expected: bricks.py {usage}")
    found.show(as_json=JSON.value)


def act(*words: str) -> Listing | None:
    """Returns what a command has made, found or left; None: these are not the words of one."""
    match words:
        case "save", run, file:
            brick, manifest = brick_of_run(
                run, NAME.value, licence=LICENSE.value, tags=TAGS.value, notes=NOTES.value
            )
            write_brick(file, brick, manifest)
            return of_brick(open_brick(file))
        case "list", path:
            return listing(path)
        case "check", file, model:
            return of_check(file, open_model(model), allow_base=BASE.value)
        case "add", library, file:
            return of_brick(Library.create(library).add(file, tags=TAGS.value))
        case "find", library:
            return of_library(library, Library.open(library).find(tag=TAG.value, like=LIKE.value))
        case "remove", library, name:
            Library.open(library).remove(name)
            return listing(library)
        case "rename", library, old, new:
            Library.open(library).rename(old, new)
            return of_brick(Library.open(library).stored(new))
    return None


if __name__ == "__main__":
    command_line.run(main, positional="COMMAND PATH")
