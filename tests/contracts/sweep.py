"""Sweeps of cases, of which `make test` runs a few and `make verify` the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def sweep(
    names: str | tuple[str, ...], cases: Iterable[Any], tested: Collection[Any], **settings: Any
) -> pytest.MarkDecorator:
    """`pytest.mark.parametrize`, with the mark `verify` on all cases but some.

    Args:
      names: the argument that a case is, or those that it holds a value for each of.
      cases: all of them.
      tested: those of `make test`.
      settings: of `pytest.mark.parametrize`.

    Raises:
      ValueError: something in `tested` is no case.
    """
    cases = list(cases)
    if strangers := [case for case in tested if case not in cases]:
        raise ValueError(f"these are no cases of the sweep: {strangers}")
    marked = [
        pytest.param(
            *((case,) if isinstance(names, str) else case),
            marks=() if case in tested else pytest.mark.verify,
        )
        for case in cases
    ]
    return pytest.mark.parametrize(names, marked, **settings)
