"""Everything dies, again and again, while clients read: nothing is lost and nothing is said twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bench.chaos import Plan, run
from tests.conftest import REDIS_SERVER


def test_a_farm_under_random_faults_loses_nothing_and_doubles_nothing(tmp_path: Path, database_url: str) -> None:
    """F54, for a few seconds: every fault of bench/chaos.py in a random order."""
    plan = Plan(seconds=10, jobs=30, seed=54, server=REDIS_SERVER, database_url=database_url)
    report = asyncio.run(run(plan, tmp_path))
    assert report["violations"] == []
    assert report["settled"]
    assert report["lost"] == report["doubled"] == 0
