"""`python -m api.batches`: expand batches into jobs, write their results, send webhooks; until a stop signal.

Any number may run. Exit codes: 0 stopped in order, 1 failed, 2 refused its settings.
"""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop
from pydantic import ValidationError

from api.batches.delivery import Delivery, secret_bytes
from api.batches.progress import Progress
from api.batches.worker import Errands, run_errands
from api.drain import Drain
from api.metrics import Metrics
from api.node import open_node
from scheduler.errors import UnsupportedServer
from scheduler.key_ring import KeyRing
from scheduler.outbox import Outbox
from scheduler.process import announce_ready, cancel_all, configure_logs, stop_event
from scheduler.servers import require_server
from scheduler.settings import BatchSettings

NICE = 5
"""Batches can wait; requests on the same machine go first."""


async def serve(settings: BatchSettings) -> None:
    """Run until asked to stop. Raises UnsupportedServer."""
    stop = stop_event()
    await require_server(settings.redis)
    secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else None
    async with open_node(settings, Metrics(), Drain(), KeyRing()) as node:
        await node.rules.refresh()
        delivery = Delivery(Outbox(node.store.engine), secret, settings.trusted_webhook_hosts)
        errands = Errands(node, Progress(node, settings), delivery, retention_s=settings.batch_retention_s)
        running = asyncio.create_task(run_errands(errands, settings.chores_redis))
        stopped = asyncio.create_task(stop.wait())
        announce_ready(role="batches")
        await asyncio.wait([stopped, running], return_when=asyncio.FIRST_COMPLETED)
        failed = running if running.done() else None
        await cancel_all([stopped, running])
    if failed is not None:
        failed.result()  # it ended by itself, which only an error can do


def main() -> int:
    """Check the settings and serve."""
    try:
        settings = BatchSettings()
        if settings.webhook_secret is not None:
            secret_bytes(settings.webhook_secret.get_secret_value())
    except (ValidationError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    configure_logs(settings.log_level, settings.log_format)
    os.nice(NICE)
    try:
        uvloop.run(serve(settings))
    except UnsupportedServer as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
