"""`python -m workers.providers`: the provider worker."""

from __future__ import annotations

import sys

from scheduler.process import stop_event
from scheduler.provider_settings import ProviderWorkerSettings
from scheduler.servers import require_server
from workers.beginning import run_process
from workers.providers.agent import ProviderAgent


async def serve(settings: ProviderWorkerSettings) -> int:
    """Run the worker until a stop signal. Raises UnsupportedServer."""
    await require_server(settings.redis)
    return await ProviderAgent(settings).run(stop_event())


if __name__ == "__main__":
    sys.exit(run_process(ProviderWorkerSettings, serve))
