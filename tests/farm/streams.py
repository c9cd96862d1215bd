"""What clients do: one streamed answer read in parts, and requests that are made again while a server has no time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx2

from tests.waiting import PATIENCE_S, until

BUSY = 503
"""Says a node whose Redis has not answered in time, and asks to be asked again."""


def ask(question: str, **changes: Any) -> dict[str, Any]:
    """A chat request that streams a long answer."""
    body = {"model": "demo", "max_tokens": 300, "ignore_eos": True, "stream": True}
    return body | {"messages": [{"role": "user", "content": question}]} | changes


def get(url: str) -> Any:
    """The JSON behind a URL."""
    return _insist("GET", url).raise_for_status().json()


def post(url: str, body: dict[str, Any], **headers: str) -> httpx2.Response:
    """The answer to a request that may be repeated."""
    return _insist("POST", url, json=body, headers=headers)


def _insist(method: str, url: str, **request: Any) -> httpx2.Response:
    def answer() -> httpx2.Response | None:
        response = httpx2.request(method, url, timeout=PATIENCE_S, **request)
        return None if response.status_code == BUSY else response

    response: httpx2.Response = until(answer)
    return response


class Answer:
    """Reads the stream of a new request, or that of a job; `text`, `ids` and `job_id` are what the client has.

    Without `with` it is closed at its end.
    """

    def __init__(self, url: str, body: dict[str, Any] | None = None, *, job_id: str = "", after: str = "") -> None:
        self.text = ""
        self.ids: list[str] = []
        self.done = False
        self._request: dict[str, Any] = {"method": "GET", "url": f"{url}/v1/jobs/{job_id}/events"}
        if body is not None:
            self._request = {"method": "POST", "url": f"{url}/v1/chat/completions", "json": body}
        self._headers = {"Last-Event-ID": after} if after else {}
        self._stack = ExitStack()
        self.response: httpx2.Response = until(self._opened)
        assert self.response.status_code == 200, self.response.read()
        self.job_id = self.response.headers["farm-job-id"]
        self._lines: Iterator[str] = self.response.iter_lines()

    def _opened(self) -> httpx2.Response | None:
        stream = httpx2.stream(**self._request, headers=self._headers, timeout=2 * PATIENCE_S)
        response = self._stack.enter_context(stream)
        if response.status_code != BUSY:
            return response
        self._stack.close()
        return None

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def sequences(self) -> list[int]:
        """The numbers of the frames in their log, as they came."""
        return [int(event_id.rpartition("-")[2]) for event_id in self.ids]

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
            text = "".join(_said(choice["delta"]) for choice in chunk["choices"])
            self.text += text
            seen += bool(text)
            if seen == events:
                break
        assert self.done or seen == events, "the stream ended early"
        return self.text


def _said(delta: dict[str, Any]) -> str:
    """Thoughts, text and calls, each as far as a chunk has brought it."""
    functions = [call["function"] for call in delta.get("tool_calls") or ()]
    calls = [f"{function.get('name') or ''}{function.get('arguments') or ''}" for function in functions]
    return "".join([delta.get("reasoning_content") or "", delta.get("content") or "", *calls])
