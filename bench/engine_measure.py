"""How contestants are compared: in turns within one process, by the median of the ratios of neighbouring turns."""

import gc
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import mlx.core as mx
import numpy as np

from bench.engine_sides import MakeSide, Request, Side
from workers.engine import LoadedModel

KV_SAMPLE_STEPS = 8
TIE_RELATIVE = 1e-4  # of the largest logit: float32 sums of some thousand terms in another order


@dataclass(slots=True)
class Clock:
    """Wall and CPU seconds (all threads) between `start` and `stop`, summed, and the tokens that came meanwhile."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    tokens: int = 0

    def start(self) -> None:
        self.wall_s -= time.perf_counter()
        self.cpu_s -= time.process_time()

    def stop(self) -> None:
        self.wall_s += time.perf_counter()
        self.cpu_s += time.process_time()


@dataclass(slots=True)
class Drained:
    """One side's way through all requests. `peak_bytes`: what MLX had allocated beyond the model, at most."""

    clock: Clock = field(default_factory=Clock)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    first_s: dict[int, float] = field(default_factory=dict)
    peak_bytes: int = 0
    peak_kv_bytes: int = 0
    steps: int = 0


def drain(make: MakeSide, requests: Sequence[Request]) -> Drained:
    """Serve all requests to their ends; making the side is not timed."""
    gc.collect()
    mx.clear_cache()
    base_bytes = mx.get_active_memory()
    side = make()
    mx.reset_peak_memory()
    drained = Drained(tokens={number: [] for number in range(len(requests))})
    drained.clock.start()
    began_s = time.perf_counter()
    _serve(side, requests, drained, began_s)
    drained.clock.stop()
    drained.peak_bytes = mx.get_peak_memory() - base_bytes
    side.settle()
    side.close()
    return drained


def _serve(side: Side, requests: Sequence[Request], drained: Drained, began_s: float) -> None:
    emitted = arrived = 0
    unfinished: set[int] = set()
    while arrived < len(requests) or unfinished:
        while arrived < len(requests) and (not unfinished or requests[arrived].after_tokens <= emitted):
            side.submit(arrived, requests[arrived])
            unfinished.add(arrived)
            arrived += 1
        for number, token in side.step():
            drained.tokens[number].append(token)
            drained.first_s.setdefault(number, time.perf_counter() - began_s)
            emitted += 1
            if len(drained.tokens[number]) == requests[number].output_tokens:
                unfinished.remove(number)
        drained.steps += 1
        if drained.steps % KV_SAMPLE_STEPS == 1:
            drained.peak_kv_bytes = max(drained.peak_kv_bytes, side.kv_bytes())


@dataclass(frozen=True, slots=True)
class Race:
    """Ratios of the other side's time to ours, one of each run: above 1 we are faster."""

    wall: list[float]
    cpu: list[float]
    ours: Drained
    other: Drained

    @property
    def tokens_per_s(self) -> float:
        return sum(map(len, self.ours.tokens.values())) / self.ours.clock.wall_s


def race(ours: MakeSide, other: MakeSide, requests: Sequence[Request], *, runs: int) -> Race:
    """Drain both sides `runs` times, taking turns at being the first, after a short round that warms up."""
    warm = [Request(prompt_ids=r.prompt_ids[-32:], output_tokens=2, sampling=r.sampling) for r in requests[:4]]
    for make in (ours, other):
        drain(make, warm)
    wall, cpu = [], []
    for run in range(runs):
        if run % 2 == 0:
            a, b = drain(ours, requests), drain(other, requests)
        else:
            b, a = drain(other, requests), drain(ours, requests)
        wall.append(b.clock.wall_s / a.clock.wall_s)
        cpu.append(b.clock.cpu_s / a.clock.cpu_s)
    return Race(wall, cpu, a, b)


@dataclass(frozen=True, slots=True)
class Turns:
    """Ratios of the other side's time per token to ours, of neighbouring turns.

    `tokens` are those of ours, then of the other; `step_s` is the time in which every row got a token.
    """

    wall: list[float]
    cpu: list[float]
    tokens: tuple[dict[int, list[int]], dict[int, list[int]]]
    step_s: tuple[float, float]


def take_turns(
    ours: MakeSide,
    other: MakeSide,
    requests: tuple[Sequence[Request], Sequence[Request]],
    *,
    turns: int,
    turn_steps: int = 8,
) -> Turns:
    """Decode steps of two full batches, a few of one and then of the other, so that noise hits both."""
    gc.collect()
    mx.clear_cache()
    sides = (ours(), other())
    tokens: tuple[dict[int, list[int]], dict[int, list[int]]] = ({}, {})
    for side, wanted, seen in zip(sides, requests, tokens, strict=True):
        _start(side, wanted, seen)
        _turn(side, turn_steps, seen)  # warms up
    clocks: tuple[list[Clock], list[Clock]] = ([], [])
    for turn in range(turns):
        for index in (0, 1) if turn % 2 == 0 else (1, 0):
            clocks[index].append(_turn(sides[index], turn_steps, tokens[index]))
    for side in sides:
        side.close()
    pairs = list(zip(*clocks, strict=True))
    wall = [b.wall_s / b.tokens / (a.wall_s / a.tokens) for a, b in pairs]
    cpu = [b.cpu_s / b.tokens / (a.cpu_s / a.tokens) for a, b in pairs]
    rows = len(requests[0])
    ours_s, other_s = (rows * statistics.median(clock.wall_s / clock.tokens for clock in c) for c in clocks)
    return Turns(wall, cpu, tokens, (ours_s, other_s))


def _start(side: Side, requests: Sequence[Request], seen: dict[int, list[int]]) -> None:
    for number, request in enumerate(requests):
        seen[number] = []
        side.submit(number, request)
    while not all(seen.values()):
        for number, token in side.step():
            seen[number].append(token)
    side.settle()


def _turn(side: Side, steps: int, seen: dict[int, list[int]]) -> Clock:
    clock = Clock()
    clock.start()
    stepped = [side.step() for _ in range(steps)]
    side.settle()
    clock.stop()
    for number, token in chain.from_iterable(stepped):
        seen[number].append(token)
        clock.tokens += 1
    return clock


def percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(np.array(values), percent))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many greedy outputs of two sides are equal, and of those that differ how many differ at a proven tie."""

    equal: int
    ties: int
    total: int
    worst_gap: float = 0.0

    @property
    def holds(self) -> bool:
        return self.equal + self.ties == self.total

    def __str__(self) -> str:
        words = f"{self.equal}/{self.total} equal"
        if self.equal == self.total:
            return words
        return f"{words}, {self.ties} at a tie, logit gap {self.worst_gap:.1e}{'' if self.holds else ' MISMATCH'}"


def compare(
    loaded: LoadedModel,
    requests: Sequence[Request],
    ours: Mapping[int, Sequence[int]],
    other: Mapping[int, Sequence[int]],
) -> Agreement:
    """Compare greedy outputs, as far as both go; where they part, look at the model's own logits.

    A difference is a tie when the two tokens are the best ones and their logits differ by no more than the order of
    summation can make: `TIE_RELATIVE` of the largest.
    """
    equal = ties = 0
    worst_gap = 0.0
    for number, request in enumerate(requests):
        parted = next((i for i, (a, b) in enumerate(zip(ours[number], other[number], strict=False)) if a != b), None)
        if parted is None:
            equal += 1
            continue
        logits = _logits(loaded, (*request.prompt_ids, *ours[number][:parted]))
        chosen = [float(logits[ours[number][parted]]), float(logits[other[number][parted]])]
        gap = float(np.max(logits)) - min(chosen)
        ties += gap <= TIE_RELATIVE * float(np.max(np.abs(logits)))
        worst_gap = max(worst_gap, gap)
    return Agreement(equal, ties, len(requests), worst_gap)


def _logits(loaded: LoadedModel, ids: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.float32]]":
    logits = loaded.model(mx.array([ids]))
    return np.array(logits[0, -1].astype(mx.float32))
