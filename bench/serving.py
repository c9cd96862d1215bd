"""What does serving cost over the bare engine? `python -m bench.serving` prints one table.

Same model, same prompts, one run, interleaved repeats: the bare engine loop in a process of its own against the whole
farm (HTTP, Redis, scheduler, SQL) with streaming clients. Delivery is measured directly: the worker notes when a frame
was made, the client when its SSE event arrived (one clock). TTFT overhead is everything before the engine has the
prompt plus the delivery of the first frame, for requests in one instant (burst) and 250 ms apart (spread).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import uvloop

from bench.bare_engine import OUTPUT_TOKENS, prompts
from bench.models import build_qwen3
from bench.valkey_server import valkey_server
from workers.spawning import LINUX_ENVIRONMENT

ARRIVAL_GAP_S = 0.25


@dataclass
class Stream:
    """One client's view: when it asked, and when each event arrived (CLOCK_MONOTONIC, s)."""

    job_id: str = ""
    asked_s: float = 0.0
    arrived_s: list[float] = field(default_factory=list)


@dataclass
class Served:
    """One served round."""

    tokens_per_s: float
    delivery_ms: list[float]
    ttft_overhead_ms: list[float]
    spread_overhead_ms: list[float]
    ttft_ms: list[float]
    api_rss_mb: float


def bare(model: Path, streams: int) -> float:
    """Tokens per second of the engine loop alone, in a process of its own, model already loaded."""
    command = [sys.executable, "-m", "bench.bare_engine", str(model), str(streams)]
    return float(
        subprocess.run(command, env=os.environ | LINUX_ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    )


def start(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a process of the farm and wait until it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("READY "):
            return process
    raise RuntimeError(f"{arguments} did not start")


class Reader(asyncio.Protocol):
    """One client at the socket: an HTTP library would add its own milliseconds to every figure."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.ended = asyncio.Event()
        self._head = b""

    def data_received(self, data: bytes) -> None:
        """Note the time of each event, and the job's id from the head."""
        now_s = time.monotonic()
        if not self.stream.job_id:
            self._head += data
            match = re.search(rb"farm-job-id: (\S+)\r\n", self._head, re.IGNORECASE)
            self.stream.job_id = match[1].decode() if match else ""
        self.stream.arrived_s += [now_s] * data.count(b"\nid: ")

    def connection_lost(self, _error: Exception | None) -> None:
        """The answer is complete."""
        self.ended.set()


async def ask(port: int, ids: list[int], length: int, start: asyncio.Barrier, delay_s: float) -> Stream:
    """One streamed completion."""
    fields = {"model": "bench", "prompt": ids, "max_tokens": length, "temperature": 0, "ignore_eos": True}
    body = json.dumps(fields | {"stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
    transport, reader = await asyncio.get_running_loop().create_connection(Reader, "127.0.0.1", port)
    await start.wait()
    await asyncio.sleep(delay_s)
    reader.stream.asked_s = time.monotonic()
    transport.write(request)
    await reader.ended.wait()
    assert reader.stream.arrived_s, "the stream was refused"
    return reader.stream


async def ask_all(port: int, streams: int, length: int, round_name: str, gap_s: float = 0.0) -> list[Stream]:
    """All streams, each `gap_s` after the one before (0: all in the same instant)."""
    start = asyncio.Barrier(streams)
    asking = [ask(port, ids, length, start, index * gap_s) for index, ids in enumerate(prompts(streams, round_name))]
    return list(await asyncio.gather(*asking))


async def three_rounds(port: int, streams: int) -> tuple[list[Stream], float, list[Stream]]:
    """A short round to warm up, the burst (and how long it took), and one with the arrivals spread out."""
    await ask_all(port, streams, 4, "warm")
    began_s = time.monotonic()
    burst = await ask_all(port, streams, OUTPUT_TOKENS, "timed")
    elapsed_s = time.monotonic() - began_s
    return burst, elapsed_s, await ask_all(port, streams, OUTPUT_TOKENS // 2, "spread", ARRIVAL_GAP_S)


def served(model: Path, streams: int, port: int) -> Served:
    """One round through the whole farm."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, valkey_server(Path(folder)) as redis_url:
        note = Path(folder) / "times.json"
        environment = os.environ | {
            "FARM_HOME": folder,
            "FARM_REDIS_URL": redis_url,
            "FARM_MODEL": str(model),
            "FARM_MODEL_NAME": "bench",
            "FARM_PORT": str(port),
            **LINUX_ENVIRONMENT,
        }
        worker = start(["bench.recording_worker", str(note)], environment)
        others = [start([role], environment) for role in ("scheduler", "api")]
        burst, elapsed_s, spread = uvloop.run(three_rounds(port, streams))
        rss_mb = psutil.Process(others[1].pid).memory_info().rss / 2**20
        for process in (others[1], worker, others[0]):
            process.terminate()
            process.wait(30)
        times = json.loads(note.read_text())
    tokens_per_s = streams * OUTPUT_TOKENS / elapsed_s
    delivery_ms, overhead_ms, ttft_ms = delays(burst, times)
    return Served(tokens_per_s, delivery_ms, overhead_ms, delays(spread, times)[1], ttft_ms, rss_mb)


def delays(answers: list[Stream], times: dict[str, Any]) -> tuple[list[float], list[float], list[float]]:
    """Delivery of each frame, TTFT overhead and TTFT of each stream, in ms."""
    delivery, overhead, ttft = [], [], []
    for answer in answers:
        made = times["produced"][answer.job_id]
        first = (answer.arrived_s[0] - made[0]) * 1000
        delivery += [(arrived - at) * 1000 for at, arrived in zip(made, answer.arrived_s, strict=False)]
        overhead.append((times["submitted"][answer.job_id] - answer.asked_s) * 1000 + first)
        ttft.append((answer.arrived_s[0] - answer.asked_s) * 1000)
    return delivery, overhead, ttft


def main() -> None:
    """Parse the arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--port", type=int, default=8765)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        model = build_qwen3(Path(folder) / "qwen3-120m")
        print("run  bare tok/s  served tok/s  ratio  delivery p50/p95 ms  TTFT overhead burst/spread ms  API RSS MB")
        ratios = []
        for run in range(arguments.repeats):
            alone = bare(model, arguments.streams)
            farm = served(model, arguments.streams, arguments.port)
            ratios.append(farm.tokens_per_s / alone)
            p95_ms = statistics.quantiles(farm.delivery_ms, n=20)[-1]
            delivery = f"{statistics.median(farm.delivery_ms):.1f} / {p95_ms:.1f}"
            burst_ms, spread_ms = statistics.median(farm.ttft_overhead_ms), statistics.median(farm.spread_overhead_ms)
            print(
                f"{run:3}  {alone:10.1f}  {farm.tokens_per_s:12.1f}  {ratios[-1]:5.3f}  {delivery:>19}  "
                f"{burst_ms:23.1f} / {spread_ms:7.1f}  {farm.api_rss_mb:10.0f}",
                flush=True,
            )
        print(f"served / bare, median of {len(ratios)}: {statistics.median(ratios):.3f} ({arguments.streams} streams)")


if __name__ == "__main__":
    main()
