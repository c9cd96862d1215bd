"""The openai SDK against a real farm with the demo model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI

QUESTION: list[Any] = [{"role": "user", "content": "What is mlx-farm?"}]


@pytest.fixture
def client(farm: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{farm.url}/v1", api_key="none", max_retries=9) as client:
        yield client


@pytest.fixture
async def async_client(farm: Any) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{farm.url}/v1", api_key="none", max_retries=9) as client:
        yield client


def test_a_chat_answer_has_text_a_finish_reason_and_true_usage(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    assert "farm" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_streamed_text_equals_the_unary_text(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    stream = client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 3
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert chunks[-1].usage == whole.usage


def test_the_stream_helper_builds_the_final_completion(client: OpenAI) -> None:
    with client.chat.completions.stream(model="demo", messages=QUESTION, temperature=0) as stream:
        texts = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(texts) == final.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"


def test_the_raw_response_carries_the_ids_of_request_and_job(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="demo", messages=QUESTION, max_tokens=4, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    assert raw.parse().id == f"chatcmpl-{raw.headers['farm-job-id']}"


async def test_async_clients_stream_side_by_side(async_client: AsyncOpenAI) -> None:
    async def ask(question: str) -> str:
        stream = await async_client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": question}], temperature=0, stream=True
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

    answers = await asyncio.gather(*(ask(q) for q in ("Hello!", "What is mlx-farm?", "What is 2 + 3?")))
    assert "5" in answers[2]
    assert "farm" in answers[1]


def test_a_seed_makes_a_sampled_answer_repeatable(client: OpenAI) -> None:
    def ask(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "Tell me a story."}], temperature=2, seed=seed
        )
        return answer.choices[0].message.content

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(4)}) > 1


def test_n_choices_differ_and_are_indexed(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Tell me a story."}], temperature=2, seed=1, n=3
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_a_stop_string_never_appears_in_the_text(client: OpenAI) -> None:
    stream = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, stop=["farm"], stream=True)
    text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
    assert "farm" not in text


def test_logprobs_name_each_token_and_its_alternatives(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=QUESTION, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 5
    assert all(len(token.top_logprobs) == 3 for token in logprobs.content)
    assert all(token.token == token.top_logprobs[0].token for token in logprobs.content)
    assert (
        b"".join(bytes(token.bytes or []) for token in logprobs.content).decode() == answer.choices[0].message.content
    )


def test_completions_continue_plain_text(client: OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt=["one two", "a b"], max_tokens=4, temperature=0, echo=True)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text.startswith("one two")


def test_an_echo_tells_how_likely_the_prompt_was(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "demo", "prompt": "one two three", "max_tokens": 2, "temperature": 0}
    answers = [
        client.completions.create(**asked, echo=True, logprobs=2) for _ in range(2)
    ]  # the second time it is cached
    plain = client.completions.create(**asked, logprobs=2).choices[0]
    for answer in answers:
        choice = answer.choices[0]
        assert answer.usage is not None
        assert choice.logprobs is not None
        assert plain.logprobs is not None
        prompt_tokens = answer.usage.prompt_tokens
        tokens, scores = choice.logprobs.tokens or [], choice.logprobs.token_logprobs or []
        assert "".join(tokens[:prompt_tokens]) == "one two three"
        assert (scores[0] is None, all(score < 0 for score in scores[1:prompt_tokens])) == (True, True)
        assert scores[prompt_tokens:] == pytest.approx(plain.logprobs.token_logprobs, abs=1e-3)
    assert answers[0].choices[0] == answers[1].choices[0]


def test_the_models_endpoint_lists_the_demo_model(client: OpenAI) -> None:
    assert "demo" in [model.id for model in client.models.list()]
    assert client.models.retrieve("demo").id == "demo"


def test_an_unknown_model_is_a_404_that_names_the_nearest(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match="demo"):
        client.chat.completions.create(model="demmo", messages=QUESTION)


def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refusal:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "word " * 5000}])
    assert refusal.value.code == "context_length_exceeded"
    assert "2048" in refusal.value.message
