"""Many real workers in one process, each over a simulated engine: `python -m bench.simulated_workers COUNT STEP_MS`.

Everything but the engine is the real thing: claims, leases, token logs, figures. Settings come from the environment.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

from bench.simulated_engine import simulated_model
from scheduler.process import configure_logs, stop_event
from scheduler.settings import WorkerSettings
from workers.engine import LoadedEngine
from workers.model_process import ModelProcess
from workers.room import RowBounds


async def serve(count: int, step_s: float) -> int:
    """Run all workers until a stop signal."""
    settings, stop = WorkerSettings(), stop_event()
    rows = settings.max_sequences

    def load() -> LoadedEngine:
        return simulated_model(max_sequences=rows, step_s=step_s)

    bounds = RowBounds(rows, min(settings.high_lane_rows, rows - 1))
    codes = await asyncio.gather(*(ModelProcess(settings, load, bounds).run(stop) for _ in range(count)))
    return max(codes)


def main() -> int:
    """Arguments, logs, run."""
    settings = WorkerSettings()
    configure_logs(settings.log_level, settings.log_format)
    sys.setswitchinterval(0.0005)
    return uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2]) / 1000))


if __name__ == "__main__":
    sys.exit(main())
