"""kill -9 in mid-stream: the client sees a pause, and the text of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import psutil
import pytest

LONG: dict[str, Any] = {"model": "demo", "max_tokens": 400, "ignore_eos": True, "stream": True}
GREEDY = LONG | {"messages": [{"role": "user", "content": "Tell me a long story."}], "temperature": 0}
SEEDED = LONG | {
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "temperature": 1.2,
    "seed": 77,
    "presence_penalty": 0.5,
    "stop": ["never said"],
}
GUIDED: dict[str, Any] = {
    "model": "demo",
    "messages": [{"role": "user", "content": "Give me a list of numbers as JSON."}],
    "max_tokens": 600,
    "stream": True,
    "temperature": 1.2,
    "seed": 5,
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "numbers",
            "schema": {"type": "array", "items": {"type": "integer", "maximum": 99}, "minItems": 60, "maxItems": 60},
        },
    },
}


@dataclass
class Transcript:
    """What a client has seen of one stream."""

    text: str = ""
    ids: list[str] = field(default_factory=list)
    done: bool = False
    job_id: str = ""


def read(
    response: httpx2.Response,
    transcript: Transcript,
    events: int | None = None,
    lines: Iterator[str] | None = None,
) -> Transcript:
    """Read SSE events (all, or that many with text) into the transcript; `lines` goes on where it was left."""
    transcript.job_id = response.headers.get("farm-job-id", transcript.job_id)
    event_id, seen = "", 0
    for line in lines or response.iter_lines():
        if line.startswith("id:"):
            event_id = line.removeprefix("id:").strip()
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            transcript.done = True
            return transcript
        chunk = json.loads(data)
        assert "error" not in chunk, chunk
        text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        transcript.text += text
        if event_id:
            transcript.ids.append(event_id)
        seen += bool(text)
        if events is not None and seen >= events:
            return transcript
    return transcript


def sequences(ids: list[str]) -> list[int]:
    """The frames' numbers in their log."""
    return [int(event_id.partition("-")[2]) for event_id in ids]


@pytest.fixture(scope="module")
def crashing(start_farm: Callable[..., Any]) -> Any:
    """A farm with two API nodes, to be hurt."""
    return start_farm(apis=2, lease_s="3", spare_process="true")


def stream(url: str, body: dict[str, Any]) -> Any:
    return httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=90)


@pytest.mark.parametrize("body", [GREEDY, SEEDED, GUIDED], ids=["greedy", "seeded", "guided"])
def test_the_same_connection_continues_when_the_model_process_is_killed(crashing: Any, body: dict[str, Any]) -> None:
    with stream(crashing.url, body) as response:
        undisturbed = read(response, Transcript())
    disturbed = Transcript()
    with stream(crashing.url, body) as response:
        lines = response.iter_lines()
        read(response, disturbed, events=20, lines=lines)
        os.kill(crashing.model_pid(), signal.SIGKILL)
        read(response, disturbed, lines=lines)
    assert disturbed.done
    assert disturbed.text == undisturbed.text
    assert sequences(disturbed.ids) == list(range(1, len(disturbed.ids) + 1))
    job = httpx2.get(f"{crashing.url}/v1/jobs/{disturbed.job_id}").json()
    assert job["attempts"] == 2


def test_the_spare_takes_the_place_of_a_killed_model_process(crashing: Any, eventually: Callable[..., Any]) -> None:
    agent, workers = psutil.Process(crashing.worker.process.pid), f"{crashing.url}/admin/workers"

    def serving() -> set[int]:
        return {worker["pid"] for worker in httpx2.get(workers).json()["data"]}

    def spares() -> set[int]:
        return {child.pid for child in agent.children()} - serving()

    (spare,) = eventually(lambda: serving() and spares())
    os.kill(crashing.model_pid(), signal.SIGKILL)
    eventually(lambda: serving() == {spare}, timeout_s=60)
    eventually(spares)


def test_another_api_node_gives_the_rest_after_a_kill_of_the_first(crashing: Any) -> None:
    with stream(crashing.url, SEEDED) as response:
        undisturbed = read(response, Transcript())
    node = crashing.start("api")
    cut = Transcript()
    with stream(node.facts["url"], SEEDED) as response:
        read(response, cut, events=20)
        node.kill()
    rest = Transcript()
    events = f"{crashing.apis[1].facts['url']}/v1/jobs/{cut.job_id}/events"
    with httpx2.stream("GET", events, headers={"Last-Event-ID": cut.ids[-1]}, timeout=90) as response:
        read(response, rest)
    assert rest.done
    assert cut.text + rest.text == undisturbed.text
    assert not set(cut.ids) & set(rest.ids)
    assert sequences(cut.ids + rest.ids) == list(range(1, len(cut.ids + rest.ids) + 1))


RESPONSE = {key: value for key, value in SEEDED.items() if key not in ("messages", "max_tokens")}
RESPONSE |= {"input": "Tell me a story.", "max_output_tokens": 400}


def test_another_api_node_tells_a_response_on_behind_the_number_seen_last(crashing: Any) -> None:
    undisturbed = told("POST", f"{crashing.url}/v1/responses", json=RESPONSE)
    node = crashing.start("api")
    cut = told("POST", f"{node.facts['url']}/v1/responses", count=20, then=node.kill, json=RESPONSE)
    response_id, last = cut[0]["response"]["id"], cut[-1]["sequence_number"]
    url = f"{crashing.apis[1].facts['url']}/v1/responses/{response_id}"
    rest = told("GET", url, params={"stream": "true", "starting_after": str(last)})
    events = cut + rest
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert deltas(events) == deltas(undisturbed)
    assert events[-1]["response"]["output"][0]["content"] == undisturbed[-1]["response"]["output"][0]["content"]
    kept = httpx2.get(url).json()
    assert kept == events[-1]["response"]


def told(
    method: str, url: str, count: int | None = None, then: Callable[[], Any] = lambda: None, **request: Any
) -> list[dict[str, Any]]:
    """The events of a response: all of them, or so many, and `then` something happens before the stream is left."""
    events: list[dict[str, Any]] = []
    with httpx2.stream(method, url, timeout=90, **request) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
            if len(events) == count:
                then()
                break
    return events


def deltas(events: list[dict[str, Any]]) -> str:
    """The text of a response's events."""
    return "".join(event.get("delta", "") for event in events)


def test_a_stopped_worker_is_fenced_when_it_continues(crashing: Any, eventually: Callable[..., Any]) -> None:
    with stream(crashing.url, SEEDED) as response:
        undisturbed = read(response, Transcript())
    stopped = Transcript()
    with stream(crashing.url, SEEDED) as response:
        lines = response.iter_lines()
        read(response, stopped, events=10, lines=lines)
        pid = crashing.model_pid()
        os.kill(pid, signal.SIGSTOP)
        job = f"{crashing.url}/v1/jobs/{stopped.job_id}"
        eventually(lambda: httpx2.get(job).json()["state"] == "queued")  # its lease has ended, the job was put back
        os.kill(pid, signal.SIGCONT)
        read(response, stopped, lines=lines)
    assert stopped.done
    assert stopped.text == undisturbed.text
    assert sequences(stopped.ids) == list(range(1, len(stopped.ids) + 1))


def test_a_leaving_client_cancels_its_job(crashing: Any, eventually: Callable[..., Any]) -> None:
    left = Transcript()
    with stream(crashing.url, GREEDY) as response:
        read(response, left, events=5)
    url = f"{crashing.url}/v1/jobs/{left.job_id}"
    eventually(lambda: httpx2.get(url).json()["state"] == "cancelled")


def test_a_worker_asked_to_stop_hands_its_jobs_to_the_next_one(crashing: Any) -> None:
    with stream(crashing.url, SEEDED) as response:
        undisturbed = read(response, Transcript())
    moved = Transcript()
    with stream(crashing.url, SEEDED) as response:
        lines = response.iter_lines()
        read(response, moved, events=10, lines=lines)
        crashing.start("workers")
        assert crashing.worker.stop() == 0
        read(response, moved, lines=lines)
    assert moved.done
    assert moved.text == undisturbed.text
    job = httpx2.get(f"{crashing.url}/v1/jobs/{moved.job_id}").json()
    assert job["crashes"] == 0
