"""Being asked to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from modbrick.training.preemption import PreemptionGuard

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture
def received() -> Iterator[list[int]]:
    """The signals that come through to the handlers outside the guard."""
    found: list[int] = []
    before = {n: signal.signal(n, lambda number, _: found.append(number)) for n in SIGNALS}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_remembered_and_the_second_acts(
    number: signal.Signals, received: list[int]
) -> None:
    with PreemptionGuard() as guard:
        assert not guard.should_stop()
        assert guard.name == "nothing"
        signal.raise_signal(number)
        assert guard.should_stop()
        assert guard.name == number.name
        assert received == []
        signal.raise_signal(number)
        assert received == [number]
    assert guard.should_stop(), "what was asked is known after the end too"


def test_under_nohup_a_closed_terminal_is_ignored(received: list[int]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with PreemptionGuard() as guard:
        signal.raise_signal(signal.SIGHUP)
        assert not guard.should_stop()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    assert received == []


def test_any_second_signal_acts(received: list[int]) -> None:
    with PreemptionGuard() as guard:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
        assert guard.name == "SIGTERM"


@pytest.mark.parametrize("asked", [False, True])
def test_handlers_are_restored(asked: bool, received: list[int]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    before = [signal.getsignal(number) for number in SIGNALS]
    with PreemptionGuard():
        assert [signal.getsignal(number) for number in SIGNALS] != before
        if asked:
            signal.raise_signal(signal.SIGTERM)
            assert [signal.getsignal(number) for number in SIGNALS] == before
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert received == []


def test_handlers_are_restored_after_an_error(received: list[int]) -> None:
    with pytest.raises(RuntimeError), PreemptionGuard():
        raise RuntimeError
    signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]
