"""The paged runner on a tiny model: its steps, its memory, and what it says whatever happens around a row."""

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import make_prompt_cache

from tests.workers.engine.paged.driven_rows import Rows, Said, alone, ids
from workers.engine import InvalidPrompt, LoadedModel, Prompt
from workers.engine.engine import SequenceEngine
from workers.engine.guided import Grammar, GrammarKind, GuideCompiler
from workers.engine.paged.chunks import PlanLimits
from workers.engine.paged.store import PrefixStore

import mlx.core as mx  # isort: skip

Make = Callable[..., Prompt]


def asked_of(make: Make, rng: random.Random, count: int) -> list[Prompt]:
    """Prompts of which many begin alike, and repeat themselves."""
    stems = [ids(rng, 40) for _ in range(2)]
    asked: list[Prompt] = []
    for number in range(count):
        own = ids(rng, rng.choice((1, 2, 7, 8, 9, 30))) * rng.choice((1, 1, 3))
        content = tuple(rng.choice(stems)[: rng.choice((8, 16, 40))] + own if rng.random() < 0.5 else own)
        if asked and rng.random() < 0.3:  # one more choice
            content = asked[-1].token_ids
        drawn = {"temperature": 1.0, "seed": number} if rng.random() < 0.4 else {}
        asked.append(
            make(
                str(number),
                token_ids=content,
                max_tokens=rng.choice((1, 2, 9, 40)),
                priority=rng.randint(0, 1),
                **drawn,
            )
        )
    return asked


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    block_tokens=st.sampled_from([1, 4, 16]),
    spare_blocks=st.sampled_from([1, 8, 100]),
    step_tokens=st.sampled_from([7, 40, 512]),
    rows=st.integers(1, 7),
    shares=st.booleans(),
    speculates=st.booleans(),
)
def test_a_row_says_what_it_says_alone(
    loaded: LoadedModel,
    prompt: Make,
    seed: int,
    block_tokens: int,
    spare_blocks: int,
    step_tokens: int,
    rows: int,
    shares: bool,
    speculates: bool,
) -> None:
    """Greedy: in mlx-lm's own loop. Drawn: in a runner of its own, without anything that could go wrong."""
    rng = random.Random(seed)
    asked = asked_of(prompt, rng, 9)
    limits = PlanLimits(rows=rows, step_tokens=step_tokens)
    blocks = 180 // block_tokens + 1 + spare_blocks
    options = {"shares_prefixes": shares, "speculates": speculates}
    together = Rows(loaded, blocks=blocks, block_tokens=block_tokens, limits=limits, **options)
    todo, cancelled = list(asked), set()
    while todo or together.sequences:
        for _ in range(min(len(todo), rng.randint(0, 3))):
            together.insert(todo.pop())
        if together.sequences and rng.random() < 0.03:
            victim = rng.choice(list(together.sequences))
            cancelled.add(victim)
            together.remove(victim)
        together.step()
    single = Rows(loaded, limits=PlanLimits(rows=1, step_tokens=512), shares_prefixes=False, speculates=False)
    for each in asked:
        if each.sampling.temperature:
            single.insert(each)
    drawn = single.run()
    for each in asked:
        whole = drawn[each.id] if each.sampling.temperature else alone(loaded, each)
        said = together.said[each.id]
        assert said == (whole[: len(said)] if each.id in cancelled else whole)
    stats = together.runner.stats()
    assert (stats.used_blocks, stats.kv_bytes, stats.waiting) == (0, 0, 0)
    assert together.runner._pool.free_blocks == blocks - 1


def test_rows_that_are_preempted_say_nothing_twice(loaded: LoadedModel, prompt: Make) -> None:
    rng = random.Random(1)
    asked = [prompt(str(i), token_ids=ids(rng, 20), max_tokens=60, temperature=i % 2, seed=i) for i in range(5)]
    tight, roomy = (Rows(loaded, blocks=blocks) for blocks in (22, 200))
    for rows in (tight, roomy):
        rows.insert(*asked)
    assert tight.run() == roomy.run()
    stats = tight.runner.stats()
    assert stats.preemptions_total > 2
    assert stats.prefix_hit_tokens_total > 0


def test_a_row_that_ends_by_length_is_computed_once_and_one_that_ends_by_a_token_once_more(
    loaded: LoadedModel, prompt: Make
) -> None:
    rows = Rows(loaded, speculates=False)
    rows.insert(prompt("length", max_tokens=9))
    free = rows.run()["length"]
    assert rows.runner.stats().wasted_rows_total == 0
    stop = next(token for index, token in enumerate(free) if index > 1 and token not in free[:index])
    rows.insert(prompt("stop", max_tokens=40, stop_ids=(stop,)), prompt("other", "a", max_tokens=30))
    said = rows.run()["stop"]
    assert said == free[: free.index(stop) + 1]
    assert rows.runner.stats().wasted_rows_total == 1


def test_repeated_text_comes_out_in_fewer_steps_and_is_the_same(loaded: LoadedModel, prompt: Make) -> None:
    """A bias makes the model repeat itself, whatever its weights."""
    bias = tuple((token, 60.0) for token in (40, 41))
    asked = [
        prompt(str(i), token_ids=(40, 41) * 9, max_tokens=60, logit_bias=bias, logprobs=i % 2, temperature=i % 2 / 2)
        for i in range(4)
    ]
    steps = {}
    said = {}
    for speculates in (False, True):
        rows = Rows(loaded, speculates=speculates)
        rows.insert(*asked)
        steps[speculates] = 0
        while rows.sequences:
            rows.step()
            steps[speculates] += 1
        said[speculates] = rows.said
        stats = rows.runner.stats()
        drafted, right = (sum(counts.values()) for counts in (stats.drafted_tokens_total, stats.right_drafts_total))
        assert (right > 0, drafted >= right) == (speculates, True)
    assert said[True] == said[False]
    assert steps[True] < 0.8 * steps[False]


def test_a_row_obeys_its_grammar_among_rows_without_one(loaded: LoadedModel, prompt: Make) -> None:
    info = loaded.info
    compiler = GuideCompiler(loaded.vocabulary.tokenizer, info.vocab_size, info.eos_token_ids)
    engine = SequenceEngine(loaded, Rows(loaded, blocks=100, guides=compiler).runner, max_waiting=20, guides=compiler)
    grammar = Grammar(GrammarKind.REGEX, "[ab]{3}(cd|ef){2}-[0-9]{4}")
    for seed in range(4):
        engine.submit(prompt(f"g{seed}", temperature=1.0, seed=seed, max_tokens=40, ignore_eos=False, grammar=grammar))
        engine.submit(prompt(f"free{seed}", temperature=1.0, seed=seed, max_tokens=20))
    texts: dict[str, str] = {}
    token_ids: Said = {}
    while engine.has_work:
        for chunk in engine.step():
            texts[chunk.prompt_id] = texts.get(chunk.prompt_id, "") + chunk.text
            token_ids.setdefault(chunk.prompt_id, []).extend(chunk.token_ids)
    for seed in range(4):
        text = texts[f"g{seed}"]
        assert len(text) == 12
        assert set(text[:3]) <= {"a", "b"}
        assert text[3:7] in {"cdcd", "cdef", "efcd", "efef"}
        assert text[7] == "-"
        assert text[8:].isdecimal()
    resumed = tuple(token_ids["g0"][:5])
    engine.submit(prompt("g0", temperature=1.0, max_tokens=40, ignore_eos=False, grammar=grammar, resume_ids=resumed))
    again: list[int] = []
    while engine.has_work:
        again += [token for chunk in engine.step() for token in chunk.token_ids]
    assert [*resumed, *again] == token_ids["g0"]


def test_a_grammar_that_cannot_be_obeyed_is_refused(loaded: LoadedModel, prompt: Make) -> None:
    info = loaded.info
    compiler = GuideCompiler(loaded.vocabulary.tokenizer, info.vocab_size, info.eos_token_ids)
    runner = Rows(loaded, guides=compiler).runner
    engine = SequenceEngine(loaded, runner, max_waiting=20, guides=compiler)
    with pytest.raises(InvalidPrompt, match="regex"):
        engine.submit(prompt("p", ignore_eos=False, grammar=Grammar(GrammarKind.REGEX, "(")))
    digits = Grammar(GrammarKind.REGEX, "[0-9]+")
    with pytest.raises(InvalidPrompt, match="does not fit"):
        engine.submit(prompt("p", ignore_eos=False, grammar=digits, resume_ids=tuple(prompt(text="a").token_ids)))
    assert not engine.has_work
    without = SequenceEngine(loaded, Rows(loaded).runner, max_waiting=20, backend="paged")
    with pytest.raises(InvalidPrompt, match="cannot follow a grammar"):
        without.submit(prompt("p", ignore_eos=False, grammar=Grammar(GrammarKind.JSON_OBJECT)))


@pytest.fixture
def poisoned(loaded: LoadedModel) -> Iterable[int]:
    """A token whose embedding is not a number."""
    weight = loaded.model.model.embed_tokens.weight
    loaded.model.model.embed_tokens.weight = mx.where(mx.arange(weight.shape[0])[:, None] == 7, mx.nan, weight)
    yield 7
    loaded.model.model.embed_tokens.weight = weight


@pytest.mark.parametrize("shares", [False, True])
def test_blocks_of_a_row_that_failed_do_not_spoil_the_next_ones(
    loaded: LoadedModel, prompt: Make, poisoned: int, shares: bool
) -> None:
    """The pool is so small that they get the same blocks, and are padded to each other: NaN times zero is NaN."""
    rng = random.Random(4)
    rows = Rows(loaded, blocks=9, shares_prefixes=shares)
    rows.insert(prompt("sick", token_ids=(poisoned,) * 60, max_tokens=4))
    rows.run()
    assert list(rows.errors) == ["sick"]
    healthy = [
        prompt(str(count), token_ids=tuple(token + 8 for token in ids(rng, 250) if token < 200)[:count], max_tokens=9)
        for count in (3, 10, 22)
    ]
    rows.insert(*healthy)
    said = rows.run()
    assert list(rows.errors) == ["sick"]
    assert all(said[each.id] == alone(loaded, each) for each in healthy)


def test_a_prompt_that_never_fits_is_refused_and_the_pool_is_a_bound_like_the_context(
    loaded: LoadedModel, prompt: Make
) -> None:
    engine = SequenceEngine(loaded, Rows(loaded, blocks=6).runner, max_waiting=9)
    assert engine.context_tokens == 40
    with pytest.raises(InvalidPrompt, match="40 prompt tokens never fit a cache of 40 tokens"):
        engine.submit(prompt("p", token_ids=(1,) * 40))
    engine.submit(prompt("p", token_ids=(1,) * 39, max_tokens=9))
    chunks = [chunk for _ in range(5) for chunk in engine.step()]
    assert [(len(chunk.token_ids), chunk.finish_reason) for chunk in chunks] == [(1, "length")]


def test_a_step_needs_no_memory_of_the_pools_size(loaded: LoadedModel, prompt: Make) -> None:
    """A pool that were copied would show."""
    rows = Rows(loaded, blocks=20_000, limits=PlanLimits(rows=4, step_tokens=64))
    rng = random.Random(5)
    rows.insert(*(prompt(str(i), token_ids=ids(rng, 60), max_tokens=40) for i in range(3)))
    for _ in range(3):
        rows.step()
    pool_bytes = rows.model.block_bytes * rows.model.blocks
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    rows.insert(prompt("late", token_ids=ids(rng, 150), max_tokens=20))
    rows.run()
    assert mx.get_peak_memory() - before < pool_bytes / 8


def test_what_is_held_and_done_is_told(loaded: LoadedModel, prompt: Make) -> None:
    rows = Rows(loaded, limits=PlanLimits(rows=2, step_tokens=32))
    rng = random.Random(6)
    rows.insert(*(prompt(str(i), token_ids=ids(rng, 80), max_tokens=3) for i in range(3)))
    rows.step()
    stats = rows.runner.stats()
    assert (stats.backend, stats.waiting, stats.total_blocks) == ("paged", 1, 59)
    assert {id: total for id, (_, total) in stats.prefilling.items()} == {"0": 80, "1": 80}
    assert 0 < sum(done for done, _ in stats.prefilling.values()) <= 32
    assert stats.kv_bytes == stats.used_blocks * rows.model.block_bytes > 0
    rows.run()
    rows.insert(prompt("again", token_ids=prompt("0", token_ids=ids(random.Random(6), 80)).token_ids, max_tokens=1))
    rows.run()
    stats = rows.runner.stats()
    assert stats.prompt_tokens_total == 4 * 80
    assert (stats.prefix_hit_tokens_total, stats.prefix_looked_up_tokens_total) == (72, 4 * 72)
    assert stats.cached_blocks >= 30
    assert min(stats.plan_ms_total, stats.forward_ms_total, stats.sample_ms_total) > 0


def test_prompts_with_other_salts_find_nothing_of_each_other(loaded: LoadedModel, prompt: Make) -> None:
    rows = Rows(loaded, limits=PlanLimits(rows=1, step_tokens=64))
    token_ids = ids(random.Random(8), 40)
    hits, said = [], []
    for name, salt in (("0", ""), ("1", "a"), ("2", "b"), ("3", "a"), ("4", "")):
        before = rows.runner.stats().prefix_hit_tokens_total
        rows.insert(replace(prompt(name, token_ids=token_ids, max_tokens=4), cache_salt=salt))
        rows.run()
        hits.append(rows.runner.stats().prefix_hit_tokens_total - before > 0)
        said.append(rows.said[name])
    assert hits == [False, False, False, True, True]
    assert said == [said[0]] * 5


def test_a_prompt_that_is_about_to_be_read_does_not_hold_up_the_others_tokens(
    loaded: LoadedModel, prompt: Make
) -> None:
    """It is handed to the device after they are out; if it is cancelled just then, nothing remains of it."""
    rng = random.Random(9)
    asked = prompt("decoding", token_ids=ids(rng, 20), max_tokens=30)
    long = prompt("long", token_ids=ids(rng, 200), max_tokens=3)
    again = prompt("again", token_ids=(*long.token_ids[:60], 5), max_tokens=3)
    for cancels in (False, True):
        rows = Rows(loaded, shares_prefixes=cancels)
        rows.insert(asked)
        while not rows.said["decoding"]:
            rows.step()
        rows.insert(long)
        rows.step()
        assert rows.runner._held_back is not None
        if cancels:
            rows.remove("long")
            rows.insert(again)
        said = rows.run()
        for each in (asked, again if cancels else long):
            assert said[each.id] == alone(loaded, each)
        assert rows.runner.stats().used_blocks == 0


def test_closing_drops_everything(loaded: LoadedModel, prompt: Make) -> None:
    rows = Rows(loaded)
    rows.insert(*(prompt(str(i)) for i in range(9)))
    rows.step()
    rows.runner.close()
    assert (rows.runner.stats().used_blocks, rows.runner.waiting) == (0, 0)
    assert rows.runner.step() == []


def test_the_seam_leaves_other_callers_alone(loaded: LoadedModel, prompt: Make) -> None:
    """mlx-lm's own caches go on working while a runner has its rows."""
    rows = Rows(loaded)
    rows.insert(prompt("p", max_tokens=30))
    rows.step()
    before = loaded.model(mx.array([[1, 2, 3]]), cache=make_prompt_cache(loaded.model))
    rows.step()
    assert mx.array_equal(before, loaded.model(mx.array([[1, 2, 3]]), cache=make_prompt_cache(loaded.model)))


@pytest.mark.parametrize("speculates", [False, True])
def test_what_one_process_read_another_finds_on_disk(
    loaded: LoadedModel, prompt: Make, tmp_path: Path, speculates: bool
) -> None:
    rng = random.Random(7)
    asked = [prompt(str(i), token_ids=ids(rng, 90 + i), max_tokens=20) for i in range(3)]
    said: list[Said] = []
    hits: list[tuple[int, int]] = []
    for _ in range(2):
        store = PrefixStore(tmp_path / "store", max_bytes=1 << 26, max_age_s=1e6, identity=b"tiny")
        rows = Rows(loaded, blocks=100, store=store, speculates=speculates)
        rows.insert(*asked)
        said.append(rows.run())
        rows.runner.close()
        stats = rows.runner.stats()
        hits.append((stats.prefix_hit_tokens_total, stats.disk_hit_blocks_total))
    assert said[0] == said[1] == {each.id: alone(loaded, each) for each in asked}
    assert hits == [(0, 0), (3 * 88, 33)]


def test_a_second_turn_is_found_on_disk_when_the_pool_has_lost_it(
    loaded: LoadedModel, prompt: Make, tmp_path: Path
) -> None:
    rng = random.Random(8)
    store = PrefixStore(tmp_path / "store", max_bytes=1 << 26, max_age_s=1e6, identity=b"tiny")
    rows = Rows(loaded, blocks=26, store=store)
    first = prompt("first", token_ids=ids(rng, 60), max_tokens=30)
    rows.insert(first)
    whole = (*first.token_ids, *rows.run()["first"])
    rows.insert(prompt("other", token_ids=ids(rng, 190), max_tokens=2))
    rows.run()
    assert store.flush(timeout_s=10)
    second = prompt("second", token_ids=(*whole, 5, 6), max_tokens=9)
    rows.insert(second)
    assert rows.run()["second"] == alone(loaded, second)
    assert rows.runner.stats().prefix_hit_tokens_total == 89 // 8 * 8
    rows.runner.close()
