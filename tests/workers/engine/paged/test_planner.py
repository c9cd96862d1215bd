"""The planner against a device on paper: whatever happens, rows read what is theirs; and who gets what, and when."""

import random
from collections.abc import Callable
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.engine.paged.paper_device import VOCAB, PaperDevice, expected
from workers.engine.paged.blocks import NULL_BLOCK
from workers.engine.paged.chunks import PlanLimits
from workers.engine.paged.rows import Phase, Row

LIMITS = PlanLimits(rows=8, step_tokens=512)


def prompts_of(rng: random.Random, count: int, longest: int) -> list[list[int]]:
    """Many begin alike."""
    stems = [[rng.randrange(VOCAB) for _ in range(longest)] for _ in range(2)]
    fresh = [[rng.randrange(VOCAB) for _ in range(rng.randint(1, longest))] for _ in range(count)]
    prompts = [
        (rng.choice(stems)[: rng.randint(0, longest - 1)] + ids)[:longest] if rng.random() < 0.6 else ids
        for ids in fresh
    ]
    return [rng.choice(prompts) for _ in prompts] if rng.random() < 0.3 else prompts


def guesser(rng: random.Random) -> Callable[[Row], tuple[int, ...]]:
    """Guesses that are sometimes right."""

    def guess(row: Row) -> tuple[int, ...]:
        ids = expected(row.tokens, rng.randint(0, 4))
        return tuple(id if rng.random() < 0.7 else (id + 1) % VOCAB for id in ids)

    return guess


@st.composite
def devices(draw: st.DrawFn) -> tuple[PaperDevice, int]:
    """Any device on which a sequence of 48 tokens fits, and a seed."""
    size = draw(st.sampled_from([1, 3, 4, 8]))
    seed = draw(st.integers(0, 2**32))
    kind = draw(st.sampled_from(["plain", "plain", "window", "state", "guessing"]))
    limits = PlanLimits(
        rows=draw(st.integers(1, 6)),
        step_tokens=draw(st.sampled_from([4, 9, 40, 512])),
        chunk_tokens=draw(st.sampled_from([7, 16, 512])),
        forward_rows=1 if kind == "state" else draw(st.sampled_from([2, 8])),
    )
    device = PaperDevice(
        blocks=-(-48 // size) + 1 + draw(st.integers(0, 60 // size)),
        block_tokens=size,
        limits=limits,
        prefix=draw(st.booleans()),
        window=draw(st.sampled_from([1, 5, 12])) if kind == "window" else None,
        snapshots=draw(st.integers(0, 5)) if kind == "state" else None,
        guess=guesser(random.Random(seed)) if kind == "guessing" else None,
    )
    return device, seed


@settings(max_examples=200, deadline=None)
@given(devices())
def test_whatever_happens_a_row_says_what_it_says_alone(made: tuple[PaperDevice, int]) -> None:
    device, seed = made
    rng = random.Random(seed)
    asked = [(ids, rng.randint(1, 48 - len(ids))) for ids in prompts_of(rng, 10, 40)]
    todo, cancelled = list(enumerate(asked)), set()
    while todo or device.rows:
        for _ in range(min(len(todo), rng.randint(0, 3))):
            number, (ids, draws) = todo.pop()
            device.add(str(number), ids, draws=draws, priority=rng.choice([0, 0, 1]))
        if device.rows and rng.random() < 0.05:
            victim = rng.choice(list(device.rows))
            cancelled.add(victim)
            device.remove(victim)
        device.step()
    for number, (ids, draws) in enumerate(asked):
        said, whole = device.said[str(number)], expected(ids, draws)
        assert said == (whole[: len(said)] if str(number) in cancelled else whole)
    assert device.pool.used_blocks == 0


def test_20000_operations_leave_no_block_behind() -> None:
    rng = random.Random(20_000)
    device = PaperDevice(blocks=40, block_tokens=4, limits=PlanLimits(rows=6, step_tokens=24, chunk_tokens=16))
    number = 0
    for _ in range(20_000):
        dice = rng.random()
        if dice < 0.10 and len(device.rows) < 10:
            [ids] = prompts_of(rng, 1, 40)
            device.add(str(number), ids, draws=rng.randint(1, 60), priority=rng.choice([0, 1]))
            number += 1
        elif dice < 0.12 and device.rows:
            device.remove(rng.choice(list(device.rows)))
        else:
            device.step()
    assert device.planner.preemptions_total > 50
    assert device.prefix.hit_tokens_total > 1000
    device.run()
    assert device.pool.free_blocks == 39


def device_of(blocks: int = 1000, **changes: object) -> PaperDevice:
    limits = PlanLimits(**{"rows": 8, "step_tokens": 512, **changes})  # type: ignore[arg-type]
    return PaperDevice(blocks=blocks, block_tokens=16, limits=limits)


def ids_of(seed: int, count: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(VOCAB) for _ in range(count)]


def steps_until_first_token(device: PaperDevice, *ids: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for step in range(1, 200):
        device.step()
        for id in ids:
            if device.said[id]:
                found.setdefault(id, step)
        if len(found) == len(ids):
            break
    return found


def test_a_short_prompt_does_not_wait_for_the_end_of_a_long_one() -> None:
    device = device_of()
    device.add("long", ids_of(1, 4000), draws=2)
    device.step()
    device.add("short", ids_of(2, 100), draws=2)
    steps = steps_until_first_token(device, "long", "short")
    assert steps["short"] == 2  # one step reads and draws, the next reports
    assert steps["long"] >= 8


def test_lower_lanes_read_nothing_while_a_higher_one_waits_for_its_first_token() -> None:
    device = device_of()
    device.add("low", ids_of(1, 4000), draws=2)
    device.step()
    device.add("high", ids_of(2, 100), draws=2, priority=1)
    device.step()
    assert (device.rows["low"].computed, device.rows["high"].computed) == (512, 100)
    device.step()  # in which the high one's token is read
    assert device.rows["low"].computed == 512
    assert len(device.said["high"]) == 1
    device.step()
    assert device.rows["low"].computed == 1024


def test_lower_lanes_wait_for_a_few_steps_at_most() -> None:
    device = device_of(rows=64)
    device.add("low", ids_of(1, 2000), draws=1)
    device.step()
    seen = [device.rows["low"].computed]
    for number in range(20):  # a higher one comes with every step
        device.add(f"high{number}", ids_of(10 + number, 100), draws=1, priority=1)
        device.step()
        seen.append(device.rows["low"].computed)
    moves = [place for place, (before, after) in enumerate(pairwise(seen)) if after > before]
    assert moves == [4, 9, 14, 19]


def test_choices_of_one_prompt_read_it_once_to_its_last_token() -> None:
    device = device_of(rows=20)
    prompt = ids_of(1, 1000)  # 62 blocks and 8 tokens
    for choice in range(16):
        device.add(str(choice), prompt, draws=5)
    device.run()
    assert device.computed_tokens == 999 + 16 * 5


def test_an_end_that_was_copied_is_neither_shared_nor_kept_for_others() -> None:
    device = device_of()
    prompt = ids_of(1, 40)
    device.add("first", prompt, draws=9)
    device.step()
    device.add("second", prompt, draws=2)
    [copied] = device.step().copied
    first, second = device.rows["first"], device.rows["second"]
    assert copied == (first.table[2], second.table[2], 7)
    assert first.table[:2] == second.table[:2]
    device.run()
    device.add("third", prompt, draws=2)
    device.step()
    assert device.rows["third"].computed == 40
    assert device.computed_tokens == 39 + 9 + 2 + 7 + 1


def test_the_end_of_a_prompt_is_not_copied_from_a_row_that_left_before_it_was_handed_over() -> None:
    device = device_of()
    prompt = ids_of(1, 40)
    device.add("first", prompt, draws=9)
    plan = device.planner.plan()
    device._execute(plan)
    device.remove("first")
    device.planner.settle(plan)
    device.add("second", prompt, draws=2)
    assert not device.step().copied
    device.run()


def test_of_two_states_kept_in_one_place_in_one_step_the_one_that_is_found_is_written() -> None:
    limits = PlanLimits(rows=4, step_tokens=64, forward_rows=1)
    device = PaperDevice(blocks=50, block_tokens=4, limits=limits, snapshots=1)
    short, long = ids_of(1, 9), ids_of(2, 17)
    device.add("short", short, draws=2)
    device.add("long", long, draws=2)  # is read first, being longer, but has the only place last
    device.run()
    device.add("again", [*long, 5, 6], draws=2)
    device.run()
    assert device.said["again"] == expected([*long, 5, 6], 2)
    assert device.prefix.hit_tokens_total == 16


def test_long_prompts_progress_together() -> None:
    device = device_of()
    for name in "abc":
        device.add(name, ids_of(ord(name), 2000), draws=1)
    for _ in range(4):
        device.step()
    assert device.rows["a"].computed == device.rows["b"].computed == 4 * 256
    steps = steps_until_first_token(device, "a", "b", "c")
    assert max(steps.values()) <= 10  # 6,000 tokens at 512 a step take twelve, of which four are done


def test_decoding_rows_are_part_of_the_budget_and_never_wait() -> None:
    device = device_of(rows=40, step_tokens=128)
    for number in range(32):
        device.add(f"d{number}", ids_of(number, 1), draws=50)
    device.step()
    device.add("long", ids_of(99, 1000), draws=1)
    for _ in range(5):
        plan = device.step()
        assert len(plan.decode) == 32
        assert [chunk.tokens for forward in plan.forwards for chunk in forward] == [96]


def test_prompts_that_begin_alike_compute_the_beginning_once() -> None:
    device = device_of(rows=32)
    stem = ids_of(7, 1024)
    for number in range(32):
        device.add(str(number), stem + ids_of(100 + number, 30), draws=4)
    device.run()
    assert device.computed_tokens == 1024 + 32 * (30 + 3)
    assert device.prefix.hit_tokens_total == 31 * 1024
    assert device.prefix.looked_up_tokens_total == 32 * 1040


def test_a_beginning_is_found_again_after_its_row_has_gone() -> None:
    device = device_of()
    device.add("first", ids_of(1, 100), draws=60)
    device.run()
    whole = ids_of(1, 100) + device.said["first"]
    device.add("second", [*whole, 5], draws=1)
    device.step()
    assert device.prefix.hit_tokens_total == 159 // 16 * 16  # all that was computed, but the incomplete last block


def test_whoever_is_deferred_goes_on_when_the_other_is_cancelled() -> None:
    device = device_of()
    for name in ("a", "b"):
        device.add(name, ids_of(1, 2000), draws=1)
    device.step()
    assert (device.rows["a"].computed, device.rows["b"].computed) == (512, 0)
    device.remove("a")
    device.step()
    assert device.rows["b"].computed == 1024


def test_when_blocks_run_out_the_youngest_of_the_lowest_priority_loses_its_place() -> None:
    device = device_of(blocks=1 + 12)
    for name, priority in (("old", 0), ("young", 0), ("important", 1)):
        device.add(name, ids_of(ord(name[0]), 40), draws=50, priority=priority)
    lost: list[str] = []
    while device.rows:
        lost += [row.id for row in device.step().preempted]
    assert lost[0] == "young"
    assert "important" not in lost
    for name in ("old", "young", "important"):
        assert device.said[name] == expected(ids_of(ord(name[0]), 40), 50)


def test_a_preempted_row_comes_before_younger_ones_and_finds_its_blocks() -> None:
    device = device_of(blocks=1 + 12, rows=3)
    for name in ("a", "b"):
        device.add(name, ids_of(ord(name), 64), draws=100)
    device.add("c", ids_of(3, 16), draws=90)
    order: list[str] = []
    while device.rows:
        order += [row.id for row in device.step().joined]
    assert order.index("b", 2) < order.index("c", order.index("b", 2))
    assert device.prefix.hit_tokens_total > 0


def test_a_prompt_begins_only_when_its_blocks_are_sure() -> None:
    device = device_of(blocks=1 + 20)
    device.add("a", ids_of(1, 200), draws=9)
    device.add("b", ids_of(2, 200), draws=9)
    device.step()
    assert [row.id for row in device.planner.decoding] == ["a"]
    assert list(device.planner.waiting) == ["b"]
    device.run()
    assert device.planner.preemptions_total == 0


def test_a_cancelled_row_gives_its_blocks_back_at_once_in_every_phase() -> None:
    device = device_of(rows=2, step_tokens=64)
    for name, tokens in (("decoding", 10), ("reading", 1000), ("waiting", 10)):
        device.add(name, ids_of(1, tokens), draws=99)
    device.step()
    phases = {name: row.phase for name, row in device.rows.items()}
    assert phases == {"decoding": Phase.DECODING, "reading": Phase.READING, "waiting": Phase.WAITING}
    for name in ("waiting", "reading", "decoding"):
        device.remove(name)
    assert device.pool.used_blocks == 0
    device.step()
    assert device.pool.free_blocks == 999


def test_a_row_that_ends_by_length_is_not_computed_again() -> None:
    device = device_of()
    device.add("p", ids_of(1, 33), draws=5)
    device.run()
    assert device.computed_tokens == 33 + 4


def test_blocks_that_fell_out_of_the_window_are_given_back() -> None:
    device = PaperDevice(blocks=60, block_tokens=16, limits=LIMITS, window=64)
    device.add("p", ids_of(1, 600), draws=300)
    used = []
    while device.rows:
        device.step()
        used.append(device.pool.used_blocks)
    assert max(used) <= 600 // 16 + 1
    assert max(used[3:-2]) <= 64 // 16 + 2
    device.add("again", ids_of(1, 600), draws=1)
    device.step()
    assert device.prefix.hit_tokens_total == 592
    assert device.rows["again"].table[:33] == [NULL_BLOCK] * 33


def test_a_recurrent_model_goes_on_from_a_snapshot() -> None:
    device = PaperDevice(
        blocks=200, block_tokens=16, limits=PlanLimits(rows=4, step_tokens=512, forward_rows=1), snapshots=3
    )
    stem = ids_of(1, 700)
    device.add("first", stem, draws=3)
    device.run()
    before = device.computed_tokens
    device.add("second", stem + ids_of(2, 50), draws=3)
    device.run()
    assert device.computed_tokens - before == (700 - 688) + 50 + 2  # from the last block border of the first prompt
