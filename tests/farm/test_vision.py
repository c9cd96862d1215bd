"""A model that sees in a whole farm: three protocols, batches, and kill -9, with the tokens of mlx-vlm alone."""

from __future__ import annotations

import base64
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from bench.tiny_vision import write_vision_model
from scheduler.prompts import PromptFormat
from tests.farm.streams import Answer
from tests.pictures import data_url, picture
from tests.scheduler.builders import make_card
from tests.workers.vision.conftest import Alone

FAMILY = "qwen2_5_vl"
IMAGES = (picture(1, 130, 90), picture(2, 60, 200, "JPEG"))
PARTS: list[dict[str, Any]] = [
    {"type": "text", "text": "Compare "},
    {"type": "image_url", "image_url": {"url": data_url(IMAGES[0])}},
    {"type": "image_url", "image_url": {"url": data_url(IMAGES[1], "jpeg")}},
    {"type": "text", "text": " now."},
]
BODY: dict[str, Any] = {
    "model": FAMILY,
    "messages": [{"role": "user", "content": PARTS}],
    "temperature": 0,
    "max_tokens": 24,
}
MARK = "<|vision_start|><|image_pad|><|vision_end|>"
PROMPT = f"<|im_start|>user\nCompare {MARK}{MARK} now.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vision_model(tmp_path_factory.mktemp("models") / FAMILY, FAMILY)


@pytest.fixture(scope="module")
def seeing_farm(start_farm: Callable[..., Any], folder: Path) -> Any:
    """A farm whose model sees."""
    return start_farm(model=str(folder), lease_s="3")


@pytest.fixture
def http(seeing_farm: Any) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=seeing_farm.url, timeout=120) as client:
        yield client


def test_an_answer_has_the_tokens_of_mlx_vlm_alone(seeing_farm: Any, folder: Path) -> None:
    alone = Alone(folder)
    ids = alone.tokens(PROMPT, IMAGES, 24)
    shown = PromptFormat(make_card(), (folder / "tokenizer.json").read_text(encoding="utf-8"))
    with openai.OpenAI(base_url=f"{seeing_farm.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        answer = client.chat.completions.create(**BODY, logprobs=True, extra_body={"ignore_eos": True})
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == alone.prompt(PROMPT, IMAGES)["input_ids"].shape[1]
    assert answer.choices[0].logprobs is not None
    said = [item.bytes for item in answer.choices[0].logprobs.content or ()]
    assert said == [list(shown.token_bytes(token)) for token in ids]


def test_all_protocols_and_a_batch_say_the_same(seeing_farm: Any, eventually: Callable[..., Any]) -> None:
    sources = [
        {"type": "base64", "media_type": kind, "data": base64.b64encode(data).decode()}
        for kind, data in zip(("image/png", "image/jpeg"), IMAGES, strict=True)
    ]
    blocks: list[Any] = [PARTS[0], *({"type": "image", "source": source} for source in sources), PARTS[3]]
    items: list[Any] = [
        {"type": "input_image", "image_url": part["image_url"]["url"]} if "image_url" in part else
        {"type": "input_text", "text": part["text"]}
        for part in PARTS
    ]  # fmt: skip
    seeing_farm.start("api.batches")
    with openai.OpenAI(base_url=f"{seeing_farm.url}/v1", api_key="none", max_retries=5, timeout=120) as client:
        chat = client.chat.completions.create(**BODY).choices[0].message.content
        kept = client.responses.create(
            model=FAMILY, input=[{"role": "user", "content": items}], temperature=0, max_output_tokens=24
        )
        lines = [
            json.dumps({"custom_id": f"r{n}", "method": "POST", "url": "/v1/chat/completions", "body": BODY})
            for n in range(2)
        ]
        file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        eventually(lambda: client.batches.retrieve(batch.id).status == "completed", 120)
        results = client.files.content(client.batches.retrieve(batch.id).output_file_id or "").text.splitlines()
    with anthropic.Anthropic(base_url=seeing_farm.url, api_key="none", max_retries=0, timeout=120) as claude:
        messages: list[Any] = [{"role": "user", "content": blocks}]
        message = claude.messages.create(model=FAMILY, max_tokens=24, messages=messages, extra_body={"temperature": 0})
        counted = claude.messages.count_tokens(model=FAMILY, messages=messages)
    assert counted.input_tokens == message.usage.input_tokens
    assert chat
    said = [json.loads(line)["response"]["body"]["choices"][0]["message"]["content"] for line in results]
    assert said == [chat] * 2
    assert kept.output_text == chat
    assert "".join(block.text for block in message.content if block.type == "text") == chat


def test_a_killed_process_is_a_pause_for_who_waits_for_a_picture(seeing_farm: Any) -> None:
    body = BODY | {"max_tokens": 500, "ignore_eos": True, "stream": True}
    undisturbed = Answer(seeing_farm.url, body).read()
    with Answer(seeing_farm.url, body) as disturbed:
        disturbed.read(events=5)
        os.kill(seeing_farm.model_pid(FAMILY), signal.SIGKILL)
        assert disturbed.read() == undisturbed


def test_a_file_that_cannot_be_decoded_is_the_callers_fault(http: httpx2.Client, seeing_farm: Any) -> None:
    whole = picture(9, 100, 100)
    part = {"type": "image_url", "image_url": {"url": data_url(whole[: len(whole) // 2])}}
    refused = http.post("/v1/chat/completions", json=BODY | {"messages": [{"role": "user", "content": [part]}]})
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "invalid_request")
    assert "cannot be decoded" in error["message"]
