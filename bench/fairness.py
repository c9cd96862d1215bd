"""Who gets what when there is too little for all? `python -m bench.fairness` prints two tables and can draw one plot.

The real scripts on a real Valkey, but on virtual time (bench/virtual_time.py). Tenants: one sends 50 times as many jobs
as the other, both more than their part; the share of tokens of each while both are backlogged, by weights. Lanes: high
and normal together ask for more than there is, and a batch of low jobs waits from the start; the worst wait per lane.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
from dataclasses import replace
from pathlib import Path

from bench.valkey_server import valkey_server
from bench.virtual_time import VirtualFarm, VirtualQueue
from scheduler.connections import command_client
from scheduler.jobs import Lane
from scheduler.scripts import QueuePolicy

ROWS = 16
TICKS_PER_S = 20
WARM_UP_S = 10
POLICY = QueuePolicy(lease_ms=3_600_000, max_waiting_jobs=10**6, max_tenant_jobs=10**6, max_model_jobs=10**6)


class Arrivals:
    """A Poisson stream of jobs of one tenant in one lane."""

    def __init__(self, dice: random.Random, per_s: float, tenant: str, lane: Lane) -> None:
        self._dice, self._per_s = dice, per_s
        self._tenant, self._lane = tenant, lane
        self._next_s = dice.expovariate(per_s)

    async def until(self, farm: VirtualFarm, now_s: float) -> None:
        """Submit what has arrived by now."""
        while self._next_s <= now_s:
            self._next_s += self._dice.expovariate(self._per_s)
            prompt, answer = self._dice.randint(20, 200), self._dice.randint(20, 100)
            await farm.submit(self._tenant, self._lane, prompt=prompt, answer=answer)


async def run(farm: VirtualFarm, arrivals: list[Arrivals], seconds: int) -> None:
    """Let virtual time pass."""
    for tick in range(seconds * TICKS_PER_S):
        for stream in arrivals:
            await stream.until(farm, tick / TICKS_PER_S)
        await farm.tick()


async def tenants(url: str, weights: tuple[float, float], seconds: int) -> list[tuple[int, int]]:
    """Tokens of the busy and of the modest tenant, second by second, behind the warm-up."""
    redis = command_client(url)
    await redis.flushall()
    policy = replace(POLICY, tenant_weights=tuple(zip(NAMES, weights, strict=True)))
    farm = VirtualFarm(VirtualQueue(redis, policy), ROWS, 1000 // TICKS_PER_S)
    dice, begin_s = random.Random(1), farm.now_ms // 1000
    modest_per_s = 5.0
    arrivals = [
        Arrivals(dice, 50 * modest_per_s, "busy", Lane.NORMAL),
        Arrivals(dice, modest_per_s, "modest", Lane.NORMAL),
    ]
    await run(farm, arrivals, seconds)
    waiting = {name: sum(job.claimed_ms is None for job in farm.jobs.values() if job.tenant == name) for name in NAMES}
    assert min(waiting.values()) > 0, f"not both are backlogged: {waiting}"
    await redis.aclose()
    span = range(begin_s + WARM_UP_S, begin_s + seconds)
    return [(farm.tokens["busy", second], farm.tokens["modest", second]) for second in span]


NAMES = ("busy", "modest")


async def lanes(url: str, seconds: int) -> list[tuple[str, int, int, float, float]]:
    """Per lane: jobs, jobs served, the worst wait of a served job, the longest that one still waits, in s."""
    redis = command_client(url)
    await redis.flushall()
    farm = VirtualFarm(VirtualQueue(redis, POLICY), ROWS, 1000 // TICKS_PER_S)
    dice = random.Random(2)
    for _ in range(200):
        await farm.submit("batch", Lane.LOW, prompt=100, answer=60)
    # 16 rows serve about 5.3 jobs of 60 tokens a second
    await run(farm, [Arrivals(dice, 3.5, "people", Lane.HIGH), Arrivals(dice, 3.0, "apps", Lane.NORMAL)], seconds)
    await redis.aclose()
    rows = []
    for lane in Lane:
        jobs = [job for job in farm.jobs.values() if job.lane is lane]
        waits = [(job.claimed_ms - job.submitted_ms) / 1000 for job in jobs if job.claimed_ms is not None]
        still = [(farm.now_ms - job.submitted_ms) / 1000 for job in jobs if job.claimed_ms is None]
        rows.append((lane.value, len(jobs), len(waits), max(waits, default=0.0), max(still, default=0.0)))
    return rows


def plot(series: list[tuple[int, int]], target: float, path: Path) -> None:
    """The busy tenant's share of all tokens so far, over virtual seconds, as SVG."""
    width, height, total, busy = 640, 240, 0, 0
    points = []
    for second, (of_busy, of_modest) in enumerate(series):
        busy, total = busy + of_busy, total + of_busy + of_modest
        points.append(f"{second / len(series) * width:.1f},{height - busy / total * height:.1f}")
    level = height - target * height
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -20 {width + 20} {height + 40}" '
        f'font-family="sans-serif" font-size="12"><rect width="{width}" height="{height}" fill="none" stroke="#999"/>'
        f'<line x1="0" x2="{width}" y1="{level}" y2="{level}" stroke="#c33" stroke-dasharray="4"/>'
        f'<polyline points="{" ".join(points)}" fill="none" stroke="#247"/>'
        f'<text y="-6">share of tokens of the tenant that sends 50 times as much; dashed: its weight</text></svg>\n'
    )


async def measure(seconds: int, svg: Path | None) -> None:
    """Everything, printed."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, valkey_server(Path(folder)) as url:
        print("weights (busy : modest)   busy's share   its weight   off by")
        for weights in ((1.0, 1.0), (1.0, 3.0), (3.0, 1.0)):
            series = await tenants(url, weights, seconds)
            busy = sum(first for first, _ in series)
            share, target = busy / sum(a + b for a, b in series), weights[0] / sum(weights)
            print(f"{weights[0]:g} : {weights[1]:g}{share:32.1%}{target:13.1%}{abs(share / target - 1):9.1%}")
            if svg is not None and weights == (1.0, 1.0):
                plot(series, target, svg)
        print(f"\nlane       jobs   served   worst wait (age {POLICY.age_ms / 1000:g} s)   longest still waiting")
        for lane, jobs, served, worst_s, still_s in await lanes(url, 2 * seconds):
            print(f"{lane:8}{jobs:7}{served:9}{worst_s:13.1f} s{still_s:31.1f} s")


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="virtual seconds per scenario")
    parser.add_argument("--svg", type=Path, help="draw the share over time")
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.seconds, arguments.svg))


if __name__ == "__main__":
    main()
