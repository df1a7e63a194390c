"""Observers together: each is notified of everything."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from modbrick.training.observe.observer import Observer, Observers

EVENTS = [
    name
    for name, method in inspect.getmembers(Observer, inspect.isfunction)
    if not name.startswith("_") and name != "close"
]


class Heard(Observer):
    """Notes each event that it is notified of."""

    def __init__(self, name: str, heard: list[tuple[Any, ...]]) -> None:
        for event in EVENTS:
            setattr(self, event, lambda *a, event=event: heard.append((name, event, *a)))
        self.close = lambda: heard.append((name, "close"))  # type: ignore[method-assign]


@pytest.mark.parametrize("event", EVENTS)
def test_each_is_told_every_event_in_order(event: str) -> None:
    heard: list[tuple[Any, ...]] = []
    observers = Observers([Heard("first", heard), Observer(), Heard("second", heard)])
    values = range(len(inspect.signature(getattr(observers, event)).parameters))
    with observers:
        getattr(observers, event)(*values)
    assert heard == [
        ("first", event, *values),
        ("second", event, *values),
        ("second", "close"),
        ("first", "close"),
    ]
