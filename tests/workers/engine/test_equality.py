"""Every architecture on every back end says what mlx-lm says alone, whatever else is going on in the engine.

`FARM_TEST_EXAMPLES` sets how many random courses of events each architecture has to stand (two otherwise); a failing
one prints its seed, and in CI they are always the same.
"""

import gc
import os
import random
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.workers.engine.architectures import ARCHITECTURES, reference
from tests.workers.engine.courses import Course, Make, Sizes, advance, draw_sizes, ids, open_engine, play, prompts, run
from workers.engine import FinishReason, UnsupportedModel
from workers.engine.paged.drafts import MOST_DRAFTS
from workers.engine.paged.rows import Row
from workers.engine.paged.speculation import Cover, Speculation

BACKENDS = ("paged", "batch", "serial")
EXAMPLES = int(os.environ.get("FARM_TEST_EXAMPLES", "2"))
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
NOT_BATCHED = ("gemma2", "llama4", "minimax_m3_vl")
AUTO = {
    "qwen3_moe": "paged",
    "gemma2": "paged",
    "mamba": "paged",
    "jamba": "paged",
    "llama4": "serial",
    "deepseek_v32": "batch",
    "recurrent_gemma": "batch",
    "minimax_m3_vl": "serial",
}


def stand(name: str, backend: str, prompt: Make, seed: int) -> None:
    """One random course of events, drawn from `seed`."""
    dice = random.Random(seed)
    sizes = draw_sizes(dice)
    engine = open_engine(name, backend, sizes)
    course = play(engine, dice.sample(prompts(prompt), 7), dice)
    assert course.differences(name) == [], sizes
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.prefilling, stats.kv_bytes) == (0, 0, {}, 0)


@pytest.mark.parametrize("name", ARCHITECTURES)
@settings(max_examples=EXAMPLES, deadline=None, phases=PHASES)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_paged_sequence_says_what_mlx_lm_says_alone(name: str, prompt: Make, seed: int) -> None:
    stand(name, "paged", prompt, seed)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in NOT_BATCHED])
@settings(max_examples=max(1, EXAMPLES // 2), deadline=None, phases=PHASES)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_batched_sequence_says_what_mlx_lm_says_alone(name: str, prompt: Make, seed: int) -> None:
    stand(name, "batch", prompt, seed)


@pytest.mark.parametrize("name", ["llama", "gemma2", "mamba"])
@settings(max_examples=max(1, EXAMPLES // 2), deadline=None, phases=PHASES)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_serial_sequence_says_what_mlx_lm_says_alone(name: str, prompt: Make, seed: int) -> None:
    stand(name, "serial", prompt, seed)


@pytest.mark.parametrize(("name", "backend"), AUTO.items())
def test_the_back_end_that_is_chosen_by_itself_serves_the_model_rightly(name: str, backend: str, prompt: Make) -> None:
    """What no batch serves rightly included."""
    engine = open_engine(name, "auto", Sizes(rows=4, chunk_tokens=64, block_tokens=8, blocks=80))
    assert engine.backend.startswith(f"{backend}:")
    assert run(engine, prompts(prompt)[:8]).differences(name) == []


@pytest.mark.parametrize("name", NOT_BATCHED)
def test_what_mlx_lm_batches_wrongly_is_refused_there(name: str) -> None:
    with pytest.raises(UnsupportedModel):
        open_engine(name, "batch", Sizes(rows=4, chunk_tokens=64, block_tokens=8, blocks=80))


class RashSpeculation(Speculation):
    """Guesses all the time, whether it pays or not: what comes (the reference knows it), nonsense, or some of each."""

    def __init__(self, name: str, dice: random.Random) -> None:
        super().__init__()
        self._name, self._dice = name, dice

    def pays(self, rows: Sequence[Row]) -> bool:
        return bool(rows)

    def guess(self, rows: Sequence[Row], cover: Cover) -> None:
        for row in rows:
            coming = reference(self._name).tokens(row.prompt)[len(row.output_ids) :]
            length = min(self._dice.randint(1, MOST_DRAFTS), row.draws_left - 1, len(coming))
            wrong_from = self._dice.choice((0, 1, 3, MOST_DRAFTS))
            row.drafts = (*coming[: min(length, wrong_from)], *ids(self._dice, max(0, length - wrong_from)))


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma2", "gemma3", "gpt_oss", "exaone", "deepseek_v2"])
@settings(max_examples=EXAMPLES, deadline=None, phases=PHASES)
@given(seed=st.integers(0, 2**32 - 1))
def test_right_and_wrong_guesses_at_coming_tokens_change_nothing(name: str, prompt: Make, seed: int) -> None:
    dice = random.Random(seed)
    sizes = draw_sizes(dice)
    engine = open_engine(name, "paged", sizes)
    engine._runner._speculation = RashSpeculation(name, dice)  # type: ignore[attr-defined]
    course = play(engine, dice.sample(prompts(prompt), 7), dice)
    assert course.differences(name) == [], sizes
    stats = engine.stats()
    assert stats.used_blocks == 0
    assert sum(stats.drafted_tokens_total.values()) > 0


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss", "deepseek_v2"])
def test_rows_of_very_unlike_lengths_and_rows_with_a_long_common_prefix_share_a_step(name: str, prompt: Make) -> None:
    """Long enough that rows are attended in groups, and a common prefix once for all."""
    dice = random.Random(2)
    base = ids(dice, 70)
    contents = [ids(dice, 330), ids(dice, 5), ids(dice, 200), *(base + ids(dice, 2 * i) for i in range(4))]
    asked = [prompt(str(i), token_ids=content, max_tokens=12) for i, content in enumerate(contents)]
    engine = open_engine(name, "paged", Sizes(rows=8, chunk_tokens=128, block_tokens=16, blocks=60))
    assert run(engine, asked).differences(name) == []


@pytest.mark.parametrize("name", ["llama", "gemma3", "deepseek_v3", "jamba"])
def test_rows_that_lost_their_blocks_or_slots_say_the_same(name: str, prompt: Make) -> None:
    dice = random.Random(3)
    asked = [prompt(str(i), token_ids=ids(dice, 20), max_tokens=24, seed=i, temperature=i % 2) for i in range(6)]
    engine = open_engine(name, "paged", Sizes(rows=6, chunk_tokens=16, block_tokens=4, blocks=40))
    assert run(engine, asked).differences(name) == []
    stats = engine.stats()
    assert stats.preemptions_total > 0
    assert stats.used_blocks == 0


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "deepseek_v2", "jamba"])
def test_a_prefix_that_was_found_says_the_same_as_one_that_was_computed(name: str, prompt: Make) -> None:
    dice = random.Random(4)
    base = ids(dice, 40)
    engine = open_engine(name, "paged", Sizes(rows=4, chunk_tokens=16, block_tokens=8, blocks=100))
    first = run(engine, [prompt("first", token_ids=base, max_tokens=8)])
    before = engine.stats().prefix_hit_tokens_total
    again = [prompt(str(i), token_ids=base[:32] + ids(dice, i), max_tokens=8) for i in range(1, 5)]
    again.append(prompt("same", token_ids=base, max_tokens=8))
    assert first.differences(name) + run(engine, again).differences(name) == []
    assert engine.stats().prefix_hit_tokens_total - before >= 5 * 16


@pytest.mark.parametrize("name", ["llama", "gemma3", "exaone", "deepseek_v2"])
def test_a_prefix_from_disk_says_the_same_even_if_files_are_torn(name: str, prompt: Make, tmp_path: Path) -> None:
    """Three engines, one after the other, on one folder; before the third, every other file is cut or changed."""
    dice = random.Random(11)
    sizes = Sizes(rows=4, chunk_tokens=32, block_tokens=8, blocks=70)
    hit_blocks = []
    for turn in range(3):
        engine = open_engine(name, "paged", sizes, tmp_path)
        course = play(engine, prompts(prompt)[:8], dice)
        assert course.differences(name) == []
        engine.close()
        hit_blocks.append(engine.stats().disk_hit_blocks_total)
        if turn == 1:
            files = sorted(path for path in (tmp_path / "blocks").rglob("*") if path.is_file())
            assert files
            for index, path in enumerate(files[::2]):
                content = path.read_bytes()
                middle = len(content) // 2
                path.write_bytes(content[:middle] + (b"" if index % 2 else b"torn") + content[middle + 4 :])
    assert hit_blocks[0] == 0
    assert hit_blocks[1] > 0


def test_only_blocks_behind_the_same_tokens_are_found(prompt: Make) -> None:
    """Blocks of equal content at other positions, in another order, shifted by one token, behind another beginning."""
    dice = random.Random(5)
    a, b, c = (ids(dice, 8) for _ in range(3))
    tail = ids(dice, 3)
    engine = open_engine("llama", "paged", Sizes(rows=4, chunk_tokens=64, block_tokens=8, blocks=200))
    found_tokens = {
        a + b + c + tail: 0,
        b + a + c + tail: 0,
        c + c + c + tail: 0,
        a + c + b + tail: 8,
        (a[0] % 159 + 1, *a[1:], *b, *c, *tail): 0,
        (1, *a, *b, *c): 0,
        a[1:] + b + c + tail: 0,
        a + b + tail: 16,
        a + b + c: 16,  # its last token has to be computed
        b + a: 8,
    }
    for index, (content, expected) in enumerate(found_tokens.items()):
        before = engine.stats().prefix_hit_tokens_total
        course = run(engine, [prompt(str(index), token_ids=content, max_tokens=6)])
        assert course.differences("llama") == []
        assert engine.stats().prefix_hit_tokens_total - before == expected, index


def test_a_cancel_in_any_step_disturbs_nobody_and_leaves_nothing(prompt: Make) -> None:
    dice = random.Random(6)
    engine = open_engine("llama", "paged", Sizes(rows=3, chunk_tokens=8, block_tokens=4, blocks=50))
    for step in range(16):
        asked = [prompt(f"{step}-{i}", token_ids=ids(dice, 4 + 9 * i), max_tokens=9) for i in range(4)]
        course, victim = Course(asked={each.id: each for each in asked}), asked[step % 4].id
        for each in asked:
            engine.submit(each)
        for done in range(200):
            if done == step:
                engine.cancel(victim)
            if not engine.has_work:
                break
            advance(engine, course)
        assert set(course.ended) == set(course.asked)
        assert course.differences("llama") == []
        assert {id for id, reason in course.ended.items() if reason is FinishReason.CANCELLED} <= {victim}
        assert engine.stats().used_blocks == 0


@pytest.mark.parametrize(("name", "backend"), [*product(["llama"], BACKENDS), ("gemma3", "paged"), ("jamba", "paged")])
def test_memory_returns_to_its_base_line(name: str, backend: str, prompt: Make) -> None:
    dice = random.Random(8)
    engine = open_engine(name, backend, Sizes(rows=4, chunk_tokens=16, block_tokens=8, blocks=40))
    active_bytes = []
    for turn in range(4):
        course = run(engine, [prompt(f"{turn}-{i}", token_ids=ids(dice, 30), max_tokens=8) for i in range(6)])
        assert course.differences(name) == []
        gc.collect()
        mx.clear_cache()
        stats = engine.stats()
        assert (stats.kv_bytes, stats.used_blocks) == (0, 0)
        active_bytes.append(mx.get_active_memory())
    # The first turns make what is kept for all that follow: pools of recurrent state, and snapshots to go on from.
    assert active_bytes[-1] - active_bytes[1] <= 16_384, active_bytes


def test_damage_to_one_block_is_seen_in_the_row_that_has_it_and_only_there(prompt: Make) -> None:
    """The mutation that proves the comparisons: overwrite one block of the pool while its row decodes."""
    dice = random.Random(9)
    asked = [prompt(str(i), token_ids=ids(dice, 20), max_tokens=16) for i in range(3)]
    engine = open_engine("llama", "paged", Sizes(rows=4, chunk_tokens=64, block_tokens=8, blocks=40))
    course = Course(asked={each.id: each for each in asked})
    for each in asked:
        engine.submit(each)
    while not course.said.get("1"):
        advance(engine, course)
    runner = engine._runner  # type: ignore[attr-defined]
    block = runner._rows["1"].table[0]
    content = runner._model.read_blocks([block])
    runner._model.write_blocks([block], {name: -array for name, array in content.items()})
    while engine.has_work:
        advance(engine, course)
    wrong = course.differences("llama")
    assert len(wrong) == 1
    assert wrong[0].startswith("1:")
