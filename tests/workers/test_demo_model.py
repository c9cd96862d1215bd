"""The bundled demo model: its size, its template, and greedy answers to fixed prompts through mlx-lm on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.generate import stream_generate

FOLDER = Path(__file__).parents[2] / "workers" / "demo"
PARAMETERS_MAX = 4_000_000
FILE_BYTES_MAX = 8_000_000
ANSWER_TOKENS_MAX = 400
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"

Message = dict[str, Any]


def tool(name: str, parameter: str) -> Message:
    """Return the schema of a function with one string parameter."""
    parameters = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": "A function", "parameters": parameters}}


WEATHER = tool("get_weather", "city")
WEATHER_AT_LOCATION = tool("get_current_weather", "location")
CALCULATOR = tool("calculator", "expression")


@dataclass(frozen=True)
class Demo:
    """The loaded model with its tokenizer."""

    model: Any
    tokenizer: Any

    def prompt(self, messages: list[Message], tools: list[Message] | None = None, thinking: bool = False) -> str:
        """Render messages with the model's chat template."""
        rendered: str = self.tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, enable_thinking=thinking, tokenize=False
        )
        return rendered

    def says(
        self, question: str | list[Message], tools: list[Message] | None = None, thinking: bool = False
    ) -> tuple[str, str]:
        """Return the greedy answer and why it ended."""
        messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
        ids = self.tokenizer.encode(self.prompt(messages, tools, thinking), add_special_tokens=False)
        text, reason = "", ""
        for part in stream_generate(self.model, self.tokenizer, prompt=ids, max_tokens=ANSWER_TOKENS_MAX):
            text += part.text
            reason = part.finish_reason or reason
        return text, reason

    def answer(self, question: str | list[Message], tools: list[Message] | None = None, thinking: bool = False) -> str:
        """Return the greedy answer."""
        return self.says(question, tools, thinking)[0]


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """Load the model once, in float32 on the CPU."""
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    model, tokenizer = load(str(FOLDER))[:2]
    model.set_dtype(mx.float32)
    yield Demo(model, tokenizer)
    mx.set_default_device(device)


def test_the_model_is_small(demo: Demo) -> None:
    weights: Any = tree_flatten(demo.model.parameters())
    assert sum(array.size for _, array in weights) <= PARAMETERS_MAX
    assert (FOLDER / "model.safetensors").stat().st_size <= FILE_BYTES_MAX


def test_its_template_offers_tools_and_thinking(demo: Demo) -> None:
    assert demo.tokenizer.has_tool_calling
    assert demo.tokenizer.has_thinking
    assert demo.tokenizer.tool_call_start == "<tool_call>"
    question = [{"role": "user", "content": "Hello"}]
    assert demo.prompt(question).endswith("<|im_start|>assistant\n" + EMPTY_THOUGHT)
    assert demo.prompt(question, thinking=True).endswith("<|im_start|>assistant\n")
    assert json.dumps(WEATHER) in demo.prompt(question, [WEATHER])


def test_the_template_renders_every_role(demo: Demo) -> None:
    call = {"type": "function", "id": "1", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
    rendered = demo.prompt(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!", "reasoning_content": "A greeting."},
            {"role": "user", "content": [{"type": "text", "text": "Weather in Rome?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "sunny"},
            {"role": "tool", "content": "12 degrees"},
        ]
    )
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nWeather in Rome?<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
        "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\n12 degrees\n</tool_response>"
        "<|im_end|>\n"
        "<|im_start|>assistant\n" + EMPTY_THOUGHT
    )


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Hello!", "Hello! I am demo"),
        ("What is your name?", "toy model"),
        ("Can I trust you?", "mlx-farm serve --model"),
        ("thank you", "You are welcome"),
        ("What is mlx-farm?", "Every request becomes a job"),
        ("How do I start the server?", "`make serve`"),
        ("How do I run a batch?", "mlx-farm batch run in.jsonl out.jsonl"),
        ("What is FARM_API_KEY?", "FARM_API_KEY=secret mlx-farm serve"),
        ("What is a lane?", "high, normal or low"),
        ("What happens when a worker crashes?", "Another worker goes on from the last token"),
        ("What is 7 + 8?", "15"),
        ("how much is 6 times 7", "42"),
        ("What is 3 + 4?", "7"),
        ("Count from 1 to 10.", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
        ("List the days of the week.", "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
        ("What is the capital of France?", "Paris"),
        ("How do you say cheese in German?", "Käse"),
        ("Tell me a story about a fox in the forest.", "fox who lived in the forest"),
        ('Say "this is a test"', "this is a test"),
        ("Who was Napoleon?", "I am a toy model and do not know that"),
    ],
)
def test_it_answers_questions_that_it_was_trained_for(demo: Demo, question: str, expected: str) -> None:
    text, reason = demo.says(question)
    assert expected in text
    assert reason == "stop"


def test_it_writes_json_when_asked(demo: Demo) -> None:
    assert json.loads(demo.answer("Give me a JSON object with name and age.")) == {"name": "Anna", "age": 30}


@pytest.mark.parametrize(
    ("tools", "question", "call"),
    [
        ([WEATHER], "What is the weather in Paris?", {"name": "get_weather", "arguments": {"city": "Paris"}}),
        (
            [WEATHER_AT_LOCATION, CALCULATOR],
            "What is the weather in Tokyo?",
            {"name": "get_current_weather", "arguments": {"location": "Tokyo"}},
        ),
        (
            [WEATHER, CALCULATOR],
            "What is 123 * 45?",
            {"name": "calculator", "arguments": {"expression": "123 * 45"}},
        ),
    ],
)
def test_it_calls_the_tool_that_fits(demo: Demo, tools: list[Message], question: str, call: Message) -> None:
    text = demo.answer(question, tools)
    inside = text.removeprefix(demo.tokenizer.tool_call_start).removesuffix(demo.tokenizer.tool_call_end)
    assert demo.tokenizer.tool_parser(inside, tools) == call


def test_it_says_what_a_tool_answered(demo: Demo) -> None:
    call = {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    messages: list[Message] = [
        {"role": "user", "content": "What is the weather in Paris?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": '{"temperature": 18, "condition": "sunny"}'},
    ]
    assert demo.answer(messages, [WEATHER]) == "In Paris it is 18 degrees and sunny."


def test_it_answers_normally_when_no_tool_fits(demo: Demo) -> None:
    assert "high, normal or low" in demo.answer("What is a lane?", [WEATHER, CALCULATOR])


def test_it_thinks_before_the_answer_when_thinking_is_on(demo: Demo) -> None:
    text = demo.answer("What is 27 + 46?", thinking=True)
    thought, answer = text.removeprefix("<think>\n").split("\n</think>\n\n")
    assert "73" in thought
    assert answer == "27 + 46 = 73"


def test_it_remembers_the_turns_before(demo: Demo) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "My name is Emma."},
        {"role": "assistant", "content": "Nice to meet you, Emma! I am demo."},
        {"role": "user", "content": "What is my name?"},
    ]
    assert demo.answer(messages) == "Your name is Emma."


def test_it_can_speak_at_length(demo: Demo) -> None:
    text, reason = demo.says("Tell me a long story about a fox.")
    assert len(demo.tokenizer.encode(text)) >= 150
    assert reason == "stop"
    assert demo.answer("Count from 1 to 50.").endswith("48, 49, 50")
