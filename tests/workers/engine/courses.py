"""Courses of events in an engine: prompts that come, are cancelled and come back, and whether the answers are right."""

import functools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.workers.engine.architectures import load, reference
from workers.engine import Engine, EngineBackend, FinishReason, PagedOptions, Prompt, make_engine
from workers.engine.choosing import StoreOptions
from workers.engine.paged.runner import PagedRunner

Make = Callable[..., Prompt]
VOCABULARY = 160
LONGEST_TOKENS = 112
SAMPLINGS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 12, "min_p": 0.02},
    {"temperature": 0.7, "repetition_penalty": 1.3},
    {"presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"logit_bias": ((40, 4.0), (41, -100.0))},
    {"temperature": 1.0, "stop_ids": tuple(range(1, VOCABULARY, 6))},
)


@dataclass(frozen=True)
class Sizes:
    """What the engine is given; a pool of `blocks` may be too small for all rows together, never for one."""

    rows: int
    chunk_tokens: int
    block_tokens: int
    blocks: int


@dataclass
class Course:
    """What was asked, and what came: token ids behind the resumed ones, and why the sequence ended.

    `rounds`: of an engine with keys and values of 8 bits, which is compared with its like.
    """

    asked: dict[str, Prompt] = field(default_factory=dict)
    said: dict[str, list[int]] = field(default_factory=dict)
    ended: dict[str, FinishReason] = field(default_factory=dict)
    rounds: bool = False

    def differences(self, name: str) -> list[str]:
        """What is not as the reference has it; a cancelled sequence may be incomplete, no other."""
        found = []
        for id, prompt in self.asked.items():
            said = [*prompt.resume_ids, *self.said.get(id, ())]
            found += reference(name, rounds=self.rounds).differences(prompt, said)
            if not self._ended_rightly(name, prompt, said):
                found.append(f"{id}: {len(said)} of {prompt.stop.max_tokens} tokens, ended by {self.ended.get(id)}")
        return found

    def _ended_rightly(self, name: str, prompt: Prompt, said: list[int]) -> bool:
        stops = prompt.stop.token_ids
        match self.ended.get(prompt.id):
            case FinishReason.LENGTH:
                return len(said) == prompt.stop.max_tokens and not {*said} & {*stops}
            case FinishReason.STOP:
                return not {*said} & {*stops} and any(
                    not reference(name, rounds=self.rounds).differences(prompt, [*said, token]) for token in stops
                )
            case reason:
                return reason is FinishReason.CANCELLED


def draw_sizes(dice: random.Random) -> Sizes:
    block_tokens = dice.choice((4, 8, 16))
    needed = math.ceil(LONGEST_TOKENS / block_tokens) + 1
    rows = dice.randint(2, 6)
    return Sizes(rows, dice.choice((3, 8, 16, 64)), block_tokens, dice.randint(needed + 1, needed * rows))


def open_engine(
    name: str, backend: str, sizes: Sizes, folder: Path | None = None, *, kv_bits: int | None = None
) -> Engine:
    """`folder`: where a paged engine keeps on disk what it has computed, below the model's own files."""
    loaded, store = load(name), None
    if folder is not None:
        (folder / "config.json").write_text(name)
        (folder / "model.safetensors").write_text(name)
        loaded = replace(loaded, info=replace(loaded.info, path=folder))
        store = StoreOptions(folder=folder / "blocks", max_bytes=1 << 30)
    return make_engine(
        loaded,
        max_sequences=sizes.rows,
        max_waiting=100,
        prefill_step_tokens=sizes.chunk_tokens,
        backend=EngineBackend(backend),
        paged=PagedOptions(block_tokens=sizes.block_tokens, kv_blocks=sizes.blocks, kv_bits=kv_bits, store=store),
    )


def ids(dice: random.Random, count: int) -> tuple[int, ...]:
    return tuple(dice.randrange(1, VOCABULARY) for _ in range(count))


@functools.cache
def prompts(make: Make) -> tuple[Prompt, ...]:
    """Prompts of all kinds, some of which share a beginning: with the edge of a block in, before and behind it, and
    long enough for an attention of its own."""
    dice = random.Random(7)
    base = ids(dice, 80)
    contents = [base[:shared] + ids(dice, own) for shared in (0, 8, 33, 72, 80) for own in (1, 4, 11)]
    contents += [base, base, base[:1], base[8:16] + base[:8] + base[16:24], base[:8] * 4]
    dice.shuffle(contents)
    return tuple(
        make(
            f"p{index}",
            token_ids=content,
            max_tokens=dice.randint(2, 12),
            seed=dice.getrandbits(64),
            priority=dice.randint(0, 1),
            **SAMPLINGS[index % len(SAMPLINGS)],
        )
        for index, content in enumerate(contents)
    )


def advance(engine: Engine, course: Course) -> None:
    for chunk in engine.step():
        assert chunk.prompt_id not in course.ended, "a sequence spoke after its last chunk"
        course.said.setdefault(chunk.prompt_id, []).extend(chunk.token_ids)
        if chunk.finish_reason is not None:
            course.ended[chunk.prompt_id] = chunk.finish_reason


def check_blocks(engine: Engine) -> None:
    """Every block has as many references as tables name it; raises AssertionError otherwise."""
    runner = engine._runner  # type: ignore[attr-defined]
    if isinstance(runner, PagedRunner):
        runner._pool.check(row.table for row in runner._rows.values())


def play(engine: Engine, asked: Iterable[Prompt], dice: random.Random, *, rounds: bool = False) -> Course:
    """Prompts come in groups or one by one, some are cancelled, and some of these come back with what they had."""
    course, coming = Course(rounds=rounds), list(asked)
    while coming or engine.has_work:
        for _ in range(dice.choice((0, 0, 1, 3))):
            if coming:
                prompt = coming.pop()
                course.asked[prompt.id] = prompt
                engine.submit(prompt)
        running = [id for id in course.asked if id not in course.ended]
        if running and dice.random() < 0.08:
            engine.cancel(dice.choice(running))
        before = set(course.ended)
        advance(engine, course)
        check_blocks(engine)
        for id in course.ended.keys() - before:
            if course.ended[id] is FinishReason.CANCELLED and dice.random() < 0.5:
                prompt = course.asked[id]
                had = (*prompt.resume_ids, *course.said[id])
                coming.append(replace(prompt, id=f"{id}+", resume_ids=had))
    return course


def run(engine: Engine, asked: Sequence[Prompt], *, rounds: bool = False) -> Course:
    """All at once, without any disturbance."""
    course = Course(asked={prompt.id: prompt for prompt in asked}, rounds=rounds)
    for prompt in asked:
        engine.submit(prompt)
    while engine.has_work:
        advance(engine, course)
    return course
