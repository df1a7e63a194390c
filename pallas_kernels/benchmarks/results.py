"""A file of results that several runs fill, each of them with a part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pallas_kernels.benchmarks.static import NOT_MEASURED

PARTS = ("numerics", "tpu", "h100", "gpu", "cpu")
# How deep a run may replace some of a part and keep the rest: by generation and case, by case.
# Times are compared within a run, so that the parts of times are of one.
_DEPTHS = {"tpu": 2, "h100": 1}


def read_results(file: Path, op: str) -> dict[str, Any]:
    """Reads the results of earlier runs; none, if there is no such file.

    Raises:
        ValueError: the file holds something else than results of `op` by `add_run`.
    """
    if not file.exists():
        return {}
    try:
        results = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(results, dict) or results.get("op") != op:
        raise ValueError(f"{file} holds no results of {op}")
    if "measured" not in results:
        raise ValueError(f"{file} does not say when and with what each of its parts was measured")
    return results


def add_run(results: dict[str, Any], op: str, run: dict[str, Any], where: dict[str, Any]) -> Any:
    """Returns the results with those of a run, which replace what was measured before.

    Args:
        results: of earlier runs, or empty.
        op: of `static.OPS`.
        run: what was measured, by part.
        where: commit, date, device and versions of the run.

    Returns:
        By part what was measured, by whichever run; `NOT_MEASURED` where none did. "measured" has
        `where` of each piece by its path, such as "tpu/v5p/molm" or "numerics".
    """
    merged = {part: results.get(part, NOT_MEASURED) for part in PARTS}
    measured = dict(results.get("measured", {}))
    for part, found in run.items():
        for path in _pieces(found, _DEPTHS.get(part, 0)):
            merged[part] = _with_piece(merged[part], found, path)
            name = "/".join((part, *path))
            # What is replaced as a whole takes its parts with it, and the other way round.
            measured = {
                known: w
                for known, w in measured.items()
                if not (f"{known}/").startswith(f"{name}/") and not name.startswith(f"{known}/")
            }
            measured[name] = where
    return {"op": op, **merged, "measured": dict(sorted(measured.items()))}


def _pieces(found: Any, depth: int) -> Iterator[tuple[str, ...]]:
    """The paths of what is replaced as a whole; a text or an error is."""
    if depth == 0 or not isinstance(found, dict) or "error" in found:
        yield ()
        return
    for key, value in found.items():
        for path in _pieces(value, depth - 1):
            yield (key, *path)


def _with_piece(before: Any, found: Any, path: tuple[str, ...]) -> Any:
    if not path:
        return found
    kept = before if isinstance(before, dict) and "error" not in before else {}
    key, *rest = path
    return {**kept, key: _with_piece(kept.get(key), found[key], tuple(rest))}
