"""One timer for many waits."""

from __future__ import annotations

import asyncio

import pytest

from api.patience import Patience

LIMIT_S = 0.02


async def test_a_wait_beyond_the_limit_ends_the_block() -> None:
    async def wait() -> None:
        async with Patience(LIMIT_S) as patience:
            with patience:
                await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await wait()


async def test_time_between_the_waits_does_not_count() -> None:
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(4 * LIMIT_S, later.set)
    async with Patience(LIMIT_S) as patience:
        with patience:
            pass
        await later.wait()
        with patience:
            pass


async def test_many_short_waits_are_not_one_long_one() -> None:
    began_s = asyncio.get_running_loop().time()
    async with Patience(LIMIT_S) as patience:
        while asyncio.get_running_loop().time() < began_s + 4 * LIMIT_S:
            with patience:
                await asyncio.to_thread(int)


async def test_an_error_of_the_block_passes_and_the_timer_is_gone() -> None:
    async def fail() -> None:
        async with Patience(LIMIT_S):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await fail()
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(4 * LIMIT_S, later.set)
    await later.wait()  # a timer that was still running would cancel this task
