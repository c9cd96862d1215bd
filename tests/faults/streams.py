"""One streamed answer, read in parts: up to so many events, then the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx2


def ask(question: str, **changes: Any) -> dict[str, Any]:
    """A chat request that streams a long answer."""
    body = {"model": "demo", "max_tokens": 300, "ignore_eos": True, "stream": True}
    return body | {"messages": [{"role": "user", "content": question}]} | changes


class Answer:
    """Reads one stream; `text`, `ids` and `job_id` are what the client has. Without `with` it is closed at its end."""

    def __init__(self, url: str, body: dict[str, Any], **headers: str) -> None:
        self.text = ""
        self.ids: list[str] = []
        self.done = False
        self._stack = ExitStack()
        request = httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers, timeout=300)
        self.response = self._stack.enter_context(request)
        assert self.response.status_code == 200, self.response.read()
        self.job_id = self.response.headers["farm-job-id"]
        self._lines: Iterator[str] = self.response.iter_lines()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, events: int | None = None) -> str:
        """Read so many events with text, or all; the text so far. An error event fails the test."""
        seen = 0
        for line in self._lines:
            if line.startswith("id:"):
                self.ids.append(line.removeprefix("id:").strip())
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                self.done = True
                self._stack.close()
                break
            chunk = json.loads(data)
            assert "error" not in chunk, chunk
            text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            self.text += text
            seen += bool(text)
            if seen == events:
                break
        assert self.done or seen == events, "the stream ended early"
        return self.text
