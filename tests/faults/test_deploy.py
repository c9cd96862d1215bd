"""A rolling restart of everything under load: nobody notices but by a reconnection."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bench.chaos import Plan, run
from bench.chaos_faults import deploy
from tests.conftest import REDIS_SERVER


def test_a_rolling_restart_of_every_process_loses_nothing_and_marks_no_crash(tmp_path: Path, database_url: str) -> None:
    """F46, F47: SIGTERM to each process in turn while clients stream."""
    patient = 40  # no stall of the machine is taken for a crash
    plan = Plan(seconds=1, jobs=16, seed=47, server=REDIS_SERVER, database_url=database_url, lease_s=patient)
    report = asyncio.run(run(plan, tmp_path, deploy))
    assert report["violations"] == []
    assert report["settled"]
    assert report["lost"] == report["doubled"] == report["crashes"] == 0
    assert report["faults"] == {"restart": 5}
