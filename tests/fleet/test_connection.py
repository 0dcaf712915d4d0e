"""A connection: what is lost, and what must not be lost."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("distributed")

from effbench.fleet import connection


def test_a_cancellation_just_as_the_answer_comes_is_not_lost() -> None:
    """`asyncio.wait_for` of Python 3.10 and 3.11 drops it, and a conductor then waited for ever, once in ten runs."""

    async def ask() -> bool:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        asking = asyncio.create_task(connection.within(5.0, answer))
        await asyncio.sleep(0.01)
        answer.set_result("here")
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait({asking}, timeout=5)
        return asking.cancelled()

    assert asyncio.run(ask())


def test_an_answer_that_never_comes() -> None:
    async def ask() -> None:
        await connection.within(0.01, asyncio.get_running_loop().create_future())

    with pytest.raises(asyncio.TimeoutError, match=r"no answer within 0\.01 s"):
        asyncio.run(ask())
