"""Ten times more than the farm can serve: who gets what? `python -m bench.overload`

A real farm: API, scheduler, Valkey, SQL, a worker with a real engine. First the service rate (as many clients as rows,
each asking again at once) and the unloaded time to first token of single requests in the high lane. Then requests
arrive at random in the normal lane at FACTOR times that rate, while people go on asking in the high lane. Accepted jobs
must all finish, refused ones must hear so at once, people must not notice, and no process may grow.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import re
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import uvloop

from bench.models import build_qwen3
from bench.processes import FarmProcess, farm_processes
from bench.valkey_server import valkey_server

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
HIGH_SHARE = 0.1
"""Of the service rate: what the high lane asks for. Ten times more would be an overload of its own."""

SETTLE_S = 10.0
"""From the begin of the flood: what memory the queue's bound and a full batch need is there then."""


@dataclass(slots=True)
class Asked:
    """One request as its client saw it: seconds from the connection's begin."""

    lane: str
    status: int = 0
    head_s: float = 0.0
    first_s: float = 0.0
    whole: bool = False


class Client(asyncio.Protocol):
    """One request at the socket: an HTTP library would add its own time to every figure."""

    def __init__(self, asked: Asked, request: bytes) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self._asked = asked
        self._request = request
        self._began_s = time.monotonic()
        self._tail = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Ask."""
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note the status, the first event with an id, and the end."""
        now_s, asked = time.monotonic() - self._began_s, self._asked
        if not asked.status and (match := STATUS.match(data)):
            asked.status, asked.head_s = int(match[1]), now_s
        if not asked.first_s and (b"\nid: " in data or data.startswith(b"id: ")):
            asked.first_s = now_s
        self._tail = (self._tail + data)[-64:]
        asked.whole = asked.whole or b"data: [DONE]" in self._tail

    def connection_lost(self, _error: Exception | None) -> None:
        """The answer is complete, or never will be."""
        self.ended.set_result(None)


@dataclass(slots=True)
class Load:
    """Who asks. Prompts are `prompt_tokens` random ids, so that no two share a prefix; answers are `answer_tokens`."""

    url: str
    prompt_tokens: int
    answer_tokens: int
    dice: random.Random = field(default_factory=lambda: random.Random(1))

    async def ask(self, lane: str) -> Asked:
        """One streamed completion."""
        ids = [self.dice.randrange(10, 200) for _ in range(self.prompt_tokens)]
        fields = {"model": "bench", "prompt": ids, "max_tokens": self.answer_tokens, "ignore_eos": True}
        body = json.dumps(fields | {"stream": True, "temperature": 0}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nFarm-Lane: {lane}\r\n"
        )
        request = f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
        asked, address = Asked(lane), urlsplit(self.url)
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(
            lambda: Client(asked, request), str(address.hostname), int(address.port or 80)
        )
        await client.ended
        return asked

    async def rate(self, clients: int, seconds: float) -> float:
        """Jobs per second, with so many clients that each ask again as soon as they are answered."""
        began_s, ended = time.monotonic(), 0

        async def go_on() -> None:
            nonlocal ended
            while time.monotonic() - began_s < seconds:
                asked = await self.ask("normal")
                ended += asked.whole

        await asyncio.gather(*(go_on() for _ in range(clients)))
        return ended / (time.monotonic() - began_s)

    async def arrivals(self, lane: str, per_s: float, seconds: float) -> list[Asked]:
        """Requests at random moments; returns when all are answered."""
        due_s, asking = time.monotonic(), []
        end_s = due_s + seconds
        while (due_s := due_s + self.dice.expovariate(per_s)) < end_s:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            asking.append(asyncio.create_task(self.ask(lane)))
        return list(await asyncio.gather(*asking))


class Memory:
    """Resident memory of every process, second by second (MB)."""

    def __init__(self, farm: Mapping[str, FarmProcess], valkey: psutil.Process) -> None:
        self.series: dict[str, list[float]] = {name: [] for name in [*farm, "valkey"]}
        self._farm = farm
        self._valkey = valkey

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            for name, process in self._farm.items():
                self.series[name].append(process.rss_mb)
            self.series["valkey"].append(self._valkey.memory_info().rss / 2**20)
            await asyncio.sleep(1)


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed."""
    return sorted(values)[math.ceil(len(values) * share) - 1] if values else math.nan


def report(quiet: Sequence[Asked], asked: Sequence[Asked], memory: Memory, factor: float) -> None:
    """The tables."""
    accepted = [one for one in asked if one.status == 200]
    refused = [one.head_s * 1000 for one in asked if one.status == 429]
    others = len(asked) - len(accepted) - len(refused)
    print(
        f"{len(asked):,} requests at {factor:g} times the rate: {len(accepted):,} accepted, "
        f"{sum(one.whole for one in accepted):,} of them finished; {len(refused):,} refused, {others} other answers"
    )
    print(f"429 after p50 {quantile(refused, 0.5):.1f}, p95 {quantile(refused, 0.95):.1f} ms")
    before = [one.first_s * 1000 for one in quiet]
    during = [one.first_s * 1000 for one in accepted if one.lane == "high"]
    turned_away = sum(one.lane == "high" and one.status != 200 for one in asked)
    print(
        f"TTFT of the high lane ({len(before)} / {len(during)} requests, {turned_away} refused), unloaded / overload:"
    )
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        alone, loaded = quantile(before, share), quantile(during, share)
        print(f"  {name} {alone:.0f} / {loaded:.0f} ms: {loaded / alone:.2f} times")
    print("resident MB      after 10 s   middle      end   most")
    for name, series in memory.series.items():
        settled = series[round(SETTLE_S) :]
        middle = statistics.median(settled[len(settled) // 3 : 2 * len(settled) // 3])
        print(f"  {name:12}{settled[0]:13.0f}{middle:9.0f}{settled[-1]:9.0f}{max(settled):7.0f}")


async def measure(farm: Mapping[str, FarmProcess], arguments: argparse.Namespace, valkey: psutil.Process) -> None:
    """All phases."""
    load = Load(farm["api"].facts["url"], arguments.prompt_tokens, arguments.answer_tokens)
    per_s = await load.rate(arguments.rows, arguments.calibrate)
    print(
        f"service rate: {per_s:.2f} jobs/s of {arguments.prompt_tokens} + {arguments.answer_tokens} tokens", flush=True
    )
    quiet = [await load.ask("high") for _ in range(arguments.quiet)]
    memory = Memory(farm, valkey)
    watching = asyncio.create_task(memory.watch())
    rounds = await asyncio.gather(
        load.arrivals("normal", arguments.factor * per_s, arguments.seconds),
        load.arrivals("high", HIGH_SHARE * per_s, arguments.seconds),
    )
    watching.cancel()
    report(quiet, [one for answers in rounds for one in answers], memory, arguments.factor)


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--factor", type=float, default=10)
    parser.add_argument(
        "--model", default="", help="a folder, or demo; unset: a Qwen3 of 107 million random parameters"
    )
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--reserved", type=int, default=2, help="of them for the high lane")
    parser.add_argument("--step-tokens", type=int, default=0, help="FARM_STEP_TOKENS: what a step reads of prompts")
    parser.add_argument("--waiting", type=int, default=64, help="jobs that may wait")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--calibrate", type=float, default=15, help="seconds to find the service rate")
    parser.add_argument("--quiet", type=int, default=20, help="requests for the unloaded time to first token")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, valkey_server(Path(folder)) as url:
        [valkey] = [child for child in psutil.Process().children() if "valkey" in child.name()]
        settings = {
            "home": folder,
            "redis_url": url,
            "model": arguments.model or str(build_qwen3(Path(folder) / "qwen3-120m")),
            "model_name": "bench",
            "port": "0",
            "max_sequences": str(arguments.rows),
            "max_waiting_jobs": str(arguments.waiting),
            "reserved_rows": str(arguments.reserved),
            "step_tokens": str(arguments.step_tokens),
            "log_level": "ERROR",
        }
        roles = {"worker": ["workers"], "scheduler": ["scheduler"], "api": ["api"]}
        with farm_processes(roles, settings) as farm:
            uvloop.run(measure(farm, arguments, valkey))


if __name__ == "__main__":
    main()
