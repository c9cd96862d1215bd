"""Conversations as coding agents have them: many tools, a system prompt whose first block changes from turn to turn."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parent.parent / "workers" / "demo"
WORDS = [
    "file",
    "path",
    "read",
    "write",
    "search",
    "line",
    "text",
    "edit",
    "command",
    "output",
    "string",
    "value",
    "start",
    "end",
    "match",
    "folder",
    "result",
]


def agent_tools(size_bytes: int, seed: int = 0) -> list[dict[str, Any]]:
    """Tools whose JSON is about as long as asked."""
    rng = random.Random(seed)
    tools: list[dict[str, Any]] = []
    while len(json.dumps(tools)) < size_bytes:
        words = [" ".join(rng.choices(WORDS, k=40)) for _ in range(6)]
        fields = {f"{rng.choice(WORDS)}_{index}": {"type": "string", "description": words[index]} for index in range(5)}
        schema = {"type": "object", "properties": fields, "required": list(fields)[:2], "additionalProperties": False}
        tools.append({"name": f"Tool{len(tools)}", "description": f"{words[5]}.", "input_schema": schema})
    return tools


def agent_body(model: str, tools: list[dict[str, Any]], messages: list[Any], *, turn: int) -> dict[str, Any]:
    """The body of a turn: billing block, betas' fields, moved cache marks and all."""
    cached = {"cache_control": {"type": "ephemeral"}}
    blocks: list[dict[str, Any]] = [
        {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.197.{turn * 7919 % 4096:03x};"},
        {"type": "text", "text": "You are an agent that works on files.", **cached},
        {"type": "text", "text": "Use the tools. " + " ".join(WORDS)},
    ]
    return {
        "model": model,
        "max_tokens": 32000,
        "system": blocks,
        "tools": [*tools[:-1], {**tools[-1], **cached}] if tools else [],
        "messages": messages,
        "thinking": {"type": "adaptive"},
        "output_config": {"effort": "medium"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": json.dumps({"session_id": "0b1f", "device_id": "9"})},
    }


def long_context_demo(path: Path, context_tokens: int) -> Path:
    """The demo model with a longer context than it was trained for: what it says is of no matter here."""
    shutil.copytree(DEMO, path, ignore=shutil.ignore_patterns("training", "__pycache__", "*.py"))
    for name, field in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        config = json.loads((path / name).read_text(encoding="utf-8"))
        (path / name).write_text(json.dumps(config | {field: context_tokens}), encoding="utf-8")
    return path
