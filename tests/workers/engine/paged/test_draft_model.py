"""A draft model beside its target: the same text, token for token, whatever it says and whatever happens around it."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache

from bench.tiny_models import load_tiny
from tests.workers.engine.architectures import ARCHITECTURES, load
from tests.workers.engine.courses import Course, Sizes, draw_sizes, ids, play, prompts, run
from tests.workers.engine.paged.driven_rows import Rows
from workers.engine import Engine, LoadedModel, PagedOptions, Prompt, make_engine
from workers.engine.guided import Grammar, GrammarKind, GuideCompiler
from workers.engine.paged.cache import PagedModel
from workers.engine.paged.chunks import PlanLimits
from workers.engine.paged.draft_model import DraftPages
from workers.engine.paged.drafts import MOST_DRAFTS, Source
from workers.engine.paged.rows import Row
from workers.engine.paged.speculation import Cover, Speculation
from workers.engine.paged.trust import Guesser

Make = Callable[..., Prompt]
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


def alike(name: str, noise: float) -> LoadedModel:
    """A model like the one of this name, with weights that are off by a share of themselves."""
    module, changes = ARCHITECTURES[name]
    made = load_tiny(module, **changes)
    network: Any = made.model
    mx.random.seed(5)
    network.update(tree_map(lambda w: w * (1 + noise * mx.random.normal(w.shape)), network.parameters()))
    mx.eval(network.parameters())
    return made


def engine_of(name: str, sizes: Sizes, draft: LoadedModel | None) -> Engine:
    return make_engine(
        load(name),
        max_sequences=sizes.rows,
        max_waiting=100,
        prefill_step_tokens=sizes.chunk_tokens,
        paged=PagedOptions(block_tokens=sizes.block_tokens, kv_blocks=sizes.blocks),
        draft=draft,
    )


class EagerSpeculation(Speculation):
    """Asks the draft model all the time, for some rows and any number of tokens, and lets it read any number."""

    def __init__(self, model: Guesser, dice: random.Random) -> None:
        super().__init__(model)
        self._guesser, self._dice = model, dice

    def pays(self, rows: Sequence[Row]) -> bool:
        return bool(rows)

    def guess(self, rows: Sequence[Row], cover: Cover) -> None:
        wanted = {}
        for row in rows:
            row.drafts = ()
            if self._is_known(row) and row.draws_left > 1 and self._dice.random() < 0.8:
                length = self._dice.randint(1, min(MOST_DRAFTS, row.draws_left - 1))
                wanted[row] = max(0, min(length, cover(row, len(row.tokens) + length) - len(row.tokens)))
                self._sources[row.id] = Source.MODEL
        self._guesser.propose(list(wanted), list(wanted.values()))

    def follow(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if self._is_known(row) and self._guesser.behind(row) > 1 and self._dice.random() < 0.5:
                self._guesser.read(row, self._dice.randint(1, 40))


def make_eager(engine: Engine, dice: random.Random) -> Engine:
    runner = engine._runner  # type: ignore[attr-defined]
    runner._speculation = EagerSpeculation(runner._speculation._model, dice)
    return engine


def model_drafts(engine: Engine) -> tuple[int, int]:
    """Drafted by the model, and right."""
    stats = engine.stats()
    return stats.drafted_tokens_total[Source.MODEL], stats.right_drafts_total[Source.MODEL]


@pytest.mark.parametrize("name", ["llama", "gemma3", "exaone", "gpt_oss", "deepseek_v2"])
@settings(max_examples=2, deadline=None, phases=PHASES)
@given(seed=st.integers(0, 2**32 - 1), noise=st.sampled_from([0.05, 0.5]))
def test_whatever_a_draft_model_says_changes_nothing(name: str, prompt: Make, seed: int, noise: float) -> None:
    """Greedy and drawn rows that come, are cancelled and come back, lose their blocks and find prefixes."""
    dice = random.Random(seed)
    sizes = draw_sizes(dice)
    engine = make_eager(engine_of(name, sizes, alike(name, noise)), dice)
    course = play(engine, dice.sample(prompts(prompt), 7), dice)
    assert course.differences(name) == [], sizes
    assert engine.stats().used_blocks == 0
    assert model_drafts(engine)[0] > 0


@pytest.mark.parametrize("name", ["llama", "exaone", "gpt_oss"])
@settings(max_examples=3, deadline=None, phases=PHASES)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_draft_model_that_is_its_target_is_nearly_always_right(name: str, prompt: Make, seed: int) -> None:
    """So what it holds of each row is known rightly, and it draws as its target does, penalties and all."""
    dice = random.Random(seed)
    sizes = draw_sizes(dice)
    engine = make_eager(engine_of(name, sizes, load(name)), dice)
    course = play(engine, dice.sample(prompts(prompt), 7), dice)
    assert course.differences(name) == [], sizes
    drafted, right = model_drafts(engine)
    assert right >= 0.97 * drafted > 0  # sums in another order may change a draw, and what is cut off behind an end


def test_a_target_whose_layers_all_slide_keeps_its_blocks_for_the_draft_model(prompt: Make) -> None:
    """It reads later than the target, and needs them all, if not all of its own layers slide."""
    dice = random.Random(3)
    engine = make_eager(engine_of("exaone", Sizes(4, 16, 8, 60), load("llama")), dice)
    assert play(engine, prompts(prompt)[:8], dice).differences("exaone") == []
    assert model_drafts(engine)[0] > 0
    assert engine.context_tokens == 8 * 60


def test_a_prefix_that_was_read_once_is_not_read_again(prompt: Make) -> None:
    dice = random.Random(4)
    base = ids(dice, 40)
    engine = engine_of("llama", Sizes(4, 64, 8, 100), load("llama"))
    speculation = make_eager(engine, dice)._runner._speculation  # type: ignore[attr-defined]
    assert run(engine, [prompt("first", token_ids=base, max_tokens=20)]).differences("llama") == []
    engine.submit(prompt("second", token_ids=(*base, 7), max_tokens=20))
    behind = []
    while engine.has_work:
        behind += [speculation._guesser.behind(row) for row in engine._runner._planner.decoding]  # type: ignore[attr-defined]
        engine.step()
    assert behind[0] <= 2


def test_blocks_that_nobody_else_misses_are_all_that_guesses_get(prompt: Make) -> None:
    """Not one row loses its place for the sake of a guess."""
    dice = random.Random(5)
    asked = [prompt(str(i), token_ids=ids(dice, 12), max_tokens=20) for i in range(3)]
    blocks = 3 * -(-32 // 4)
    for draft in (None, load("llama")):
        engine = engine_of("llama", Sizes(3, 64, 4, blocks), draft)
        course = run(make_eager(engine, dice) if draft else engine, asked)
        assert course.differences("llama") == []
        assert engine.stats().preemptions_total == 0


def draft_of(loaded: LoadedModel, *, blocks: int = 200, block_tokens: int = 8) -> DraftPages:
    pages = PagedModel(loaded.model, blocks=blocks, block_tokens=block_tokens)
    return DraftPages(pages, loaded.info.vocab_size, loaded.info.context_tokens)


def test_rows_with_grammars_say_the_same_and_the_draft_model_obeys_their_grammars(
    loaded: LoadedModel, prompt: Make
) -> None:
    info = loaded.info
    compiler = GuideCompiler(loaded.vocabulary.tokenizer, info.vocab_size, info.eos_token_ids)
    grammar = Grammar(GrammarKind.REGEX, "([a-f]{3}-[0-9]{2} ?){4,9}")
    said = []
    for draft in (None, draft_of(loaded)):
        rows = Rows(loaded, blocks=200, guides=compiler, draft=draft)
        if draft is not None:
            model = rows.runner._speculation._model  # type: ignore[union-attr]
            assert model is not None
            rows.runner._speculation = eager = EagerSpeculation(model, random.Random(1))
        for seed in range(6):
            asked = prompt(str(seed), temperature=seed % 3 / 2, seed=seed, max_tokens=50, ignore_eos=False)
            rows.insert(asked, guide=compiler.compile(grammar) if seed < 5 else None)
        said.append(rows.run())
        assert not rows.errors
    assert said[0] == said[1]
    drafted, right = (total[Source.MODEL] for total in (eager.drafted_tokens_total, eager.right_tokens_total))
    assert right >= 0.95 * drafted > 50


def test_drawn_tokens_have_the_distribution_of_the_target_and_not_of_the_draft_model(prompt: Make) -> None:
    """Chi-square of four tokens out of three, drawn for rows with seeds of their own, to the target's own logits."""
    target, allowed, length, rows_asked = load("llama"), (40, 41, 42), 4, 3000
    stem = (7, 9, 11)
    bias = tuple((token, 0.0 if token in allowed else -1e4) for token in range(target.info.vocab_size))
    dice = random.Random(17)
    asked = [
        prompt(str(i), token_ids=stem, max_tokens=length, temperature=3.0, seed=dice.getrandbits(64), logit_bias=bias)
        for i in range(rows_asked)
    ]
    draft = alike("llama", 0.5)
    rows = Rows(target, blocks=400, limits=PlanLimits(rows=64, step_tokens=512), draft=draft_of(draft, blocks=400))
    rows.runner._speculation = eager = EagerSpeculation(rows.runner._speculation._model, dice)  # type: ignore
    rows.insert(*asked)
    counts = Counter(tuple(said) for said in rows.run().values())
    drafted, right = (total[Source.MODEL] for total in (eager.drafted_tokens_total, eager.right_tokens_total))
    assert 0.1 * drafted < right < 0.95 * drafted
    surprise, cells, rest, rest_seen = 0.0, 0, 0.0, 0
    for text in product(allowed, repeat=length):
        expected = rows_asked * probability(target, stem, text, allowed, 3.0)
        if expected < 5:
            rest, rest_seen = rest + expected, rest_seen + counts[text]
        else:
            surprise, cells = surprise + (counts[text] - expected) ** 2 / expected, cells + 1
    if rest >= 5:
        surprise, cells = surprise + (rest_seen - rest) ** 2 / rest, cells + 1
    freedom = cells - 1
    assert freedom > 10
    # Wilson and Hilferty 1931: the cube root of a chi-square by its degrees is nearly normal.
    normal = ((surprise / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    assert normal < 3.7  # one in ten thousand


def probability(
    target: LoadedModel, stem: tuple[int, ...], text: tuple[int, ...], allowed: tuple[int, ...], temperature: float
) -> float:
    logits = target.model(mx.array([[*stem, *text]]), cache=make_prompt_cache(target.model))
    seen = np.array(logits[0, len(stem) - 1 : -1].astype(mx.float32), dtype=np.float64)[:, list(allowed)] / temperature
    shares = np.exp(seen - seen.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return float(np.prod([shares[place, allowed.index(token)] for place, token in enumerate(text)]))


def test_guessing_copies_no_pool(loaded: LoadedModel, prompt: Make) -> None:
    rng = random.Random(4)
    draft = draft_of(loaded, blocks=20_000, block_tokens=16)
    rows = Rows(loaded, blocks=20_000, block_tokens=16, draft=draft)
    rows.runner._speculation = eager = EagerSpeculation(rows.runner._speculation._model, rng)  # type: ignore
    rows.insert(*(prompt(str(i), token_ids=ids(rng, 60), max_tokens=60) for i in range(3)))
    for _ in range(4):
        rows.step()
    mx.synchronize()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    rows.run()
    assert mx.get_peak_memory() - before < draft.pages.block_bytes * draft.pages.blocks / 8
    assert eager.drafted_tokens_total[Source.MODEL] > 20


def test_a_draft_model_whose_numbers_are_not_finite_guesses_nothing_and_spoils_nothing(prompt: Make) -> None:
    dice = random.Random(8)
    broken = alike("llama", 0.0)
    network: Any = broken.model
    engine = make_eager(engine_of("llama", Sizes(4, 64, 8, 100), broken), dice)
    network.update(tree_map(lambda w: w * mx.nan, network.parameters()))
    asked = [prompt(str(i), token_ids=ids(dice, 20), max_tokens=12) for i in range(3)]
    assert run(engine, asked).differences("llama") == []
    assert model_drafts(engine) == (0, 0)
    whole: Any = load("llama").model
    network.update(whole.parameters())
    course: Course = run(engine, [replace(one, id=f"{one.id}+") for one in asked])
    assert course.differences("llama") == []
    drafted, right = model_drafts(engine)
    assert right == drafted > 0
