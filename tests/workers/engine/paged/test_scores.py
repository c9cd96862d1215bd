"""Log-probabilities of prompts' own tokens: those of one plain forward, whatever happens around the row."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.engine.paged.driven_rows import Rows, alone, ids
from workers.engine import (
    Engine,
    EngineBackend,
    InvalidPrompt,
    LoadedModel,
    PagedOptions,
    Prompt,
    TokenLogprob,
    make_engine,
)
from workers.engine.paged.chunks import SCORED_CHUNK_TOKENS, PlanLimits

import mlx.core as mx  # isort: skip

Make = Callable[..., Prompt]
CLOSE = 2e-3


def expected(loaded: LoadedModel, token_ids: tuple[int, ...]) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """(tokens - 1, vocab) by the model alone, without any cache."""
    logits = loaded.model(mx.array([token_ids]))[0, :-1].astype(mx.float32)
    return np.asarray(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def check(loaded: LoadedModel, prompt: Prompt, scores: tuple[TokenLogprob, ...]) -> None:
    """The scores are those of the prompt's tokens, with the best alternatives in order."""
    assert [score.token_id for score in scores] == list(prompt.token_ids[1:])
    if not scores:
        return
    table = expected(loaded, prompt.token_ids)
    for score, row in zip(scores, table, strict=True):
        assert score.logprob == pytest.approx(row[score.token_id], abs=CLOSE)
        best = np.sort(row)[::-1][: prompt.logprobs]
        assert [logprob for _, logprob in score.top] == pytest.approx(best.tolist(), abs=CLOSE)
        assert [row[token] for token, _ in score.top] == pytest.approx(best.tolist(), abs=CLOSE)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    block_tokens=st.sampled_from([1, 4, 16]),
    spare_blocks=st.sampled_from([1, 8, 100]),
    step_tokens=st.sampled_from([7, 40, 512]),
    speculates=st.booleans(),
)
def test_a_prompt_is_scored_as_alone_among_rows_that_share_its_beginning(
    loaded: LoadedModel,
    prompt: Make,
    seed: int,
    block_tokens: int,
    spare_blocks: int,
    step_tokens: int,
    speculates: bool,
) -> None:
    rng = random.Random(seed)
    stem = ids(rng, 40)
    asked = []
    for number in range(7):
        content = (*stem[: rng.choice((0, 16, 40))], *ids(rng, rng.choice((1, 2, 17, 40))))
        wants = {"logprobs": rng.choice((0, 1, 5)), "prompt_logprobs": True} if rng.random() < 0.6 else {}
        asked.append(prompt(str(number), token_ids=content, max_tokens=rng.choice((1, 9, 30)), **wants))
    rows = Rows(
        loaded,
        blocks=120 // block_tokens + 1 + spare_blocks,
        block_tokens=block_tokens,
        limits=PlanLimits(rows=4, step_tokens=step_tokens),
        speculates=speculates,
    )
    rows.insert(*asked)
    said = rows.run()
    assert rows.errors == {}
    assert set(rows.scores) == {each.id for each in asked if each.prompt_logprobs}
    for each in asked:
        assert said[each.id] == alone(loaded, each)
        if each.prompt_logprobs:
            check(loaded, each, rows.scores[each.id])


def test_rows_that_lose_their_place_are_scored_once(loaded: LoadedModel, prompt: Make) -> None:
    rng = random.Random(1)
    asked = [
        prompt(str(i), token_ids=ids(rng, 20 + i), max_tokens=60, logprobs=2, prompt_logprobs=True) for i in range(5)
    ]
    rows = Rows(loaded, blocks=22)
    rows.insert(*asked)
    rows.run()
    assert rows.runner.stats().preemptions_total > 2
    for each in asked:
        check(loaded, each, rows.scores[each.id])


def test_a_scored_prompt_takes_nothing_from_the_cache_and_leaves_its_own(loaded: LoadedModel, prompt: Make) -> None:
    token_ids = ids(random.Random(2), SCORED_CHUNK_TOKENS + 40)
    plain = prompt("plain", token_ids=token_ids, max_tokens=2)
    rows = Rows(loaded)
    for each in (plain, replace(plain, id="scored", logprobs=1, prompt_logprobs=True), replace(plain, id="again")):
        before = rows.runner.stats().prefix_hit_tokens_total
        rows.insert(each)
        rows.run()
        took = rows.runner.stats().prefix_hit_tokens_total - before
        assert (took > 0) == (each.id == "again")
    check(loaded, replace(plain, logprobs=1), rows.scores["scored"])


def engine_of(loaded: LoadedModel, backend: EngineBackend) -> Engine:
    """An engine for few rows."""
    return make_engine(
        loaded,
        max_sequences=4,
        max_waiting=9,
        prefill_step_tokens=16,
        backend=backend,
        paged=PagedOptions(kv_blocks=160),
    )


def test_the_engine_tells_scores_with_the_first_token_only(loaded: LoadedModel, prompt: Make) -> None:
    engine = engine_of(loaded, EngineBackend.PAGED)
    asked = prompt(logprobs=3, prompt_logprobs=True, max_tokens=5)
    engine.submit(asked)
    chunks = []
    while engine.has_work:
        chunks += engine.step()
    assert engine.scores_prompts
    assert [chunk.prompt_logprobs is not None for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    check(loaded, asked, chunks[0].prompt_logprobs or ())


@pytest.mark.parametrize("backend", [EngineBackend.BATCH, EngineBackend.SERIAL])
def test_engines_that_score_no_prompts_say_so(loaded: LoadedModel, prompt: Make, backend: EngineBackend) -> None:
    engine = engine_of(loaded, backend)
    assert not engine.scores_prompts
    with pytest.raises(InvalidPrompt, match="scores no prompts"):
        engine.submit(prompt(logprobs=1, prompt_logprobs=True))


def test_scores_of_a_prompt_need_logprobs(loaded: LoadedModel, prompt: Make) -> None:
    with pytest.raises(InvalidPrompt, match="need logprobs"):
        engine_of(loaded, EngineBackend.PAGED).submit(prompt(prompt_logprobs=True))
