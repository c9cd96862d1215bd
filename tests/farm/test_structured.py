"""Answers of a bound form, from the demo model through the openai SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from openai import BadRequestError, OpenAI
from pydantic import BaseModel


class Animal(BaseModel):
    """What the model is asked for."""

    name: str
    legs: int
    kind: Literal["bird", "fish", "other"]


ASK: list[Any] = [{"role": "user", "content": "Give me a JSON object about a cat."}]


@pytest.fixture
def client(farm: Any) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{farm.url}/v1", api_key="none", max_retries=9) as client:
        yield client


@pytest.mark.parametrize("temperature", [0, 2])
def test_the_parse_helper_gets_its_class_whole_and_streamed(client: OpenAI, temperature: float) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": ASK, "temperature": temperature, "seed": 3}
    whole = client.chat.completions.parse(**asked, response_format=Animal)
    assert isinstance(whole.choices[0].message.parsed, Animal)
    assert whole.choices[0].finish_reason == "stop"
    with client.chat.completions.stream(**asked, response_format=Animal) as stream:
        final = stream.until_done().get_final_completion()
    assert final.choices[0].message.parsed == whole.choices[0].message.parsed


def test_every_choice_is_a_json_object(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=ASK, response_format={"type": "json_object"}, n=4, temperature=1.5, seed=1
    )
    ended = [choice for choice in answer.choices if choice.finish_reason == "stop"]
    assert ended
    assert all(isinstance(json.loads(choice.message.content or ""), dict) for choice in ended)


def test_the_model_thinks_first_and_then_keeps_to_the_form(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "What is 2 + 3?"}],
        temperature=0,
        reasoning_effort="low",
        extra_body={"guided_choice": ["5", "6"]},
    )
    assert answer.choices[0].message.content in ("5", "6")


def test_completions_keep_to_a_regular_expression(client: OpenAI) -> None:
    answer = client.completions.create(
        model="demo", prompt="A code: ", max_tokens=50, temperature=2, seed=1, extra_body={"guided_regex": "[a-f]{8}"}
    )
    assert len(answer.choices[0].text) == 8
    assert set(answer.choices[0].text) <= set("abcdef")


def test_a_schema_that_the_engine_alone_finds_impossible_is_a_400(client: OpenAI) -> None:
    long = "x" * 20_000  # longer than what the door looks at
    schema: dict[str, Any] = {"type": "object", "properties": {long: {"not": {}}}}
    with pytest.raises(BadRequestError, match="'not'") as refusal:
        client.chat.completions.create(
            model="demo",
            messages=ASK,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )
    assert refusal.value.code == "invalid_request"


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"unit": {"enum": ["C", "F"]}, "days": {"type": "integer", "maximum": 9}},
                "required": ["unit", "days"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("get_forecast", "get_history")
]


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"get_forecast", "get_history"}),
        ({"type": "function", "function": {"name": "get_history"}}, {"get_history"}),
    ],
)
@pytest.mark.parametrize("effort", ["none", "low"])
def test_a_forced_call_comes_with_arguments_of_its_schema(
    client: OpenAI, choice: Any, names: set[str], effort: Any
) -> None:
    asked: dict[str, Any] = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Hello!"}],
        "tools": TOOLS,
        "tool_choice": choice,
        "reasoning_effort": effort,
        "parallel_tool_calls": False,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**asked).choices[0]
    [call] = whole.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name in names
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"unit", "days"}
    assert arguments["days"] <= 9
    assert whole.finish_reason == "tool_calls"
    with client.chat.completions.stream(**asked) as stream:
        final = stream.until_done().get_final_completion()
    [streamed] = final.choices[0].message.tool_calls or []
    assert streamed.function.arguments == call.function.arguments
