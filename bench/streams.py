"""Thousands of SSE streams on one API process: what does it add, and what does it weigh? `python -m bench.streams`

Real API, scheduler, Redis and SQL; real workers over engines that sleep (bench/simulated_engine.py), so that everything
but the computing is measured. Each token's text is the moment it was made, so the latency of an event is its arrival at
the client's socket less what it says. First a few streams, then all; the API's memory and processor time with them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from bench.processes import FarmProcess, farm_processes
from bench.valkey_server import valkey_server

MODEL = "simulated"
FEW = 16
ROWS = 32
OPENING, OPENING_S = 50, 0.25
"""So many streams are opened at once, and so long apart."""

WARM_S = 2.0
STAMP = re.compile(rb'"text":\s*"(\d+) ')


@dataclass(slots=True)
class Watch:
    """What all clients have seen while `on`: ms from engine to socket."""

    on: bool = False
    latency_ms: list[float] | None = None


class Client(asyncio.Protocol):
    """One client at the socket: an HTTP library would add its own time to every figure."""

    def __init__(self, request: bytes, watch: Watch) -> None:
        self.first = asyncio.get_running_loop().create_future()
        self.lost = False
        self._request = request
        self._watch = watch

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Ask."""
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note when each event has come."""
        now_us = time.monotonic() * 1e6
        stamps = STAMP.findall(data)
        if self._watch.on and self._watch.latency_ms is not None:
            self._watch.latency_ms += [(now_us - int(stamp)) / 1000 for stamp in stamps]
        if stamps and not self.first.done():
            self.first.set_result(None)

    def connection_lost(self, _error: Exception | None) -> None:
        """A stream that ends during the measurement fails it."""
        self.lost = True
        if not self.first.done():
            self.first.set_exception(ConnectionError("the stream was refused"))


@dataclass(frozen=True, slots=True)
class Round:
    """One number of streams. `opening_s` until each has had its first event."""

    streams: int
    events_per_s: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    rss_mb: float
    cpu_share: float
    opening_s: float


async def measure(api: FarmProcess, streams: int, seconds: float) -> Round:
    """Open the streams, let them run, count."""
    address = urlsplit(api.facts["url"])
    fields = {"model": MODEL, "prompt": list(range(16)), "max_tokens": 30_000, "stream": True, "temperature": 0}
    body = json.dumps(fields).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    loop, watch, open_streams = asyncio.get_running_loop(), Watch(), []
    began_s = time.monotonic()
    for start in range(0, streams, OPENING):
        connecting = [
            loop.create_connection(lambda: Client(request, watch), address.hostname, address.port)
            for _ in range(min(OPENING, streams - start))
        ]
        open_streams += await asyncio.gather(*connecting)
        await asyncio.sleep(OPENING_S)
    await asyncio.gather(*(client.first for _, client in open_streams))
    opening_s = time.monotonic() - began_s
    await asyncio.sleep(WARM_S)
    watch.on, watch.latency_ms, cpu_s, began_s = True, [], api.cpu_s, time.monotonic()
    await asyncio.sleep(seconds)
    watch.on, elapsed_s, cpu_s = False, time.monotonic() - began_s, api.cpu_s - cpu_s
    rss_mb = api.rss_mb
    assert not any(client.lost for _, client in open_streams), "a stream ended early"
    for transport, _ in open_streams:
        transport.close()
    seen = sorted(watch.latency_ms)
    p99_ms = seen[math.ceil(len(seen) * 0.99) - 1]
    return Round(
        streams, len(seen) / elapsed_s, statistics.median(seen), p99_ms, seen[-1], rss_mb, cpu_s / elapsed_s, opening_s
    )


async def rounds(api: FarmProcess, streams: int, seconds: float) -> None:
    """A few, then all; printed as they come."""
    print("streams   events/s   engine → socket p50 / p99 / worst ms   API RSS MB   of a core   first events within")
    print(f"{0:7}{'':52}{api.rss_mb:17.0f}", flush=True)
    for count in (FEW, streams):
        one = await measure(api, count, seconds)
        figures = f"{one.p50_ms:.1f} / {one.p99_ms:.1f} / {one.worst_ms:.1f}"
        print(
            f"{one.streams:7}{one.events_per_s:11,.0f}{figures:>41}{one.rss_mb:13.0f}{one.cpu_share:12.0%}"
            f"{one.opening_s:20.1f} s",
            flush=True,
        )
        await asyncio.sleep(WARM_S)


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--step-ms", type=int, default=1000, help="each stream gets one event per step")
    arguments = parser.parse_args()
    workers = math.ceil(arguments.streams / ROWS)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, valkey_server(Path(folder)) as url:
        roles = {
            "workers": ["bench.simulated_workers", str(workers), str(arguments.step_ms)],
            "scheduler": ["scheduler"],
            "api": ["api"],
        }
        settings = {
            "home": folder,
            "redis_url": url,
            "model_name": MODEL,
            "port": "0",
            "max_sequences": str(ROWS),
            "reserved_rows": "0",
            "log_level": "ERROR",
        }
        with farm_processes(roles, settings) as farm:
            print(f"{workers} workers of {ROWS} rows, one token per row each {arguments.step_ms} ms")
            uvloop.run(rounds(farm["api"], arguments.streams, arguments.seconds))


if __name__ == "__main__":
    main()
