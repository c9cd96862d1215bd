"""What is measured on, and how measurements become figures. Random token ids from fixed seeds."""

import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from bench.engine_measure import Race, Turns, compare
from bench.engine_report import Goal, Result
from bench.engine_sides import GeneratorSide, MakeSide, Request, blocks_for, engine_side
from workers.engine import LoadedModel

ENDLESS: Final = 1 << 20
BIG: Final = "600m"
MEMORY_GOAL: Final = Goal(0.25, at_least=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What is measured on: a loaded model, how often, and whether at a reduced size."""

    model: str
    loaded: LoadedModel
    runs: int
    quick: bool

    @property
    def rows(self) -> int:
        """Rows at a time where the table says 16: half of it for the big model, whose steps take a second."""
        return 8 if self.model == BIG else 16

    def count(self, requests: int) -> int:
        """So many requests for the smallest model; fewer for those that take longer, but two for each row."""
        part = {"8m": 1.0, "120m": 0.5, BIG: 0.25}[self.model] / (2 if self.quick else 1)
        return max(2 * self.rows, round(requests * part))

    def ids(self, chooser: random.Random, count: int) -> tuple[int, ...]:
        vocab = self.loaded.info.vocab_size
        return tuple(chooser.randrange(vocab) for _ in range(count))

    def alike(self, rows: int, prompt_tokens: int, output_tokens: int = ENDLESS) -> list[Request]:
        chooser = random.Random(11)
        return [Request(prompt_ids=self.ids(chooser, prompt_tokens), output_tokens=output_tokens) for _ in range(rows)]

    def ours(self, rows: int, requests: Sequence[Request] = (), *, shared_tokens: int = 0) -> MakeSide:
        """With a cache for `rows` of these requests of average length, or of the size that a node would give it.

        Where more is needed, rows wait or are preempted, which is part of the time that is measured.
        """
        blocks = blocks_for(requests, rows, shared_tokens=shared_tokens) if requests else None
        return partial(engine_side, self.loaded, rows, blocks)

    def generator(self, rows: int) -> MakeSide:
        return partial(GeneratorSide, self.loaded, rows)

    def result(self, scenario: str, goal: Goal | None, runs: list[float], *, detail: str = "") -> Result:
        return Result(scenario=scenario, model=self.model, goal=goal, runs=runs, detail=detail)

    def raced(self, scenario: str, goal: Goal | None, raced: Race, requests: Sequence[Request]) -> Result:
        outputs = compare(self.loaded, requests, raced.ours.tokens, raced.other.tokens)
        return replace(
            self.result(scenario, goal, raced.wall),
            cpu_ratio=statistics.median(raced.cpu),
            outputs=str(outputs),
            detail=f"{raced.tokens_per_s:.0f} tokens/s, {raced.ours.steps} steps to {raced.other.steps}",
        )

    def memory(self, scenario: str, raced: Race) -> Result:
        ours, other = raced.ours, raced.other
        return self.result(
            f"{scenario}: peak memory",
            MEMORY_GOAL,
            [ours.peak_bytes / other.peak_bytes],
            detail=f"{ours.peak_bytes / 1e6:.0f} of {other.peak_bytes / 1e6:.0f} MB beyond the weights; "
            f"keys and values {ours.peak_kv_bytes / 1e6:.0f} of {other.peak_kv_bytes / 1e6:.0f} MB",
        )

    def turned(
        self, scenario: str, goal: Goal | None, turned: Turns, requests: Sequence[Request] | None, other: str
    ) -> Result:
        ours_s, other_s = turned.step_s
        return replace(
            self.result(scenario, goal, turned.wall),
            cpu_ratio=statistics.median(turned.cpu),
            outputs=str(compare(self.loaded, requests, *turned.tokens)) if requests else "",
            detail=f"{1000 * ours_s:.2f} ms a step, {other} {1000 * other_s:.2f}",
        )

    @property
    def turns(self) -> int:
        return (4 if self.quick else 8) * self.runs


Scenario = Callable[[Bench], Iterable[Result]]
