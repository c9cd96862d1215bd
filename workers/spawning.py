"""Model processes come from here: a new one, or the spare, which has imported everything and waits for a word.

Most of what a small model's process does before it can serve is to import (1.4 s of 2.0 s of one core, measured for the
demo model); the spare has done that, without a model, at the price of about 90 MB of memory.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import uuid
from asyncio.subprocess import Process
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import orjson

SPARE = "FARM_SPARE"
"""In the environment of a process that is to wait for a line on its standard input before it does anything."""

# glibc gives big freed blocks back to the system and faults them in again for every step; keep them instead.
LINUX_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
    # One core is left to those who bring the work and carry it away; BLAS threads that spin would keep them waiting.
    "OPENBLAS_NUM_THREADS": str(max(1, (os.cpu_count() or 2) - 1)),
}


@dataclass(frozen=True, slots=True)
class Child:
    """A model process; `base` is how its worker names begin. Its standard input ends with us, its output is ours."""

    process: Process
    base: str


class Spawner:
    """Starts model processes; `keeps_spare` says whether one waits for the next death."""

    def __init__(self, *, keeps_spare: bool) -> None:
        self._keeps_spare = keeps_spare
        self._spare: Child | None = None

    async def start(self, settings: Mapping[str, str]) -> Child:
        """A process that begins now, with these variables: the spare, where one is alive."""
        spare, self._spare = self._spare, None
        if spare is not None and spare.process.returncode is None:
            assert spare.process.stdin is not None
            with suppress(ConnectionError):  # it dies just now; whoever watches the child sees that
                spare.process.stdin.write(orjson.dumps(settings) + b"\n")
                await spare.process.stdin.drain()
            return spare
        return await _spawn(settings)

    async def prepare(self) -> None:
        """See to it that a spare is there, or on its way."""
        if self._keeps_spare and (self._spare is None or self._spare.process.returncode is not None):
            self._spare = await _spawn({SPARE: "1"})

    async def close(self) -> None:
        """End the spare; it holds nothing."""
        if self._spare is not None:
            with suppress(ProcessLookupError):
                self._spare.process.kill()
            await self._spare.process.wait()


def told_to_begin() -> bool:
    """The process's side: wait for the word, if this is a spare, and for what to serve, which becomes its environment.

    False: there will be none, who started it is gone.
    """
    if os.environ.get(SPARE) != "1":
        return True
    line = sys.stdin.buffer.readline()
    if line:
        os.environ.update(orjson.loads(line))
        del os.environ[SPARE]
    return bool(line)


async def _spawn(more: Mapping[str, str]) -> Child:
    base = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    environment = os.environ | {"FARM_WORKER_BASE": base, "FARM_SUPERVISED": "1"} | dict(more)
    if sys.platform == "linux":
        environment = LINUX_ENVIRONMENT | environment
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "workers.model_process",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    return Child(process, base)
