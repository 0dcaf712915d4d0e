"""Signals while an event loop runs: the work is cancelled in order, then they are handled as before."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from effbench.fleet import event_loop


async def interrupted(number: int, seen: list[str]) -> None:
    """Work that gets a signal, and closes something when it is cancelled."""
    try:
        os.kill(os.getpid(), number)
        await asyncio.sleep(30)
    finally:
        await asyncio.sleep(0)  # closing takes further turns of the loop
        seen.append("closed")


def test_the_result_of_the_work_is_returned() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    before = signal.getsignal(signal.SIGTERM)
    assert event_loop.run(work()) == 7
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_work_in_order_and_is_handled_as_before(number: signal.Signals) -> None:
    seen: list[str] = []

    def handler(received: int, frame: object) -> None:
        seen.append(f"handled {received}")
        raise KeyboardInterrupt

    before = signal.signal(number, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            event_loop.run(interrupted(number, seen))
        assert seen == ["closed", f"handled {number.value}"]
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)


def test_a_signal_that_the_work_has_lost_can_be_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries drop a cancellation now and then."""
    seen: list[str] = []

    async def deaf() -> None:
        for _ in range(2):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                seen.append("cancelled")
                if len(seen) == 2:
                    raise

    monkeypatch.setattr(event_loop, "AGAIN_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        event_loop.run(deaf())
    assert seen == ["cancelled", "cancelled"]


def test_an_ignored_signal_stays_ignored() -> None:
    """As under nohup."""

    async def work() -> str:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)
        return "went on"

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert event_loop.run(work()) == "went on"
    finally:
        signal.signal(signal.SIGHUP, before)


def test_errors_of_the_work_are_its_own() -> None:
    async def work() -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        event_loop.run(work())
