"""What does Anthropic's protocol cost? `python -m bench.messages [--farm]` prints one table.

Translation: a message of many chunks (reasoning, text, a call) is rendered to its events' bytes, against reading the
same chunks alone. A request as coding agents send it (64 KB of tools) is parsed, validated, templated, encoded and
hashed. With `--farm` a real farm (the demo model with a longer context) answers several turns of such a conversation,
and its usage tells how many of the tokens that it had read before it read again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import orjson

from api.anthropic.draft import messages_draft
from api.anthropic.note import MessagesNote
from api.anthropic.rendering import MessagesRenderer
from api.anthropic.schemas import MessagesRequest
from api.reading import AnswerReader
from api.rendering import RenderingNote
from api.stream import sse
from bench.agent_conversation import DEMO, agent_body, agent_tools, long_context_demo
from bench.valkey_server import valkey_server
from scheduler.frames import Chunk, FrameId
from scheduler.jobs import Lane
from scheduler.models import ModelCard, tokenizer_hash
from scheduler.prompts import PromptFormat
from scheduler.routing.choice import unrouted

TOOLS_BYTES = 64 * 1024
CONTEXT_TOKENS = 131072
TURNS = 4
NOTE = RenderingNote(
    created_s=0,
    model="m",
    choices=1,
    prompt_tokens=9,
    service_tier="default",
    think=("<think>", "</think>"),
    in_thinking=True,
    call=("<tool_call>", "</tool_call>"),
    call_format="json_tools",
    extras=MessagesNote().as_dict(),
)


def pieces() -> list[str]:
    """One answer, cut into what single tokens are."""
    arguments = json.dumps({"path": "a/b.py", "text": "word " * 400})
    call = f'<tool_call>\n{{"name": "Write", "arguments": {arguments}}}\n</tool_call>'
    text = "thinking " * 400 + "</think>\n\n" + "A word " * 400 + "\n" + call
    return [text[at : at + 4] for at in range(0, len(text), 4)]


def render(parts: list[str]) -> None:
    """All chunks to the bytes that a client gets."""
    renderer = MessagesRenderer("0-JOB", NOTE, lambda token: b"")
    for number, part in enumerate(parts):
        events = renderer.step([Chunk(0, (1,), part, None, "stop" if number == len(parts) - 1 else None)])
        sse(events, FrameId(1, number + 1), named=True)


def read(parts: list[str]) -> None:
    """The same chunks without a protocol."""
    reader = AnswerReader(NOTE)
    for number, part in enumerate(parts):
        reader.feed(Chunk(0, (1,), part, None, "stop" if number == len(parts) - 1 else None))


def best_ms(work: Callable[[], object], rounds: int = 15) -> tuple[float, float]:
    """Median and worst time of a few rounds, after one that warms up."""
    work()
    times = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - began_s))
    return statistics.median(times), max(times)


def demo_format() -> PromptFormat:
    """The demo model's template and tokenizer, with room for many tools."""
    tokenizer = (DEMO / "tokenizer.json").read_text(encoding="utf-8")
    card = ModelCard(
        name="demo",
        created_s=0,
        context_tokens=CONTEXT_TOKENS,
        vocab_tokens=1536,
        tokenizer_sha256=tokenizer_hash(tokenizer),
        chat_template=(DEMO / "chat_template.jinja").read_text(encoding="utf-8"),
        bos_token=None,
        eos_token="<|im_end|>",
        eos_token_ids=(1,),
        think_start="<think>",
        think_end="</think>",
        has_tool_calling=True,
        tool_call_start="<tool_call>",
        tool_call_end="</tool_call>",
        engine="paged",
        parameters=1,
        weight_bytes=1,
        obeys_grammars=True,
        tool_format="json_tools",
    )
    return PromptFormat(card, tokenizer)


def accept(raw: bytes, prompts: PromptFormat) -> int:
    """From a body's bytes to a job's; returns the prompt's tokens."""
    draft = messages_draft(MessagesRequest.model_validate(orjson.loads(raw)))
    assert draft.body_hash
    job = asyncio.run(draft.request(prompts.card, prompts, unrouted("m", Lane.NORMAL)))
    job.encode()
    return job.prompt_tokens


def costs() -> None:
    """The table of translation and acceptance."""
    parts = pieces()
    whole_ms, bare_ms = best_ms(lambda: render(parts))[0], best_ms(lambda: read(parts))[0]
    print(f"{len(parts)} chunks to events: {whole_ms / len(parts):.4f} ms per chunk", end="")
    print(f" (of it {bare_ms / len(parts):.4f} ms for reading what the model wrote)")
    body = agent_body("demo", agent_tools(TOOLS_BYTES), [{"role": "user", "content": "Look."}], turn=0)
    raw, prompts = orjson.dumps(body), demo_format()
    tokens = accept(raw, prompts)
    median_ms, worst_ms = best_ms(lambda: accept(raw, prompts))
    print(f"a request of {len(raw)} bytes, {tokens} tokens: {median_ms:.1f} ms (worst {worst_ms:.1f}) to its job")
    validated_ms, _ = best_ms(lambda: messages_draft(MessagesRequest.model_validate(orjson.loads(raw))).body_hash)
    ids_ms, _ = best_ms(lambda: prompts.encode(rendered(prompts, body), add_special_tokens=False))
    print(f"  of it parsing, checking, hashing {validated_ms:.1f} ms; template and tokenizer {ids_ms:.1f} ms")


def rendered(prompts: PromptFormat, body: dict[str, Any]) -> str:
    """The prompt's text."""
    named = [(tool["name"], tool["description"], tool["input_schema"]) for tool in body["tools"]]
    fields = [{"name": name, "description": text, "parameters": schema} for name, text, schema in named]
    tools = [{"type": "function", "function": function} for function in fields]
    return prompts.render(body["messages"], tools=tools)


def conversation(tools_bytes: int) -> None:
    """The table of turns against a real farm."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = long_context_demo(home / "demo", CONTEXT_TOKENS)
        url = stack.enter_context(valkey_server(home))
        environment = {**os.environ, "FARM_HOME": str(home), "FARM_REDIS_URL": url, "FARM_PORT": "0"}
        environment |= {"FARM_SUPERVISED": "1", "FARM_MODEL": str(model), "FARM_MODEL_NAME": "demo"}
        environment |= {"FARM_DATABASE_URL": f"sqlite+aiosqlite:///{home}/farm.db"}
        for role in ("workers", "scheduler"):
            start(stack, role, environment)
        talk(start(stack, "api", environment)["url"], agent_tools(tools_bytes))


def talk(url: str, tools: list[dict[str, Any]]) -> None:
    """An agent's turns, each with a call that is forced, and its result."""
    messages: list[Any] = [{"role": "user", "content": "Look at the first file."}]
    known_tokens = 0
    for turn in range(TURNS):
        body = agent_body("demo", tools, messages, turn=turn) | {"max_tokens": 60, "thinking": {"type": "disabled"}}
        body["tool_choice"] = {"type": "tool", "name": "Tool1"}
        began_s = time.perf_counter()
        answer = httpx2.post(f"{url}/v1/messages", json=body, timeout=600).raise_for_status().json()
        usage = answer["usage"]
        prompt = sum(usage[name] for name in usage if name.endswith("input_tokens"))
        again = known_tokens - usage["cache_read_input_tokens"] if turn else 0
        took_s = time.perf_counter() - began_s
        print(f"turn {turn + 1}: {prompt} tokens, {usage['cache_read_input_tokens']} read from the cache, ", end="")
        print(f"{again} known ones computed again ({100 * again / prompt:.2f} %), {took_s:.1f} s")
        known_tokens = prompt
        calls = [block for block in answer["content"] if block["type"] == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": call["id"], "content": "one line"} for call in calls]
        messages += [{"role": "assistant", "content": answer["content"]}, {"role": "user", "content": results}]


def start(stack: ExitStack, role: str, environment: dict[str, str]) -> dict[str, Any]:
    """One process of the farm, ended with the stack; returns its READY line."""
    process = subprocess.Popen(
        [sys.executable, "-m", role], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    stack.callback(process.wait, 60)
    stack.callback(process.terminate)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("READY "):
            facts: dict[str, Any] = json.loads(line.removeprefix("READY "))
            return facts
    raise RuntimeError(f"{role} did not get ready")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--farm", action="store_true", help="several turns against a real farm, too")
    parser.add_argument("--tools-bytes", type=int, default=16 * 1024, help="of the conversation with the farm")
    asked = parser.parse_args()
    costs()
    if asked.farm:
        conversation(asked.tools_bytes)


if __name__ == "__main__":
    main()
