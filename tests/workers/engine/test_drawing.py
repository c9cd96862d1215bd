"""A batch of unlike rows draws what each row would draw alone, whoever its neighbours are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine import Prompt, SamplingParams, StopRule
from workers.engine.drawing import BatchSampler, Draw, Drawn
from workers.engine.sampling import RowSampler

VOCAB = 120
ENDS = frozenset({7, 11})

Floats = npt.NDArray[np.float32]

sampling_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.0, 1.5]),
    top_p=st.sampled_from([1.0, 1.0, 0.95, 0.9, 0.5, 0.1]),
    top_k=st.sampled_from([0, 0, 1, 5, 90]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.7]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.8, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.4]),
    logit_bias=st.sampled_from([(), (), ((3, 2.0), (3, 1.0), (50, -math.inf))]),
    seed=st.integers(-(1 << 65), 1 << 65),
)
prompt_strategy = st.builds(
    Prompt,
    id=st.just("-"),
    token_ids=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9).map(tuple),
    sampling=sampling_strategy,
    stop=st.builds(StopRule, max_tokens=st.just(99), min_tokens=st.sampled_from([0, 0, 2, 4])),
    resume_ids=st.lists(st.integers(0, VOCAB - 1), max_size=3).map(tuple),
)


def ids_of(tokens: mx.array) -> list[int]:
    """Token ids on the host."""
    return [int(token) for token in np.asarray(tokens)]


def prompt(
    *, token_ids: Sequence[int] = (1, 2), logprobs: int | None = None, min_tokens: int = 0, **sampling: Any
) -> Prompt:
    return Prompt(
        id="-",
        token_ids=tuple(token_ids),
        sampling=SamplingParams(**{"temperature": 0.0, **sampling}),
        stop=StopRule(max_tokens=99, min_tokens=min_tokens),
        logprobs=logprobs,
    )


def sampler_of(prompts: Sequence[Prompt], vocab_size: int = VOCAB) -> tuple[BatchSampler, list[str]]:
    sampler = BatchSampler(vocab_size)
    row_ids = [str(place) for place in range(len(prompts))]
    for row_id, entry in zip(row_ids, prompts, strict=True):
        sampler.add(row_id, entry, ENDS, entry.resume_ids)
    return sampler, row_ids


def draw(sampler: BatchSampler, row_ids: Sequence[str], logits: Floats) -> Drawn:
    return sampler.draw(mx.array(logits), [Draw(row_id) for row_id in row_ids])


def random_logits(seed: int, rows: int, vocab_size: int = VOCAB) -> Floats:
    return np.random.default_rng(seed).normal(0, 2, (rows, vocab_size)).astype(np.float32)


@dataclass
class Alone:
    """A row that draws through `RowSampler`, the way mlx-lm calls it."""

    prompt: Prompt
    sampler: RowSampler = field(init=False)
    context: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.sampler = RowSampler(self.prompt, ENDS, VOCAB)
        self.context = [*self.prompt.token_ids, *self.prompt.resume_ids]
        self.processors = self.sampler.processors

    def draw(self, logits: Floats) -> int:
        row = mx.array(logits)[None]
        for process in self.processors:
            row = process(mx.array(self.context), row)
        token = ids_of(self.sampler.sampler(row))[0]
        assert self.sampler.error is None
        self.context.append(token)
        return token


@settings(deadline=None, max_examples=50)
@given(prompts=st.lists(prompt_strategy, min_size=1, max_size=7), seed=st.integers(0, 99))
def test_equal_logits_give_the_tokens_of_the_row_sampler(prompts: list[Prompt], seed: int) -> None:
    sampler, row_ids = sampler_of(prompts)
    alone = [Alone(entry) for entry in prompts]
    for step in range(5):
        logits = random_logits(100 * seed + step, len(prompts))
        drawn = draw(sampler, row_ids, logits)
        sampler.advance(row_ids, drawn.tokens)
        assert ids_of(drawn.tokens) == [row.draw(logits[place]) for place, row in enumerate(alone)]
        assert drawn.finite.tolist() == [True] * len(prompts)


@settings(deadline=None, max_examples=50)
@given(
    prompts=st.lists(prompt_strategy, min_size=2, max_size=6),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 99),
)
def test_a_row_draws_the_same_whoever_joins_leaves_or_stands_before_it(
    prompts: list[Prompt], order: Any, seed: int
) -> None:
    together, row_ids = sampler_of(prompts)
    expected: dict[str, list[int]] = {row_id: [] for row_id in row_ids}
    steps = [random_logits(seed + step, len(prompts)) for step in range(4)]
    for logits in steps:
        drawn = draw(together, row_ids, logits)
        together.advance(row_ids, drawn.tokens)
        for row_id, token in zip(row_ids, ids_of(drawn.tokens), strict=True):
            expected[row_id].append(token)
    changing, done = BatchSampler(VOCAB), dict.fromkeys(row_ids, 0)
    known: set[str] = set()
    while any(count < len(steps) for count in done.values()):
        present = [row_id for row_id in row_ids if done[row_id] < len(steps) and order.random() < 0.6]
        order.shuffle(present)
        leaving = [row_id for row_id in known if row_id not in present and order.random() < 0.3]
        changing.remove(leaving)
        known.difference_update(leaving)
        for row_id in present:
            if row_id not in known:
                entry = prompts[int(row_id)]
                said = [*entry.resume_ids, *expected[row_id][: done[row_id]]]
                changing.add(row_id, entry, ENDS, said)
        known.update(present)
        if not present:
            continue
        drawn = draw(changing, present, np.stack([steps[done[row_id]][int(row_id)] for row_id in present]))
        changing.advance(present, drawn.tokens)
        for row_id, token in zip(present, ids_of(drawn.tokens), strict=True):
            assert token == expected[row_id][done[row_id]]
            done[row_id] += 1


@settings(deadline=None, max_examples=50)
@given(prompts=st.lists(prompt_strategy, min_size=1, max_size=4), seed=st.integers(0, 99), accepted=st.integers(0, 3))
def test_draws_ahead_are_those_that_come_if_the_assumed_tokens_do(
    prompts: list[Prompt], seed: int, accepted: int
) -> None:
    steps = [random_logits(seed + step, len(prompts)) for step in range(5)]
    one_by_one, row_ids = sampler_of(prompts)
    tokens: list[list[int]] = []
    for logits in steps:
        drawn = draw(one_by_one, row_ids, logits)
        one_by_one.advance(row_ids, drawn.tokens)
        tokens.append(ids_of(drawn.tokens))
    ahead, _ = sampler_of(prompts)
    draws, rows = [], []
    for place, row_id in enumerate(row_ids):
        for count in range(4):
            draws.append(Draw(row_id, tuple(tokens[step][place] for step in range(count))))
            rows.append(steps[count][place])
    drawn = ahead.draw(mx.array(np.stack(rows)), draws)
    assert ids_of(drawn.tokens) == [tokens[count][place] for place in range(len(prompts)) for count in range(4)]
    for place, row_id in enumerate(row_ids):
        ahead.accept(row_id, [tokens[step][place] for step in range(accepted)])
    assert ids_of(draw(ahead, row_ids, steps[accepted]).tokens) == tokens[accepted]


def test_assumed_tokens_are_not_remembered() -> None:
    penalties: dict[str, Any] = {"repetition_penalty": 1.5, "presence_penalty": 1.0}
    sampler, [row_id] = sampler_of([prompt(token_ids=(90,), **penalties)])
    logits = np.zeros((1, VOCAB), dtype=np.float32)
    logits[0, [5, 6]] = [3.0, 2.0]
    for _ in range(2):
        assert sampler.draw(mx.array(logits), [Draw(row_id, (5,))]).tokens.tolist() == [6]
        assert sampler.draw(mx.array(logits), [Draw(row_id)]).tokens.tolist() == [5]


def test_the_repetition_penalty_counts_prompt_and_output() -> None:
    sampler, row_ids = sampler_of([prompt(token_ids=(5,), repetition_penalty=2.0)])
    logits = np.zeros((1, VOCAB), dtype=np.float32)
    logits[0, [5, 6, 8]] = [10.0, 9.0, 6.0]
    said: list[int] = []
    for _ in range(4):
        drawn = draw(sampler, row_ids, logits)
        sampler.advance(row_ids, drawn.tokens)
        said += ids_of(drawn.tokens)
    assert said == [6, 8, 5, 5]


def test_presence_and_frequency_penalties_count_output_only() -> None:
    sampler, row_ids = sampler_of([prompt(token_ids=(5,), presence_penalty=1.0, frequency_penalty=0.5)])
    logits = np.zeros((1, VOCAB), dtype=np.float32)
    logits[0, [5, 6]] = [10.0, 8.2]
    said: list[int] = []
    for _ in range(5):
        drawn = draw(sampler, row_ids, logits)
        sampler.advance(row_ids, drawn.tokens)
        said += ids_of(drawn.tokens)
    assert said == [5, 5, 6, 5, 5]


def test_end_tokens_are_masked_until_min_tokens_exist() -> None:
    sampler, row_ids = sampler_of([prompt(min_tokens=2), prompt()])
    logits = np.zeros((2, VOCAB), dtype=np.float32)
    logits[:, [7, 3]] = [9.0, 4.0]
    said: list[list[int]] = []
    for _ in range(3):
        drawn = draw(sampler, row_ids, logits)
        sampler.advance(row_ids, drawn.tokens)
        said.append(ids_of(drawn.tokens))
    assert said == [[3, 7], [3, 7], [7, 7]]


def packed(allowed: Sequence[int], vocab_size: int = VOCAB) -> npt.NDArray[np.uint32]:
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.uint8)
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").view(np.uint32)


def test_a_grammar_restricts_its_row_only() -> None:
    prompts = [prompt(temperature=1.0, top_p=0.9), prompt(temperature=1.0), prompt(presence_penalty=0.5), prompt()]
    masked, row_ids = sampler_of(prompts)
    free, _ = sampler_of(prompts)
    logits = random_logits(1, 4)
    masks = {0: packed([3, 90]), 2: packed([31, 32, 119]), 3: packed([64])}
    for _ in range(20):
        drawn = masked.draw(mx.array(logits), [Draw(row_id) for row_id in row_ids], masks)
        first, second, third, fourth = ids_of(drawn.tokens)
        assert first in (3, 90)
        assert third in (31, 32, 119)
        assert fourth == 64
        expected = draw(free, row_ids, logits)
        assert second == expected.tokens[1].item()
        for sampler, tokens in ((masked, drawn.tokens), (free, expected.tokens)):
            sampler.advance(row_ids, tokens)


def test_a_row_with_nothing_left_to_draw_is_reported() -> None:
    sampler, row_ids = sampler_of([prompt(min_tokens=1), prompt(temperature=1.0), prompt(temperature=1.0)])
    logits = mx.array(random_logits(2, 3))
    drawn = sampler.draw(logits, [Draw(row_id) for row_id in row_ids], {0: packed([7, 11]), 1: packed([])})
    assert drawn.finite.tolist() == [False, False, True]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 3, 6])
def test_logits_that_are_not_finite_are_reported_for_their_row_and_disturb_no_other(poison: float, place: int) -> None:
    prompts = [
        prompt(),
        prompt(temperature=1.0),
        prompt(temperature=1.0, top_p=0.9),
        prompt(temperature=1.0, top_k=5),
        prompt(temperature=1.0, min_p=0.1),
        prompt(temperature=1.0, repetition_penalty=1.2, frequency_penalty=0.5),
        prompt(logit_bias=((3, 5.0),)),
    ]
    logits = random_logits(3, len(prompts))
    clean = draw(*sampler_of(prompts), logits)
    logits[place, 40:44] = poison
    spoilt = draw(*sampler_of(prompts), logits)
    others = [other for other in range(len(prompts)) if other != place]
    assert [spoilt.tokens[other].item() for other in others] == [clean.tokens[other].item() for other in others]
    assert spoilt.finite.tolist() == [other != place for other in range(len(prompts))]
    assert clean.finite.tolist() == [True] * len(prompts)


def test_tokens_that_the_model_masks_itself_are_no_failure() -> None:
    logits = random_logits(4, 2)
    logits[:, 30:] = -math.inf
    drawn = draw(*sampler_of([prompt(), prompt(temperature=1.0)]), logits)
    assert drawn.finite.tolist() == [True, True]
    assert max(ids_of(drawn.tokens)) < 30


def test_only_rows_that_asked_get_log_probabilities_and_of_the_raw_logits() -> None:
    prompts = [prompt(), prompt(logprobs=2, logit_bias=((5, 50.0),)), prompt(logprobs=0, temperature=1.0)]
    logits = random_logits(5, 3)
    drawn = draw(*sampler_of(prompts), logits)
    mx.eval(*drawn.arrays)
    exact = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    assert drawn.take_logprob(0, 1) is None
    best = sorted(range(VOCAB), key=lambda token: -logits[1, token])[:2]
    first, second = drawn.take_logprob(1, 5), drawn.take_logprob(2, 9)
    assert first is not None
    assert [token for token, _ in first.top] == best
    assert np.allclose([first.logprob, *(value for _, value in first.top)], exact[1, [5, *best]], atol=1e-5)
    assert second is not None
    assert (second.token_id, second.top) == (9, ())
    assert second.logprob == pytest.approx(exact[2, 9], abs=1e-5)


def test_no_array_is_kept_for_log_probabilities_nobody_asked_for() -> None:
    drawn = draw(*sampler_of([prompt(), prompt(temperature=1.0)]), random_logits(6, 2))
    assert [array.size for array in drawn.arrays] == [2, 2]


def test_a_vocabulary_that_is_no_rectangle_is_drawn_from() -> None:
    vocab_size = 1009
    prompts = [prompt(temperature=1.0, **extra) for extra in ({}, {"top_p": 0.9}, {"top_k": 9}, {"min_p": 0.1})]
    sampler, row_ids = sampler_of(prompts, vocab_size)
    logits = np.full((4, vocab_size), -np.inf, dtype=np.float32)
    logits[:, [0, 1008]] = 1.0
    said: set[int] = set()
    for _ in range(30):
        drawn = draw(sampler, row_ids, logits)
        sampler.advance(row_ids, drawn.tokens)
        said.update(ids_of(drawn.tokens))
    assert said == {0, 1008}


def test_many_rows_join_and_leave() -> None:
    sampler = BatchSampler(VOCAB)
    penalised = prompt(presence_penalty=100.0)
    logits = np.zeros((1, VOCAB), dtype=np.float32)
    logits[0, :3] = [3.0, 2.0, 1.0]
    for generation in range(3):
        row_ids = [f"{generation}-{place}" for place in range(20)]
        for place, row_id in enumerate(row_ids):
            sampler.add(row_id, penalised, ENDS, [0] * (place % 2))
        drawn = draw(sampler, row_ids, np.repeat(logits, 20, axis=0))
        assert ids_of(drawn.tokens) == [0, 1] * 10
        sampler.advance(row_ids, drawn.tokens)
        assert draw(sampler, row_ids[:2], np.repeat(logits, 2, axis=0)).tokens.tolist() == [1, 2]
        sampler.remove([*row_ids, "unknown"])


def test_a_row_is_known_once_and_an_unknown_one_is_refused() -> None:
    sampler, _ = sampler_of([prompt()])
    with pytest.raises(ValueError, match="'0'"):
        sampler.add("0", prompt(), ENDS, ())
    with pytest.raises(KeyError):
        draw(sampler, ["1"], random_logits(0, 1))
