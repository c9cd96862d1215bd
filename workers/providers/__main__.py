"""`python -m workers.providers`: the provider worker.

Exit codes: 0 stopped in order, 1 failed, 2 refused its settings.
"""

from __future__ import annotations

import sys

import uvloop
from pydantic import ValidationError

from scheduler.errors import UnsupportedServer
from scheduler.process import configure_logs, stop_event
from scheduler.provider_settings import ProviderWorkerSettings
from scheduler.servers import require_server
from workers.providers.agent import ProviderAgent


async def serve(settings: ProviderWorkerSettings) -> int:
    """Run the worker until a stop signal. Raises UnsupportedServer."""
    await require_server(settings.redis)
    return await ProviderAgent(settings).run(stop_event())


def main() -> int:
    """Settings, logs, run."""
    try:
        settings = ProviderWorkerSettings()
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
