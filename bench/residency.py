"""How fast do models change places in memory, and does everybody get a turn? `python -m bench.residency`.

Hot swap: two demo-sized models in memory for one of them; a request for the one that is not loaded waits while the
other gives up its place, its process ends, and the model is loaded (by the spare process, once that is ready). Turns:
eight models in memory for two, clients that ask all of them at once; every job must finish, and the longest wait is
printed beside the bound that follows from turns. Unload: what the node's processes took of the model's memory after it.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvloop

from bench.processes import FarmProcess, farm_processes
from bench.valkey_server import valkey_server

MIB = 1 << 20
CHAT = {"messages": [{"role": "user", "content": "What is mlx-farm?"}], "temperature": 0, "max_tokens": 16}
MODEL_MIB = 185
"""What a demo model with a small cache takes, measured; by estimate it is 226 MiB."""

TURN_S = 2.0
WORDS = re.compile(r'"content": ?"[^"]')
"""In an event that says something; the first one only opens the answer."""


@contextmanager
def node(models: int, places: int) -> Iterator[tuple[str, FarmProcess]]:
    """A farm whose one agent has memory for `places` of `models` demo-sized models."""
    with tempfile.TemporaryDirectory(prefix="farm-bench-") as folder, valkey_server(Path(folder)) as redis_url:
        settings = {
            "home": folder,
            "redis_url": redis_url,
            "port": "0",
            "log_level": "ERROR",
            "models": ",".join(f"m{index}=demo" for index in range(models)),
            "model_memory_bytes": str(round((places + 0.5) * MODEL_MIB) * MIB),
            "kv_cache_bytes": str(16 * MIB),
            "max_sequences": "8",
            "model_turn_s": str(TURN_S),
            "keep_alive_s": "-1",
        }
        roles = {"worker": ["workers"], "scheduler": ["scheduler"], "api": ["api"]}
        with farm_processes(roles, settings) as processes:
            yield str(processes["api"].facts["url"]), processes["worker"]


async def ask(http: httpx2.AsyncClient, model: str) -> float:
    """Seconds until the first token of a streamed answer; the answer is read to its end."""
    began_s, first_s = time.monotonic(), 0.0
    async with http.stream("POST", "/v1/chat/completions", json=CHAT | {"model": model, "stream": True}) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not first_s and WORDS.search(line):
                first_s = time.monotonic() - began_s
            if line.startswith("data: {") and '"error"' in line:
                raise RuntimeError(line)
    return first_s


async def events(http: httpx2.AsyncClient) -> list[dict[str, Any]]:
    """What the agent decided, oldest first."""
    answer = await http.get("/admin/models/events", params={"limit": 1000})
    rows: list[dict[str, Any]] = answer.json()["data"]
    return rows[::-1]


async def agents(http: httpx2.AsyncClient) -> list[dict[str, Any]]:
    """What the agents show of themselves."""
    rows: list[dict[str, Any]] = (await http.get("/admin/models/agents")).json()["data"]
    return rows


async def swaps(url: str, rounds: int, pause_s: float) -> None:
    """Two models take turns by single requests."""
    async with httpx2.AsyncClient(base_url=url, timeout=300) as http:
        for model in ("m0", "m1"):
            await ask(http, model)
        waits = []
        for index in range(rounds):
            await asyncio.sleep(pause_s)  # the spare process imports meanwhile
            waits.append(await ask(http, f"m{index % 2}"))
        needs = [row["needs_bytes"] // MIB for row in (await agents(http))[0]["models"]]
        loads = [float(event["load_s"]) for event in await events(http) if event["event"] == "loaded"]
        print(f"measured: {needs} MiB; {len(loads)} loads;", end=" ")
        print(f"hot swap, request to first token ({rounds}, {pause_s:g} s apart):", end=" ")
        print(f"median {statistics.median(waits):.2f} s, worst {max(waits):.2f} s", end="; ")
        print(f"of it loading: median {statistics.median(loads[2:]):.2f} s (goal: 1.5 s in all)")


async def given_back(url: str, worker: FarmProcess, pause_s: float) -> None:
    """One model is loaded and unloaded; the agent and its spare process are there before, meanwhile and after."""
    async with httpx2.AsyncClient(base_url=url, timeout=300) as http:
        await asyncio.sleep(pause_s)  # the spare process imports
        before_mb = worker.rss_mb
        await ask(http, "m0")
        await asyncio.sleep(pause_s)  # and so does the next one
        loaded_mb = worker.rss_mb
        (await http.post("/admin/models/unload", json={"model": "m0"})).raise_for_status()
        for _ in range(600):
            if (await events(http))[-1]["event"] == "unloaded":
                break
            await asyncio.sleep(0.1)
        share = (loaded_mb - worker.rss_mb) / (loaded_mb - before_mb)
        print(f"unload: the model took {loaded_mb - before_mb:.0f} MB; {share:.1%} of it was given back (goal: 99 %)")


async def turns(url: str, models: int, places: int, rounds: int) -> None:
    """Clients ask all models at once, again and again."""
    async with httpx2.AsyncClient(base_url=url, timeout=900) as http:

        async def client(model: str) -> list[float]:
            return [await ask(http, model) for _ in range(rounds)]

        began_s = time.monotonic()
        waits = await asyncio.gather(*(client(f"m{index}") for index in range(models)))
        took_s = time.monotonic() - began_s
        loads = [float(event["load_s"]) for event in await events(http) if event["event"] == "loaded"]
    every = [wait for client_waits in waits for wait in client_waits]
    bound_s = -(-models // places) * (TURN_S + 2 * max(loads))
    print(
        f"{models} models in memory for {places}: {len(every)} of {models * rounds} jobs finished in {took_s:.0f} s,",
        end=" ",
    )
    print(f"{len(loads)} loads; wait median {statistics.median(every):.1f} s, worst {max(every):.1f} s", end=" ")
    print(f"(turns of {TURN_S:g} s and {max(loads):.1f} s of loading allow {bound_s:.0f} s)")


def main() -> None:
    """Both questions, each on a farm of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=10)
    parser.add_argument("--pause-s", type=float, default=4.0, help="between two swaps")
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--places", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="requests per model")
    arguments = parser.parse_args()
    with node(2, 1) as (url, worker):
        uvloop.run(given_back(url, worker, arguments.pause_s))
        uvloop.run(swaps(url, arguments.swaps, arguments.pause_s))
    with node(arguments.models, arguments.places) as (url, _):
        uvloop.run(turns(url, arguments.models, arguments.places, arguments.rounds))


if __name__ == "__main__":
    main()
