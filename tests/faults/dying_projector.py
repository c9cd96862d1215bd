"""`python -m tests.faults.dying_projector REDIS_URL DATABASE_URL`: project, but die at the k-th statement, for every k.

Each process is a fork that dies by SIGKILL in front of its k-th SQL statement or commit; the next one has one more.
Prints how many died before one came to the end of the log.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from typing import Any

from sqlalchemy import event

import scheduler.projector
from scheduler.connections import command_client
from scheduler.database import open_database
from scheduler.projector import Projector
from scheduler.queue import JobQueue

BATCH_EVENTS = 7


async def project(redis_url: str, database_url: str, statements: int) -> None:
    """Project to the end of the log, if the process lives so long."""
    left = itertools.count(statements - 1, -1)

    def count(*_: Any) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    redis, engine = command_client(redis_url), open_database(database_url)
    for moment in ("before_cursor_execute", "commit"):
        event.listen(engine.sync_engine, moment, count)
    projector = Projector(redis, engine, JobQueue(redis), 0)
    while await projector.step():
        pass


def main() -> None:
    """Fork until one lives."""
    scheduler.projector.BATCH_EVENTS = BATCH_EVENTS
    for statements in itertools.count(1):
        child = os.fork()
        if child == 0:
            asyncio.run(project(sys.argv[1], sys.argv[2], statements))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            sys.stdout.write(f"{statements - 1}\n")
            return
        if not os.WIFSIGNALED(status):
            sys.exit("a projector ended by itself")


if __name__ == "__main__":
    main()
