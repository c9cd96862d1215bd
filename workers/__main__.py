"""`python -m workers`: the node agent of this machine."""

from __future__ import annotations

import asyncio
import sys

from scheduler.process import cancel_all, stop_event
from scheduler.servers import require_server
from scheduler.settings import WorkerSettings
from workers.agent import NodeAgent
from workers.beginning import run_process
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


if __name__ == "__main__":
    sys.exit(run_process(WorkerSettings, serve))
