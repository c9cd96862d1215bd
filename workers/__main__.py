"""`python -m workers`: the node agent of this machine."""

from __future__ import annotations

import sys

import uvloop

from scheduler.process import configure_logs, stop_event
from scheduler.settings import WorkerSettings
from workers.agent import NodeAgent


async def serve(settings: WorkerSettings) -> int:
    """Run the agent until a stop signal."""
    return await NodeAgent(settings).run(stop_event())


def main() -> int:
    """Settings, logs, run."""
    settings = WorkerSettings()
    configure_logs(settings.log_level, settings.log_format)
    return uvloop.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
