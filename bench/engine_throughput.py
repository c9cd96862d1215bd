"""Workloads against mlx-lm's `BatchGenerator`, each with the goal that its ratio is held against."""

import math
import random
import statistics
from collections.abc import Iterator
from functools import partial
from typing import Final

from bench.engine_bench import BIG, Bench, Scenario
from bench.engine_measure import race, take_turns
from bench.engine_report import Goal, Result
from bench.engine_sides import FixedLoop, GeneratorSide, Request


def log_uniform(chooser: random.Random, low: int, high: int) -> int:
    return round(math.exp(chooser.uniform(math.log(low), math.log(high))))


def steady(bench: Bench) -> Iterator[Result]:
    """A full batch of equal prompts that decodes on and on, in a cache that has no room for anything else."""
    rows = bench.rows
    requests = bench.alike(rows, 128)
    generator = partial(GeneratorSide, bench.loaded, rows, prefill_rows=rows)
    ours = bench.ours(rows, bench.alike(rows, 128, 8 * (bench.turns + 3)))
    turned = take_turns(ours, generator, (requests, requests), turns=bench.turns)
    yield bench.turned("steady16", Goal(1.0), turned, requests, "BatchGenerator")
    requests = bench.alike(rows, 128, 64)
    yield bench.memory("steady16", race(bench.ours(rows, requests), generator, requests, runs=1))


def uneven(bench: Bench) -> Iterator[Result]:
    """Prompts of 16 to 1,024 tokens (log-uniform), all there from the start, 16 at a time, answers of 64 tokens."""
    chooser = random.Random(12)
    lengths = [log_uniform(chooser, 16, 1024) for _ in range(bench.count(64))]
    requests = [Request(prompt_ids=bench.ids(chooser, length), output_tokens=64) for length in lengths]
    raced = race(bench.ours(bench.rows, requests), bench.generator(bench.rows), requests, runs=bench.runs)
    yield bench.raced("uneven", Goal(1.8 if bench.model == BIG else 2.0), raced, requests)
    yield bench.memory("uneven", raced)


def churn(bench: Bench) -> Iterator[Result]:
    """A full batch at the start, then Poisson arrivals somewhat faster than rows become free."""
    chooser = random.Random(13)
    requests: list[Request] = []
    outputs = [log_uniform(chooser, 16, 256) for _ in range(bench.count(64))]
    arrival = 0.0
    for number, output_tokens in enumerate(outputs):
        if number >= bench.rows:
            arrival += chooser.expovariate(1 / (0.9 * statistics.fmean(outputs)))
        ids = bench.ids(chooser, log_uniform(chooser, 32, 512))
        requests.append(Request(prompt_ids=ids, output_tokens=output_tokens, after_tokens=int(arrival)))
    raced = race(bench.ours(bench.rows, requests), bench.generator(bench.rows), requests, runs=bench.runs)
    yield bench.raced("churn", Goal(1.2 if bench.model == BIG else 1.5), raced, requests)
    yield bench.memory("churn", raced)


def _shared_requests(bench: Bench) -> tuple[tuple[int, ...], list[Request]]:
    rows, prefix_tokens, output_tokens = (12, 512, 16) if bench.model == BIG else (32, 1024, 32)
    chooser = random.Random(14)
    prefix = bench.ids(chooser, prefix_tokens)
    requests = [
        Request(prompt_ids=(*prefix, *bench.ids(chooser, 32)), output_tokens=output_tokens) for _ in range(rows)
    ]
    return prefix, requests


def shared(bench: Bench) -> Iterator[Result]:
    """32 requests at once behind one long prefix that nobody has read yet."""
    prefix, requests = _shared_requests(bench)
    rows = len(requests)
    raced = race(
        bench.ours(rows, requests, shared_tokens=len(prefix)), bench.generator(rows), requests, runs=bench.runs
    )
    yield bench.raced("shared prefix, cold", Goal(3.0 if bench.model == BIG else 8.0), raced, requests)
    yield bench.memory("shared prefix", raced)


def shared_copies(bench: Bench) -> Iterator[Result]:
    """The same, against a `BatchGenerator` that reads the prefix once too and gets a copy of it for each request."""
    prefix, requests = _shared_requests(bench)
    rows = len(requests)
    copies = partial(GeneratorSide, bench.loaded, rows, shared_prefix=prefix)
    raced = race(bench.ours(rows, requests, shared_tokens=len(prefix)), copies, requests, runs=bench.runs)
    goal = None if bench.model == BIG else Goal(1.1)
    yield bench.raced("shared prefix, against copies", goal, raced, requests)


def long_uniform(bench: Bench) -> Iterator[Result]:
    """Eight long prompts of one length."""
    requests = bench.alike(8, 1500, 96)
    raced = race(bench.ours(8, requests), bench.generator(8), requests, runs=bench.runs)
    yield bench.raced("long uniform", Goal(1.0), raced, requests)


def single(bench: Bench) -> Iterator[Result]:
    """One stream alone."""
    requests = bench.alike(1, 128)
    turned = take_turns(bench.ours(1), bench.generator(1), (requests, requests), turns=2 * bench.turns)
    yield bench.turned("one stream", Goal(1.0), turned, requests, "BatchGenerator")


def limit(bench: Bench) -> Iterator[Result]:
    """The bare loop that knows nothing but a fixed batch."""
    requests = bench.alike(bench.rows, 128)
    bare = partial(FixedLoop, bench.loaded.model, capacity_tokens=128 + 8 * (bench.turns + 2) + 8)
    turned = take_turns(bench.ours(bench.rows), bare, (requests, requests), turns=bench.turns)
    yield bench.turned("bare fixed-batch loop", Goal(0.95), turned, requests, "the bare loop")


THROUGHPUT: Final[dict[str, Scenario]] = {
    "steady16": steady,
    "uneven": uneven,
    "churn": churn,
    "shared": shared,
    "shared-copies": shared_copies,
    "long": long_uniform,
    "single": single,
    "limit": limit,
}
