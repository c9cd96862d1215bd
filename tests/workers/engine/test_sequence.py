"""The life of one sequence: validation, counting, endings, resuming."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from workers.engine import FinishReason, InvalidPrompt, Prompt, SamplingParams, StopRule
from workers.engine.sequence import Limits, Sequence, check_prompt
from workers.engine.vocabulary import Vocabulary

EOS = 999
LIMITS = Limits(vocab_size=1000, context_tokens=40, eos_token_ids=frozenset({EOS, 998}))


def make_prompt(*, ids: tuple[int, ...] = (1, 2, 3), resume: tuple[int, ...] = (), **stop: Any) -> Prompt:
    rule = StopRule(**{"max_tokens": 10, **stop})
    return Prompt(id="p", token_ids=ids, sampling=SamplingParams(), stop=rule, resume_ids=resume)


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer)


def ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text).ids)


def test_a_sequence_ends_by_length_with_its_last_token(vocabulary: Vocabulary) -> None:
    sequence = Sequence(make_prompt(max_tokens=2), LIMITS, vocabulary.start_text)
    reasons = []
    for token in (64, 65):
        sequence.advance(token)
        reasons.append(sequence.finish_reason)
    assert reasons == [None, FinishReason.LENGTH]


def test_a_sequence_ends_by_length_at_the_end_of_the_context(vocabulary: Vocabulary) -> None:
    sequence = Sequence(make_prompt(ids=(1,) * 38, max_tokens=10), LIMITS, vocabulary.start_text)
    sequence.advance(64)
    sequence.advance(65)
    assert sequence.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("token", [EOS, 998, 500])
def test_an_end_token_is_neither_counted_nor_text(vocabulary: Vocabulary, token: int) -> None:
    sequence = Sequence(make_prompt(token_ids=(500,)), LIMITS, vocabulary.start_text)
    sequence.advance(64)
    assert sequence.advance(token) == ""
    assert (sequence.finish_reason, sequence.output_tokens) == (FinishReason.STOP, 1)


def test_ignore_eos_keeps_stop_token_ids(vocabulary: Vocabulary) -> None:
    sequence = Sequence(make_prompt(token_ids=(500,), ignore_eos=True), LIMITS, vocabulary.start_text)
    assert sequence.end_ids == {500}


def test_text_held_for_a_stop_string_is_sent_when_the_sequence_ends(
    vocabulary: Vocabulary, tokenizer: Tokenizer
) -> None:
    sequence = Sequence(make_prompt(strings=("xyz",), max_tokens=3), LIMITS, vocabulary.start_text)
    assert [sequence.advance(token) for token in ids(tokenizer, "axy")] == ["a", "", "xy"]
    assert sequence.finish_reason is FinishReason.LENGTH


def test_a_stop_string_completed_by_the_last_token_counts_as_stop(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    sequence = Sequence(make_prompt(strings=("xy",), max_tokens=3), LIMITS, vocabulary.start_text)
    assert [sequence.advance(token) for token in ids(tokenizer, "axy")] == ["a", "", ""]
    assert (sequence.finish_reason, sequence.stop_string) == (FinishReason.STOP, "xy")
    assert sequence.output_tokens == 3


def test_stop_strings_are_not_looked_for_before_min_tokens(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    sequence = Sequence(make_prompt(strings=("xy",), min_tokens=2), LIMITS, vocabulary.start_text)
    assert [sequence.advance(token) for token in ids(tokenizer, "xyxy")] == ["x", "y", "", ""]
    assert sequence.stop_string == "xy"


def test_abandoning_returns_the_held_text(vocabulary: Vocabulary, tokenizer: Tokenizer) -> None:
    sequence = Sequence(make_prompt(strings=("xyz",)), LIMITS, vocabulary.start_text)
    for token in ids(tokenizer, "xy"):
        sequence.advance(token)
    assert sequence.abandon(FinishReason.CANCELLED) == "xy"


@given(st.lists(st.integers(0, 260), max_size=12), st.integers(0, 12))
def test_a_resumed_sequence_says_exactly_what_was_left_to_say(
    vocabulary: Vocabulary, tokens: list[int], cut: int
) -> None:
    rule: dict[str, Any] = {"strings": ("a", "the"), "max_tokens": 11, "min_tokens": 2}
    whole = Sequence(make_prompt(**rule), LIMITS, vocabulary.start_text)
    said = []
    for token in tokens:
        if whole.finish_reason is None:
            said.append(whole.advance(token))
    cut = min(cut, len(said))
    again = Sequence(make_prompt(resume=tuple(tokens[:cut]), **rule), LIMITS, vocabulary.start_text)
    assert [again.advance(token) for token in tokens[cut : len(said)]] == said[cut:]
    assert (again.finish_reason, again.stop_string) == (whole.finish_reason, whole.stop_string)
    assert again.output_tokens == whole.output_tokens


@pytest.mark.parametrize(("resume", "rule"), [((64, 65), {"max_tokens": 2}), ((), {"max_tokens": 0})])
def test_a_sequence_that_has_all_its_tokens_is_finished_from_the_start(
    vocabulary: Vocabulary, resume: tuple[int, ...], rule: dict[str, Any]
) -> None:
    sequence = Sequence(make_prompt(resume=resume, **rule), LIMITS, vocabulary.start_text)
    assert sequence.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (make_prompt(ids=()), "empty"),
        (make_prompt(ids=(1,) * 40), "context of 40"),
        (make_prompt(ids=(1000,)), "vocabulary"),
        (make_prompt(resume=(-1,)), "vocabulary"),
        (make_prompt(max_tokens=-1), "max_tokens"),
        (make_prompt(min_tokens=11), "min_tokens"),
        (make_prompt(strings=("",)), "stop string"),
        (make_prompt(token_ids=(1000,)), "token_ids"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_refused_with_the_reason(prompt: Prompt, message: str) -> None:
    with pytest.raises(InvalidPrompt, match=message):
        check_prompt(prompt, LIMITS)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"presence_penalty": float("inf")},
        {"logit_bias": ((1000, 1.0),)},
        {"logit_bias": ((1, float("nan")),)},
    ],
)
def test_sampling_parameters_out_of_range_are_refused(values: dict[str, float]) -> None:
    sampling = SamplingParams(**values)  # type: ignore[arg-type]
    prompt = Prompt(id="p", token_ids=(1,), sampling=sampling, stop=StopRule(max_tokens=1))
    with pytest.raises(InvalidPrompt):
        check_prompt(prompt, LIMITS)


@pytest.mark.parametrize("top", [-1, 21])
def test_more_alternatives_than_twenty_are_refused(top: int) -> None:
    prompt = Prompt(id="p", token_ids=(1,), sampling=SamplingParams(), stop=StopRule(max_tokens=1), logprobs=top)
    with pytest.raises(InvalidPrompt, match="logprobs"):
        check_prompt(prompt, LIMITS)
