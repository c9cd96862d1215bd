"""A row's answer does not depend on who shares its batch."""

from __future__ import annotations

import asyncio
from typing import Any

from openai import AsyncOpenAI

STREAMS = 64
QUESTIONS = (
    "Tell me a story.",
    "What is mlx-farm?",
    "Tell me a long story about a fox.",
    "Give me a JSON object with name and age.",
    "Tell me a two-sentence story about a robot in the library.",
)
STOPS: tuple[list[str] | None, ...] = (None, ["brought"], ["farm", "and"], None, ["help", "!"])


def request(index: int) -> dict[str, Any]:
    """The index-th request: its own sampling parameters, seed, penalties, stop strings and length."""
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": QUESTIONS[index % len(QUESTIONS)]}],
        "temperature": (0, 0.7, 1.3, 1.8)[index % 4],
        "top_p": (1.0, 0.98, 0.95)[index % 3],
        "seed": 1000 + index,
        "stop": STOPS[index % len(STOPS)],
        "max_tokens": 24 + index % 17,
        "presence_penalty": (0.0, 0.5)[index % 2],
        "frequency_penalty": (0.0, 0.0, 0.4)[index % 3],
        "stream": True,
        "extra_body": {"top_k": (0, 100, 20)[index % 3], "min_p": (0.0, 0.01)[index % 2], "ignore_eos": index % 7 == 0},
    }


async def test_64_different_streams_at_once_each_return_what_they_return_alone(farm: Any) -> None:
    async with AsyncOpenAI(base_url=f"{farm.url}/v1", api_key="none", max_retries=9) as client:

        async def ask(index: int) -> tuple[str, str | None]:
            text, reason = "", None
            async for chunk in await client.chat.completions.create(**request(index)):
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                    reason = choice.finish_reason or reason
            return text, reason

        together = await asyncio.gather(*(ask(index) for index in range(STREAMS)))
        alone = [await ask(index) for index in range(STREAMS)]
    different = [index for index in range(STREAMS) if together[index] != alone[index]]
    assert not different, [(together[index], alone[index]) for index in different]
    assert len({text for text, _ in together}) > STREAMS // 2, "the requests are too much alike to show anything"
