"""A job as a provider is asked it, in both protocols."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from api.errors import ApiError
from api.kinds import draft_of
from scheduler.jobs import Lane
from scheduler.models import ModelCard
from scheduler.providers import Provider, read_provider
from scheduler.requests import JobRequest
from scheduler.routing.choice import Route
from scheduler.routing.rules import Overrides, Target
from workers.providers import anthropic, openai
from workers.providers.serving import provider_card

PIXEL = "data:image/png;base64,iVBORw0KGgo="
TOOL = {"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}
CALL = {"id": "call.1", "type": "function", "function": {"name": "look", "arguments": '{"x": 1}'}}
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": PIXEL}}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call.1", "content": "a dot"},
    {"role": "user", "content": "And?"},
]


def provider(kind: str, **changes: Any) -> Provider:
    said = {"name": "cloud", "kind": kind, "base_url": "https://x.example/v1"}
    return read_provider(said | {"models": [{"name": "big", "max_output_tokens": 500}]} | changes)


def card(kind: str) -> ModelCard:
    return provider_card(provider(kind), provider(kind).models[0])


def asked(kind: str, job: str = "chat.completions", overrides: dict[str, Any] | None = None, **body: Any) -> JobRequest:
    """The job's body, as it comes to a worker."""
    route = Route(
        targets=(Target(model="cloud/big"),), lane=Lane.NORMAL, overrides=Overrides.model_validate(overrides or {})
    )
    draft = draft_of(job, {"model": "cloud/big", "messages": [{"role": "user", "content": "Hi"}], **body})
    request = draft.hosted(card(kind), route, 7)
    assert request.prompt_tokens == 7
    assert request.kind == job
    return JobRequest.decode(request.encode())


def sent(kind: str, **more: Any) -> dict[str, Any]:
    protocol = {"openai": openai, "anthropic": anthropic}[kind]
    body: dict[str, Any] = orjson.loads(protocol.body_of(asked(kind, **more), "big", provider(kind)))
    return body


def test_what_says_nothing_is_not_sent() -> None:
    whole = {"model": "big", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    assert sent("openai") == whole | {"stream_options": {"include_usage": True}}
    turns = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert sent("anthropic") == whole | {"max_tokens": 500, "messages": turns}


def test_a_whole_conversation_with_tools_and_an_image_goes_to_openai_as_it_is() -> None:
    body = sent("openai", messages=TURNS, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["messages"][1]["content"][1] == {"type": "image_url", "image_url": {"url": PIXEL}}
    assert body["messages"][2] == {"role": "assistant", "tool_calls": [CALL]}
    assert body["messages"][3] == {"role": "tool", "content": "a dot", "tool_call_id": "call.1"}
    assert (body["tools"], body["tool_choice"], body["parallel_tool_calls"]) == ([TOOL], "required", False)


def test_the_same_in_anthropics_words() -> None:
    body = sent("anthropic", messages=TURNS, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    assert body["system"] == "Be brief."
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "a dot"}]}
    assert body["messages"] == [
        {"role": "user", "content": [{"type": "text", "text": "See"}, image]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "call_1", "name": "look", "input": {"x": 1}}]},
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
    ]
    assert body["tools"] == [{"name": "look", "description": "d", "input_schema": {"type": "object"}}]
    assert body["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}


def test_parameters_and_those_that_a_rule_sets() -> None:
    parameters = {"temperature": 0.5, "top_p": 0.9, "stop": ["x"], "max_tokens": 50}
    body = sent("openai", **parameters, seed=3, presence_penalty=0.1, overrides={"temperature": 0.25, "max_tokens": 20})
    assert (body["temperature"], body["top_p"], body["stop"], body["seed"]) == (0.25, 0.9, ["x"], 3)
    assert (body["max_completion_tokens"], body["presence_penalty"]) == (20, 0.1)
    body = sent("anthropic", **parameters, top_k=5)
    assert (body["temperature"], body["top_k"], body["stop_sequences"], body["max_tokens"]) == (0.5, 5, ["x"], 50)


def test_an_older_server_is_told_the_length_in_its_word() -> None:
    older = provider("openai", length_field="max_tokens")
    body = orjson.loads(openai.body_of(asked("openai", max_tokens=50), "big", older))
    assert (body["max_tokens"], "max_completion_tokens" in body) == (50, False)


def test_a_schema_in_both_protocols() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}}
    assert sent("openai", response_format=form)["response_format"] == form
    config = sent("anthropic", response_format=form)["output_config"]
    assert config == {"format": {"type": "json_schema", "schema": {"type": "object"}}}


def test_thinking_in_both_protocols() -> None:
    assert sent("openai", reasoning_effort="low")["reasoning_effort"] == "low"
    thinking = {"type": "enabled", "budget_tokens": 2048}
    assert sent("anthropic", reasoning_effort="low", max_tokens=9000)["thinking"] == thinking
    said = sent("anthropic", job="messages", thinking=thinking | {"budget_tokens": 3000}, max_tokens=9000)
    assert said["thinking"] == {"type": "enabled", "budget_tokens": 3000}
    assert "thinking" not in sent("anthropic", job="messages", max_tokens=9000)
    behind_a_result = {"messages": TURNS[:4], "tools": [TOOL], "reasoning_effort": "low", "max_tokens": 9000}
    assert "thinking" not in sent("anthropic", **behind_a_result)


def test_a_message_and_a_response_are_asked_like_a_chat() -> None:
    message = sent("openai", job="messages", system="Be brief.", max_tokens=5)
    assert message["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert message["max_completion_tokens"] == 5
    route = Route(targets=(Target(model="cloud/big"),), lane=Lane.NORMAL)
    draft = draft_of("responses", {"model": "cloud/big", "input": "Hi", "instructions": "Be brief.", "store": False})
    body = orjson.loads(openai.body_of(draft.hosted(card("openai"), route, 7), "big", provider("openai")))
    assert [turn["content"] for turn in body["messages"]] == ["Be brief.", "Hi"]


@pytest.mark.parametrize(
    ("kind", "body", "param"),
    [
        ("openai", {"logprobs": True}, "logprobs"),
        ("openai", {"logit_bias": {"1": 5}}, "logit_bias"),
        ("openai", {"top_k": 5}, "top_k"),
        ("openai", {"overrides": {"min_p": 0.1}}, "min_p"),
        ("openai", {"guided_regex": "a+"}, "guided_regex"),
        ("openai", {"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ("openai", {"thinking_token_budget": 10}, "thinking_token_budget"),
        ("anthropic", {"presence_penalty": 1.0}, "presence_penalty"),
        ("anthropic", {"seed": 1}, "seed"),
        ("anthropic", {"temperature": 1.5}, "temperature"),
        ("anthropic", {"response_format": {"type": "json_object"}}, "response_format.type"),
        (
            "openai",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]}]},
            "messages.0.content.0.image_url",
        ),
    ],
)
def test_what_no_provider_honours_is_refused_by_name(kind: str, body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        asked(kind, **body)
    assert (refused.value.status_code, refused.value.param) == (400, param)
