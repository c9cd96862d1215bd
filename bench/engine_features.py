"""What single features cost or gain, mostly against the same engine without them, each with its goal."""

import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from bench.adapters import write_adapter
from bench.draft_models import agreeing_pair, stranger
from bench.engine_bench import Bench, Scenario
from bench.engine_measure import percentile, race, take_turns
from bench.engine_report import Goal, Result
from bench.engine_sides import EngineSide, Request, engine_side
from bench.kv_divergence import measure_divergence
from bench.models import DEMO_MODEL, forget_context
from workers.engine import LoadedModel, SamplingParams, StoreOptions, load_model
from workers.engine.guided import Grammar, GrammarKind

CYCLE_TOKENS: Final = 64
STORE_BYTES: Final = 8 << 30
QUESTIONS: Final = (
    "What is 2+3?",
    "Tell me a story about a dog.",
    "Write a short poem about the sea.",
    "What is the capital of France?",
)
SCHEMA: Final = {
    "type": "array",
    "minItems": 1000,  # longer than any row gets
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "size": {"type": "integer"},
            "kind": {"enum": ["small", "medium", "large"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
        },
        "required": ["name", "size", "kind", "tags"],
        "additionalProperties": False,
    },
}
MIXED: Final = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.7, top_k=40),
    SamplingParams(temperature=1.0, top_p=0.9),
    SamplingParams(temperature=0.8, min_p=0.05),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_k=20, top_p=0.95),
    SamplingParams(temperature=1.0, frequency_penalty=0.5),
    SamplingParams(temperature=0.9, repetition_penalty=1.1, top_k=64),
)


def mixed_sampling(bench: Bench) -> Iterator[Result]:
    """32 rows with eight kinds of sampling parameters, against 32 greedy rows of the same engine."""
    greedy = bench.alike(32, 64)
    mixed = [
        replace(request, sampling=replace(MIXED[row % len(MIXED)], seed=row)) for row, request in enumerate(greedy)
    ]
    turned = take_turns(bench.ours(32), bench.ours(32), (greedy, mixed), turns=bench.turns)
    yield bench.turned("mixed sampling, to greedy", Goal(1.05, at_least=False), turned, None, "mixed")


def stall(bench: Bench) -> Iterator[Result]:
    """How long eight running rows wait for a token while 4,096 prompt tokens are read, against one chunk alone."""
    ratios, gaps_ms, chunks_ms = [], 0.0, 0.0
    for _ in range(bench.runs):
        chunks_ms = 1000 * percentile(_reading_gaps(bench, 0), 99)
        gaps_ms = 1000 * percentile(_reading_gaps(bench, 8), 99)
        ratios.append(gaps_ms / chunks_ms)
    detail = f"p99 between tokens {gaps_ms:.0f} ms, p99 of a chunk {chunks_ms:.0f} ms"
    yield bench.result("p99 during a long prefill, to a chunk", Goal(1.5, at_least=False), ratios, detail=detail)


def _reading_gaps(bench: Bench, rows: int) -> list[float]:
    """Seconds between the tokens of `rows` running rows while a long prompt is read; of 0 rows, each step's."""
    side = engine_side(bench.loaded, rows + 1)
    running, [long] = bench.alike(rows, 128), bench.alike(1, 4096)
    for number, request in enumerate(running):
        side.submit(number, request)
    started: set[int] = set()
    while len(started) < rows:
        started |= {number for number, _ in side.step()}
    for _ in range(4 * bool(rows)):
        side.step()
    side.submit(rows, long)
    last_s = dict.fromkeys(range(max(rows, 1)), time.perf_counter())
    gaps: list[float] = []
    reading = True
    while reading:
        stepped = side.step()
        now_s = time.perf_counter()
        reading = all(number != rows for number, _ in stepped)
        for number in {number for number, _ in stepped if number != rows} if rows else {0}:
            gaps.append(now_s - last_s[number])
            last_s[number] = now_s
    side.settle()
    side.close()
    return gaps


def speculation(bench: Bench) -> Iterator[Result]:
    """Guessing from the text so far, against the same engine without it, one row and eight at a time.

    Three texts: one that repeats itself to the letter (the most that can be gained), one of random tokens, and one of
    random tokens out of a few, where the last words often stood before and what followed them is of no use.
    """
    fresh = bench.loaded
    repeating = load_model(str(fresh.info.path))
    cycle = forget_context(repeating.model, CYCLE_TOKENS)
    few = SamplingParams(temperature=0.0, logit_bias=tuple((token, 1000.0) for token in range(300, 332)))
    output_tokens = 64 if bench.quick else 128
    for rows in (1, 8):
        plain = bench.alike(rows, 2 * CYCLE_TOKENS, output_tokens)
        texts = {
            "repetitive": (repeating, [_cycling(request, cycle, row) for row, request in enumerate(plain)], Goal(1.5)),
            "fresh": (fresh, plain, Goal(0.97)),
            "misleading": (fresh, [replace(request, sampling=few) for request in plain], Goal(0.97)),
        }
        for name, (loaded, requests, goal) in texts.items():
            used = replace(bench, loaded=loaded)
            guessing, not_guessing = (partial(engine_side, loaded, rows, speculates=on) for on in (True, False))
            raced = race(guessing, not_guessing, requests, runs=max(bench.runs, 2))
            yield used.raced(f"n-gram speculation, {name} text, batch {rows}", goal, raced, requests)


def draft(bench: Bench) -> Iterator[Result]:
    """Guessing by a draft model, against the same engine without any guesses, one row and eight at a time.

    One that always agrees with its target (the most that can be gained) and one that never does; greedy rows, and drawn
    ones that it agrees with as often.
    """
    target, agreeing = agreeing_pair(bench.loaded.info.path)
    strange = stranger(bench.loaded)
    output_tokens = 128 if bench.quick else 256
    drawn = SamplingParams(temperature=1.0, seed=5)
    for rows in (1, 8):
        greedy = bench.alike(rows, 2 * CYCLE_TOKENS, output_tokens)
        sampled = [replace(request, sampling=drawn) for request in greedy]
        cases = (
            ("agreeing", target, agreeing, greedy, Goal(1.3 if rows == 1 else 1.2)),
            ("agreeing, drawn rows", target, agreeing, sampled, None),
            ("never agreeing", bench.loaded, strange, greedy, Goal(0.97)),
        )
        for name, loaded, guesser, requests, goal in cases:
            used = replace(bench, loaded=loaded)
            guessing = partial(engine_side, loaded, rows, draft=guesser)
            raced = race(
                guessing, partial(engine_side, loaded, rows, speculates=False), requests, runs=max(bench.runs, 2)
            )
            yield used.raced(f"draft model, {name}, batch {rows}", goal, raced, requests if requests is greedy else [])


def _cycling(request: Request, cycle: dict[int, int], row: int) -> Request:
    """The request with a prompt that the model would have written."""
    ids = [sorted(cycle)[row]]
    while len(ids) < len(request.prompt_ids):
        ids.append(cycle[ids[-1]])
    return replace(request, prompt_ids=tuple(ids))


def json_schema(bench: Bench) -> Iterator[Result]:
    """16 rows that have to write JSON, against 16 rows of the same engine that write what they like."""
    free = bench.alike(bench.rows, 64)
    grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
    bound = [replace(request, grammar=grammar) for request in free]
    turned = take_turns(bench.ours(bench.rows), bench.ours(bench.rows), (free, bound), turns=bench.turns)
    yield bench.turned("JSON-schema rows, to free ones", Goal(1.1, at_least=False), turned, None, "with a schema")


def adapters(bench: Bench) -> Iterator[Result]:
    """Rows over four adapters, and over one of them, against as many plain rows of the same engine; and these against
    the same rows of a model without adapters.

    The adapters have mlx-lm's default size: rank 8 in all linear layers of the last 16 blocks.
    """
    path = str(bench.loaded.info.path)
    with tempfile.TemporaryDirectory() as folder:
        folders = {
            name: write_adapter(Path(folder) / name, load_model(path).model, rank=8, layers=16, seed=seed)
            for seed, name in enumerate("abcd")
        }
        used = replace(bench, loaded=load_model(path, adapters=folders))
    plain = used.alike(bench.rows, 64)
    for said, names in (("four adapters", "abcd"), ("one adapter", "a")):
        asked = [replace(request, adapter=names[row % len(names)]) for row, request in enumerate(plain)]
        turned = take_turns(used.ours(bench.rows), used.ours(bench.rows), (plain, asked), turns=bench.turns)
        goal = Goal(1.25, at_least=False)
        yield used.turned(f"rows over {said}, to plain ones", goal, turned, None, "with adapters")
    turned = take_turns(bench.ours(bench.rows), used.ours(bench.rows), (plain, plain), turns=bench.turns)
    yield bench.turned("plain rows beside adapters", Goal(1.02, at_least=False), turned, plain, "beside adapters")


def second_turn(bench: Bench) -> Iterator[Result]:
    """The time to the first token when a long conversation goes on, to that of its first turn.

    Once in the engine that had the first turn, and once in a new one that finds it on disk.
    """
    tokens = 8192 if bench.quick else 16384
    [first] = bench.alike(1, tokens, 32)
    ratios: dict[str, list[float]] = {"in memory": [], "after a restart": []}
    details: dict[str, str] = {}
    for run in range(bench.runs):
        with tempfile.TemporaryDirectory() as folder:
            store = StoreOptions(folder=Path(folder), max_bytes=STORE_BYTES)
            side = engine_side(bench.loaded, 1, store=store)
            first_s, answer = _ask(side, 0, first)
            question = bench.ids(random.Random(15 + run), 64)
            second = replace(first, prompt_ids=(*first.prompt_ids, *answer, *question))
            for place, measured in ratios.items():
                second_s, _ = _ask(side, 1, second)
                side.settle()
                side.close()
                measured.append(second_s / first_s)
                details[place] = f"first token after {second_s:.2f} s; of the first {tokens} tokens after {first_s:.1f}"
                if place == "in memory":
                    side = engine_side(bench.loaded, 1, store=store)
    for place, goal in (("in memory", 0.03), ("after a restart", 0.15)):
        goal_ratio = Goal(goal, at_least=False)
        yield bench.result(f"second turn {place}, to the first", goal_ratio, ratios[place], detail=details[place])


def _ask(side: EngineSide, number: int, request: Request) -> tuple[float, list[int]]:
    """Seconds to the first token of a request that is alone, and its whole answer."""
    began_s, first_s = time.perf_counter(), 0.0
    answer: list[int] = []
    side.submit(number, request)
    while len(answer) < request.output_tokens:
        answer += [token for _, token in side.step()]
        first_s = first_s or (time.perf_counter() - began_s if answer else 0.0)
    return first_s, answer


def rounded_cache(bench: Bench) -> Iterator[Result]:
    """Keys and values in 8 bits, against the same engine with exact ones: memory, speed, and what is said."""
    requests = bench.alike(bench.rows, 512)
    short = [replace(request, output_tokens=8) for request in requests]
    rounded, exact = (partial(engine_side, bench.loaded, bench.rows, kv_bits=bits) for bits in (8, None))
    raced = race(rounded, exact, short, runs=1)
    ours, other = raced.ours.peak_kv_bytes, raced.other.peak_kv_bytes
    detail = f"{ours / 1e6:.1f} of {other / 1e6:.1f} MB for {bench.rows} rows of 520 tokens"
    yield bench.result("8-bit cache, bytes to exact ones", None, [ours / other], detail=detail)
    turned = take_turns(rounded, exact, (requests, requests), turns=bench.turns)
    yield bench.turned("8-bit cache, decoding speed to exact", None, turned, None, "exact")
    demo = load_model(str(DEMO_MODEL))
    asked: dict[str, tuple[LoadedModel, Sequence[Sequence[int]]]] = {
        "the demo model, real questions": (demo, [_asked(demo, question) for question in QUESTIONS]),
        "random prompts": (bench.loaded, [request.prompt_ids for request in bench.alike(4, 128)]),
    }
    for name, (loaded, prompts) in asked.items():
        found = measure_divergence(loaded, prompts)
        detail = f"KL mean {found.mean_kl:.1e}, most {found.most_kl:.1e} nats"
        yield bench.result(f"8-bit cache, equal tokens of 64, {name}", None, found.equal, detail=detail)


def _asked(loaded: LoadedModel, question: str) -> list[int]:
    tokenizer = loaded.vocabulary.tokenizer
    return list(tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").ids)


FEATURES: Final[dict[str, Scenario]] = {
    "stall": stall,
    "mixed-sampling": mixed_sampling,
    "speculation": speculation,
    "draft": draft,
    "json-schema": json_schema,
    "adapters": adapters,
    "second-turn": second_turn,
    "kv8": rounded_cache,
}
