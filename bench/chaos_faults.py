"""What can happen to a farm, each as one function; which one comes next is the seed's choice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from redis.asyncio import Redis
from redis.exceptions import RedisError

from bench.chaos_farm import ChaosFarm

GAP_S = 1.5
"""Between two faults on average, drawn from 1 to 2."""

Fault = Callable[[ChaosFarm, random.Random], Awaitable[None]]


async def kill_model_process(farm: ChaosFarm, dice: random.Random) -> None:
    """kill -9; its agent is there to see it."""
    if pids := farm.model_pids():
        _signal(dice.choice(pids), signal.SIGKILL)


async def lose_worker_machine(farm: ChaosFarm, dice: random.Random) -> None:
    """kill -9 of an agent and its model process: only the lease's end tells."""
    dice.choice(farm.workers).kill_all()


async def kill_api(farm: ChaosFarm, dice: random.Random) -> None:
    """kill -9 of an API node."""
    dice.choice(farm.apis).signal(signal.SIGKILL)


async def kill_scheduler(farm: ChaosFarm, dice: random.Random) -> None:
    """kill -9 of the projector and the reaper."""
    farm.scheduler.signal(signal.SIGKILL)


async def kill_redis(farm: ChaosFarm, dice: random.Random) -> None:
    """kill -9 of the server; what it wrote is on its way to the disk."""
    farm.redis.signal(signal.SIGKILL)


async def lose_power(farm: ChaosFarm, dice: random.Random) -> None:
    """The server is gone, and its last second with it."""
    farm.redis.lose_power()


async def stop_model_process(farm: ChaosFarm, dice: random.Random) -> None:
    """SIGSTOP for longer than a lease, then SIGCONT: a zombie."""
    if pids := farm.model_pids():
        await _pause(dice.choice(pids), farm.lease_s * 1.5)


async def stop_api(farm: ChaosFarm, dice: random.Random) -> None:
    """An API node that hears nothing for a while."""
    await _pause(dice.choice(farm.apis).pid, 1.5)


async def stop_redis(farm: ChaosFarm, dice: random.Random) -> None:
    """A server that does not answer for a moment."""
    await _pause(farm.redis.pid, 0.7)


async def cut_connections(farm: ChaosFarm, dice: random.Random) -> None:
    """Every connection to the server is cut, in mid-command or not."""
    await _command(farm, "CLIENT", "KILL", "TYPE", dice.choice(["normal", "pubsub"]))


async def flush_scripts(farm: ChaosFarm, dice: random.Random) -> None:
    """The server forgets the scripts."""
    await _command(farm, "SCRIPT", "FLUSH")


async def terminate(farm: ChaosFarm, dice: random.Random) -> None:
    """SIGTERM to anything: a deployment."""
    dice.choice(farm.keepers).signal(signal.SIGTERM)


FAULTS: Mapping[Fault, int] = {
    kill_model_process: 3,
    lose_worker_machine: 2,
    kill_api: 2,
    kill_scheduler: 1,
    kill_redis: 1,
    lose_power: 1,
    stop_model_process: 1,
    stop_api: 1,
    stop_redis: 1,
    cut_connections: 2,
    flush_scripts: 1,
    terminate: 1,
}
"""And how often, against each other."""


Hurt = Callable[[ChaosFarm, random.Random, float, Counter[str]], Awaitable[None]]


async def wreak(
    farm: ChaosFarm, dice: random.Random, seconds: float, done: Counter[str], *, gap_s: float = GAP_S
) -> None:
    """A random fault every one or two seconds (or about every `gap_s`); ends when the last one is over."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + seconds
    slow: set[asyncio.Task[None]] = set()
    while loop.time() < end_s:
        await asyncio.sleep(dice.uniform(gap_s * 2 / 3, gap_s * 4 / 3))
        (fault,) = dice.choices(list(FAULTS), list(FAULTS.values()))
        done[fault.__name__] += 1
        slow.add(asyncio.ensure_future(fault(farm, dice)))
    await asyncio.gather(*slow)


async def deploy(farm: ChaosFarm, dice: random.Random, seconds: float, done: Counter[str]) -> None:
    """SIGTERM to one process after the other, each only when the one before has come back; for at least `seconds`."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + seconds
    while loop.time() < end_s:
        for keeper in dice.sample(farm.keepers, len(farm.keepers)):
            await keeper.restart()
            done["restart"] += 1


async def _pause(pid: int, seconds: float) -> None:
    _signal(pid, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


async def _command(farm: ChaosFarm, *words: str) -> None:
    client: Redis = Redis.from_url(farm.redis.url)
    with suppress(RedisError, OSError):
        await client.execute_command(*words)  # type: ignore[no-untyped-call]
    await client.aclose()
