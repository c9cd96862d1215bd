"""What does it cost to put a worker's chunk into a client's protocol? `python -m bench.translation` prints one table.

One chunk is one token's text: decoded from its wire form, rendered, and written as a server-sent event; the answer's
whole text is fed through, so that long calls show what their length costs. Best of the repeats, one process, no I/O.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from api.kinds import renderer_of
from api.rendering import RenderingNote
from api.stream import sse
from scheduler.frames import Chunk, End, FrameId, decode_body, encode_chunks
from scheduler.jobs import JobState

KINDS = ("chat.completions", "completions", "responses", "messages")
TOKEN_CHARS = 4
BUDGET_MS = 0.1
"""Per chunk."""

FILE = "def f(x):\n    return 'a' + x  # \u00fc\n" * 2000
"""What an agent writes: 64 KB as one argument of a call."""

HERMES_CALL = json.dumps({"name": "write", "arguments": {"path": "a.py", "text": FILE}}, ensure_ascii=False)
CODER_CALL = (
    f"\n<function=write>\n<parameter=path>\na.py\n</parameter>\n<parameter=text>\n{FILE}\n</parameter>\n</function>\n"
)
TYPES = {"write": {"path": ("string",), "text": ("string",)}}
LOGPROBS = ((7, -0.25, tuple((token, -1.0 - token) for token in range(5))),)


def scenarios() -> dict[str, tuple[str, dict[str, Any], Any]]:
    """Text, note and logprobs of each."""
    calls = {"call": ("<tool_call>", "</tool_call>"), "argument_types": TYPES}
    hermes, coder = (f"<tool_call>{call}</tool_call>" for call in (HERMES_CALL, CODER_CALL))
    prose = "All happy families are alike; each unhappy family is unhappy in its own way. " * 40
    return {
        "text": (prose, {}, None),
        "text, 5 logprobs": (prose, {"logprobs": True}, LOGPROBS),
        "thoughts and text": (
            f"<think>{prose}</think>{prose}",
            {"think": ("<think>", "</think>"), "continuous_usage": True},
            None,
        ),
        "64 KB call, json_tools": (hermes, calls | {"call_format": "json_tools"}, None),
        "64 KB call, qwen3_coder": (coder, calls | {"call_format": "qwen3_coder"}, None),
    }


def ms_per_chunk(kind: str, text: str, note: RenderingNote, logprobs: Any) -> float:
    """Time of one run over the text, divided by its chunks."""
    parts = [text[at : at + TOKEN_CHARS] for at in range(0, len(text), TOKEN_CHARS)]
    last = len(parts) - 1
    frames = [
        encode_chunks([Chunk(0, (7,), part, logprobs, "stop" if index == last else None, None)])
        for index, part in enumerate(parts)
    ]
    renderer = renderer_of(kind, "0-BENCH", note, lambda token: b" word")
    named = renderer.dialect.named
    began_s = time.perf_counter()
    sse(renderer.opening(), None, named=named)
    for index, frame in enumerate(frames):
        body = decode_body(frame)
        assert not isinstance(body, End)
        sse(renderer.step(body), FrameId(1, index + 1), named=named)
    sse(renderer.closing(End(JobState.FINISHED, {})), FrameId(1, len(frames) + 1), named=named)
    return (time.perf_counter() - began_s) * 1000 / len(frames)


def main() -> int:
    """Print the table; 1 when a figure is over its budget."""
    parser = argparse.ArgumentParser(description="Cost of protocol translation per chunk.")
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    table = Table("scenario", *KINDS, title=f"ms per chunk (budget {BUDGET_MS})")
    worst = 0.0
    for name, (text, fields, logprobs) in scenarios().items():
        note = RenderingNote(created_s=0, model="m", choices=1, prompt_tokens=9, service_tier="default", **fields)
        costs = [min(ms_per_chunk(kind, text, note, logprobs) for _ in range(repeats)) for kind in KINDS]
        worst = max(worst, *costs)
        table.add_row(name, *(f"{cost:.4f}" for cost in costs))
    Console().print(table)
    return int(worst > BUDGET_MS)


if __name__ == "__main__":
    raise SystemExit(main())
