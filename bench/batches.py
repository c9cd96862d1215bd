"""How fast and how lean is a large batch taken on? `python -m bench.batches [--lines 100000]`.

A file of so many chat requests is uploaded and a batch made of it, until it is in progress; then the farm (one API
node, one batches process, scheduler, a worker with the demo model) works on it for a while, and the queue is looked at.
Afterwards the engine works on the same lines alone, in a process of its own, for as long.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2

from bench.processes import FarmProcess, farm_processes
from bench.valkey_server import valkey_server
from scheduler.connections import command_client
from scheduler.jobs import Lane
from scheduler.queue import JobQueue
from workers.spawning import LINUX_ENVIRONMENT

ROLES = {"worker": ["workers"], "scheduler": ["scheduler"], "api": ["api"], "batches": ["api.batches"]}
LOOK_EVERY_S = 0.1
WEIGH_EVERY_S = 1.0
"""Looking for the children of processes costs the machine some time."""
WARM_S = 3.0
"""Until the rows are full and the first lines are counted."""


def write_requests(path: Path, lines: int) -> None:
    """Requests of some 400 bytes."""
    text = "Sort these things by their size, and say in one sentence why. " * 4
    with path.open("w", encoding="utf-8") as file:
        for number in range(lines):
            messages = [{"role": "user", "content": f"{number}: {text}"}]
            body = {"model": "demo", "max_tokens": 16, "temperature": 0, "messages": messages}
            asked = {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(asked) + "\n")


async def accept(client: httpx2.AsyncClient, path: Path) -> str:
    """Upload, create, and wait until the batch is in progress; its id."""
    with path.open("rb") as file:
        uploaded = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": (path.name, file)})
    asked = {"input_file_id": uploaded.raise_for_status().json()["id"], "completion_window": "24h"}
    made = await client.post("/v1/batches", json={**asked, "endpoint": "/v1/chat/completions"})
    batch = made.raise_for_status().json()
    while batch["status"] == "validating":
        await asyncio.sleep(LOOK_EVERY_S)
        batch = (await client.get(f"/v1/batches/{batch['id']}")).json()
    if batch["status"] != "in_progress":
        raise RuntimeError(f"the batch is {batch['status']}: {batch['errors']}")
    return str(batch["id"])


async def watch_memory(processes: dict[str, FarmProcess], peaks_mb: dict[str, float]) -> None:
    """Note the most that each process takes, until cancelled."""
    while True:
        for name, process in processes.items():
            peaks_mb[name] = max(peaks_mb[name], process.rss_mb)
        await asyncio.sleep(WEIGH_EVERY_S)


async def deepest(queue: JobQueue, seconds: float) -> tuple[int, int]:
    """The most jobs that waited in the low lane, and how many looks were taken."""
    until_s, most, looks = time.monotonic() + seconds, 0, 0
    while time.monotonic() < until_s:
        most = max(most, (await queue.depths("demo"))[Lane.LOW.value])
        looks += 1
        await asyncio.sleep(LOOK_EVERY_S)
    return most, looks


def engine_alone(path: Path, seconds: float) -> tuple[float, float]:
    """Lines that the engine answers a second without a farm around it, and the ms of processor time that one costs."""
    command = [sys.executable, "-m", "bench.bare_batch", str(path), str(seconds)]
    done = subprocess.run(command, env=os.environ | LINUX_ENVIRONMENT, capture_output=True, text=True, check=True)
    per_s, cpu_ms = map(float, done.stdout.split())
    return per_s, cpu_ms


async def answered_lines(client: httpx2.AsyncClient, batch_id: str) -> int:
    """As the batch counts them."""
    return int((await client.get(f"/v1/batches/{batch_id}")).json()["request_counts"]["completed"])


async def measure(folder: Path, redis_url: str, lines: int, seconds: float, window: int) -> None:
    """One run, printed."""
    path = folder / "requests.jsonl"
    write_requests(path, lines)
    settings = {"home": str(folder / "home"), "redis_url": redis_url, "port": "0", "supervised": "1"}
    settings |= {"batch_window": str(window), "log_level": "WARNING"}
    with farm_processes(ROLES, settings) as processes:
        watched = {name: processes[name] for name in ("api", "batches")}
        before_mb = {name: process.rss_mb for name, process in watched.items()}
        peaks_mb = dict(before_mb)
        watching = asyncio.create_task(watch_memory(watched, peaks_mb))
        async with httpx2.AsyncClient(base_url=processes["api"].facts["url"], timeout=120) as client:
            began_s = time.monotonic()
            batch_id = await accept(client, path)
            accepted_s = time.monotonic() - began_s
            redis = command_client(redis_url)
            await asyncio.sleep(WARM_S)
            used_s = {name: process.cpu_s for name, process in processes.items()}
            before, began_s = await answered_lines(client, batch_id), time.monotonic()
            most, looks = await deepest(JobQueue(redis), seconds)
            answered = await answered_lines(client, batch_id) - before
            per_s = answered / (time.monotonic() - began_s)
            used_s = {name: process.cpu_s - used_s[name] for name, process in processes.items()}
            await redis.aclose()
        watching.cancel()
        extra_mb = {name: peaks_mb[name] - before_mb[name] for name in watched}
    print(f"{lines} lines, {path.stat().st_size / 2**20:.0f} MB, window {window}")
    print(f"accepted (uploaded, checked, in progress) in   {accepted_s:.1f} s")
    each = ", ".join(f"{name} {mb:.0f} MB" for name, mb in extra_mb.items())
    print(f"extra memory                                   {sum(extra_mb.values()):.0f} MB ({each})")
    print(f"most jobs waiting in the low lane              {most} (in {looks} looks over {seconds:.0f} s)")
    alone_per_s, alone_ms = engine_alone(path, seconds)
    print(f"answered meanwhile                             {answered} ({per_s:.1f} lines/s)")
    spent_ms = {name: 1000 * cpu_s / max(1, answered) for name, cpu_s in used_s.items()}
    each = ", ".join(f"{name} {ms:.1f}" for name, ms in spent_ms.items())
    print(f"processor time, ms a line                      {sum(spent_ms.values()):.1f} ({each})")
    ratio = f"the farm: {per_s / alone_per_s:.2f} of that"
    by_time = f"{alone_ms / max(0.1, sum(spent_ms.values())):.2f} by processor time"
    alone = f"{alone_per_s:.1f} lines/s, {alone_ms:.1f} ms"
    print(f"the engine alone                               {alone}; {ratio}, {by_time}")


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the queue is looked at")
    parser.add_argument("--window", type=int, default=256)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as name, valkey_server(Path(name)) as redis_url:
        asyncio.run(measure(Path(name), redis_url, arguments.lines, arguments.seconds, arguments.window))


if __name__ == "__main__":
    main()
