"""`python -m workers`: the node agent of this machine."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from pydantic import ValidationError

from scheduler.errors import UnsupportedServer
from scheduler.process import cancel_all, configure_logs, stop_event
from scheduler.servers import require_server
from scheduler.settings import WorkerSettings
from workers.agent import NodeAgent
from workers.gallery.desk import GalleryDesk
from workers.on_demand import DemandAgent


async def serve(settings: WorkerSettings) -> int:
    """Run the agent until a stop signal. Raises UnsupportedServer."""
    await require_server(settings.redis)
    agent = DemandAgent(settings) if settings.models else NodeAgent(settings)
    stop = stop_event()
    gallery = asyncio.create_task(GalleryDesk(settings).run(), name="gallery")
    try:
        return await agent.run(stop)
    finally:
        await cancel_all([gallery])


def main() -> int:
    """Settings, logs, run."""
    try:
        settings = WorkerSettings()
    except ValidationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    configure_logs(settings.log_level, settings.log_format)
    try:
        return uvloop.run(serve(settings))
    except UnsupportedServer as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
