"""Clients that stream answers through every fault: they ask again, reconnect elsewhere, and note what they read."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from bench.history import Story

GIVE_UP_S = 90.0
"""After the last fault is over: a client that waits this long from then on has lost its answer."""

PAUSE_S = 0.2

PASSING = (
    "engine_draining",
    "job_not_found",
    "log_rewritten",
    "model_not_found",
    "queue_unavailable",
    "record_unavailable",
)
"""Errors after which a client tries again; any other one is the answer."""

_LONG: dict[str, Any] = {"model": "demo", "max_tokens": 300, "ignore_eos": True, "stream": True}


def _ask(question: str, **changes: Any) -> dict[str, Any]:
    return _LONG | {"messages": [{"role": "user", "content": question}]} | changes


REQUESTS: Mapping[str, dict[str, Any]] = {
    "greedy": _ask("Tell me a long story.", temperature=0),
    "short": _ask("Hello!", temperature=0, max_tokens=12),
    "seeded": _ask("Tell me a story.", temperature=1.2, seed=77),
    "penalties": _ask("What are you?", temperature=0.9, seed=3, presence_penalty=0.5, frequency_penalty=0.4),
    "repetition": _ask("Tell me about a cat.", temperature=0, repetition_penalty=1.3),
    "stop": _ask("Tell me a story.", temperature=1.0, seed=12, stop=["never said", "the end of it"]),
    "choices": _ask("Tell me a story.", temperature=1.1, seed=5, n=2, max_tokens=200),
    "long": _ask("Tell me a very long story.", temperature=0.8, seed=41, max_tokens=450),
}


@dataclass
class Reading:
    """One client. `arrived` has the time (s since 1970) and the id of every event with an id."""

    asked: str
    job_id: str = ""
    texts: dict[int, str] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    arrived: list[tuple[float, str]] = field(default_factory=list)
    done: bool = False
    failed: bool = False
    problem: str = ""
    asked_again: int = 0
    read_again: int = 0
    reconnects: int = 0

    def story(self) -> Story:
        """What the checker wants to know."""
        texts = tuple(self.texts[index] for index in sorted(self.texts))
        return Story(self.asked, self.job_id, texts, self.done, tuple(self.ids), self.problem)

    def forget(self) -> None:
        """Read from the start again."""
        self.texts, self.ids = {}, []


class Client:
    """Asks one question on nodes that come and go."""

    def __init__(self, http: httpx2.AsyncClient, urls: list[str], asked: str, number: int) -> None:
        self.reading = Reading(asked)
        self._http = http
        self._nodes = itertools.cycle(urls[number % len(urls) :] + urls[: number % len(urls)])
        self._key = uuid.uuid4().hex
        self._asynchronous = number % 5 == 4

    async def run(self, over: Callable[[], float]) -> Reading:
        """Read the whole answer; `over` says for how long the chaos has been over (s)."""
        reading, began_s = self.reading, time.monotonic()
        while not reading.done and not reading.failed and min(over(), time.monotonic() - began_s) < GIVE_UP_S:
            try:
                await (self._follow() if reading.job_id else self._ask())
            except (httpx2.TransportError, TimeoutError) as error:
                reading.problem = repr(error)
            if not reading.done and not reading.failed:
                reading.reconnects += 1
                await asyncio.sleep(PAUSE_S)
        return reading

    async def _ask(self) -> None:
        headers = {"Idempotency-Key": self._key}
        url = f"{next(self._nodes)}/v1/chat/completions"
        body = REQUESTS[self.reading.asked]
        if self._asynchronous:
            response = await self._http.post(url, json=body, headers=headers | {"Prefer": "respond-async"})
            if response.status_code == 202:
                self.reading.job_id = response.headers["farm-job-id"]
            else:
                self._refused(response.status_code, response.text)
            return
        async with self._http.stream("POST", url, json=body, headers=headers) as response:
            await self._read(response)

    async def _follow(self) -> None:
        reading = self.reading
        headers = {"Last-Event-ID": reading.ids[-1]} if reading.ids else {}
        url = f"{next(self._nodes)}/v1/jobs/{reading.job_id}/events"
        async with self._http.stream("GET", url, headers=headers) as response:
            await self._read(response)

    async def _read(self, response: httpx2.Response) -> None:
        if response.status_code != 200:
            self._refused(response.status_code, (await response.aread()).decode(errors="replace"))
            return
        self.reading.job_id = response.headers["farm-job-id"]
        if not self.reading.ids:
            self.reading.forget()
        async for event_id, data in _events(response.aiter_lines()):
            if data == "[DONE]":
                self.reading.done = True
                return
            chunk = json.loads(data)
            if "error" in chunk:
                self._refused(response.status_code, data)
                return
            if event_id:
                self.reading.ids.append(event_id)
                self.reading.arrived.append((time.time(), event_id))
            for choice in chunk["choices"]:
                delta = choice["delta"]
                text = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
                self.reading.texts[choice["index"]] = self.reading.texts.get(choice["index"], "") + text

    def _refused(self, status: int, text: str) -> None:
        reading = self.reading
        reading.problem = f"{status} {text[:300]}"
        reading.failed = not any(code in text for code in PASSING)
        if "job_not_found" in text and not self._asynchronous:
            reading.asked_again += 1
            reading.job_id = ""
            reading.forget()
        elif "log_rewritten" in text:
            reading.read_again += 1
            reading.forget()


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, str]]:
    """(id or '', data) of each event."""
    event_id = ""
    async for line in lines:
        if line.startswith("id:"):
            event_id = line.removeprefix("id:").strip()
        elif line.startswith("data:"):
            yield event_id, line.removeprefix("data:").strip()
            event_id = ""
