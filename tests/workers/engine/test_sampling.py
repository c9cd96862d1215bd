"""How a row draws: the sets that truncation leaves, the arithmetic of penalties, and the random numbers."""

import math
from collections import Counter
from typing import Any

import mlx.core as mx
import pytest

from workers.engine import Prompt, SamplingParams, StopRule
from workers.engine.sampling import RowSampler, as_floats

VOCAB = 8
PROBABILITIES = (0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.015, 0.005)


def row(*, prompt_ids: tuple[int, ...] = (1, 2), min_tokens: int = 0, resume: int = 0, **sampling: Any) -> RowSampler:
    prompt = Prompt(
        id="p",
        token_ids=prompt_ids,
        sampling=SamplingParams(**sampling),
        stop=StopRule(max_tokens=9, min_tokens=min_tokens),
        resume_ids=(0,) * resume,
    )
    return RowSampler(prompt, frozenset({7}), VOCAB)


def draw(sampler: RowSampler, logprobs: mx.array) -> int:
    [token] = as_floats(sampler.sampler(logprobs))
    return int(token)


def drawn(sampler: RowSampler, count: int = 400) -> Counter[int]:
    logprobs = mx.log(mx.array([PROBABILITIES]))
    return Counter(draw(sampler, logprobs) for _ in range(count))


def processed(sampler: RowSampler, context: list[int], logits: list[float]) -> list[float]:
    out = mx.array([logits])
    for process in sampler.processors:
        out = process(mx.array(context), out)
    return as_floats(out)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({"top_k": 3}, 3),
        ({"top_p": 0.6}, 2),
        ({"top_p": 0.66}, 3),
        ({"top_p": 0.01}, 1),
        ({"min_p": 0.2}, 4),
        ({"top_k": 2, "top_p": 0.7}, 2),
        ({"top_k": 4, "top_p": 0.7}, 2),
        ({"top_k": 5, "min_p": 0.3}, 3),
        ({"top_k": 8}, 8),
        ({"temperature": 0.2, "min_p": 0.2}, 1),
    ],
)
def test_truncation_leaves_exactly_the_most_likely_tokens(sampling: dict[str, Any], kept: int) -> None:
    flat = {"temperature": 1.0, **sampling}
    counts = drawn(row(**flat), 250)
    assert set(counts) <= set(range(kept))
    assert len(counts) >= min(kept, 5)


def test_draws_follow_the_distribution_and_temperature() -> None:
    counts = drawn(row(temperature=1.0, seed=4), 1500)
    for token, probability in enumerate(PROBABILITIES):
        spread = 4 * math.sqrt(1500 * probability * (1 - probability))
        assert abs(counts[token] - 1500 * probability) < spread
    cold = drawn(row(temperature=0.25, seed=4), 300)
    assert cold[0] > 230
    assert set(drawn(row(temperature=1e-30, seed=4), 50)) == {0}


def test_a_resumed_row_goes_on_with_the_draws_it_would_have_made() -> None:
    whole, resumed = row(temperature=1.0, seed=9), row(temperature=1.0, seed=9, resume=5)
    logprobs = mx.zeros((1, VOCAB))
    expected = [draw(whole, logprobs) for _ in range(20)]
    assert [draw(resumed, logprobs) for _ in range(15)] == expected[5:]


def test_the_repetition_penalty_counts_prompt_and_output() -> None:
    values = processed(row(repetition_penalty=2.0), [1, 2, 5], [1.0, 2.0, -2.0, 3.0, 0.0, 4.0, 1.0, 1.0])
    assert values == [1.0, 1.0, -4.0, 3.0, 0.0, 2.0, 1.0, 1.0]


def test_presence_and_frequency_penalties_count_output_only() -> None:
    sampler = row(presence_penalty=1.0, frequency_penalty=0.5, resume=3)
    assert processed(sampler, [1, 2, 5, 5, 6], [0.0] * VOCAB) == [0, 0, 0, 0, 0, -2.0, -1.5, 0]


def test_logit_bias_adds_up_and_may_forbid() -> None:
    values = processed(row(logit_bias=((0, 1.5), (0, 1.0), (3, -math.inf))), [1, 2], [0.0] * VOCAB)
    assert values == [2.5, 0, 0, -math.inf, 0, 0, 0, 0]


def test_end_tokens_are_masked_until_min_tokens_exist() -> None:
    sampler = row(min_tokens=2, temperature=0.0)
    seen = [processed(sampler, [1, 2], [0.0] * VOCAB)[7] for _ in range(3)]
    assert seen == [-math.inf, -math.inf, 0.0]


def test_a_plain_greedy_row_shares_its_sampler_and_needs_no_processor() -> None:
    first, second = row(temperature=0.0), row(temperature=0.0, seed=3)
    assert first.sampler is second.sampler
    assert first.processors == []


def test_a_failure_inside_a_row_is_kept_and_not_raised() -> None:
    sampler = row(temperature=1.0, frequency_penalty=1.0, resume=1)
    [process] = sampler.processors
    narrow = mx.zeros((1, VOCAB - 1))
    assert process(mx.array([1, 2, 3]), narrow) is narrow
    assert sampler.error is not None
    assert sampler.sampler(narrow).item() == 0
