"""Deaths in mid-stream: the client sees a pause, and the text of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import Any

import httpx2
import psutil
import pytest

from scheduler.queue import shard_key
from tests.farm.conftest import Farm
from tests.farm.streams import Answer, ask
from tests.waiting import PATIENCE_S

GREEDY = ask("Tell me a long story.", temperature=0, max_tokens=400)
SEEDED = ask("Tell me a story.", temperature=1.2, seed=77, presence_penalty=0.5, stop=["never said"], max_tokens=400)
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


@pytest.fixture(scope="module")
def crashing(start_farm: Callable[..., Farm]) -> Farm:
    """A farm with two API nodes, to be hurt."""
    return start_farm(apis=2, failpoints=True, spare_process="true", drain_s="1")


@pytest.mark.parametrize("body", [GREEDY, SEEDED, GUIDED], ids=["greedy", "seeded", "guided"])
def test_the_same_connection_continues_when_the_model_process_is_killed(crashing: Farm, body: dict[str, Any]) -> None:
    undisturbed = Answer(crashing.url, body).read()
    crashing.fail_at("SIGKILL 20")
    disturbed = Answer(crashing.url, body)
    assert disturbed.read() == undisturbed
    assert disturbed.sequences == list(range(1, len(disturbed.ids) + 1))
    assert crashing.get(f"/v1/jobs/{disturbed.job_id}")["attempts"] == 2


def test_the_spare_takes_the_place_of_a_killed_model_process(crashing: Farm, eventually: Callable[..., Any]) -> None:
    agent = psutil.Process(crashing.worker.process.pid)

    def processes() -> tuple[set[int], set[int]]:
        """Those that serve, and the agent's other children."""
        rows = crashing.get("/admin/workers")["data"]
        serving = {row["pid"] for row in rows if row["pid"] is not None}
        return serving, {child.pid for child in agent.children()} - serving

    def one_of_each() -> tuple[set[int], set[int]] | None:
        serving, spares = processes()
        return (serving, spares) if len(serving) == len(spares) == 1 else None

    (served,), (spare,) = eventually(one_of_each)
    os.kill(served, signal.SIGKILL)
    eventually(lambda: processes()[0] == {spare})
    eventually(one_of_each)


def test_another_api_node_gives_the_rest_after_a_kill_of_the_first(crashing: Farm) -> None:
    undisturbed = Answer(crashing.url, SEEDED).read()
    node = crashing.start("api")
    with Answer(node.facts["url"], SEEDED) as cut:
        cut.read(events=20)
        node.kill()
    rest = Answer(crashing.apis[1].facts["url"], job_id=cut.job_id, after=cut.ids[-1])
    assert cut.text + rest.read() == undisturbed
    assert not set(cut.ids) & set(rest.ids)
    assert cut.sequences + rest.sequences == list(range(1, len(cut.ids + rest.ids) + 1))


RESPONSE = {key: value for key, value in SEEDED.items() if key not in ("messages", "max_tokens")}
RESPONSE |= {"input": "Tell me a story.", "max_output_tokens": 400}


def test_another_api_node_tells_a_response_on_behind_the_number_seen_last(crashing: Farm) -> None:
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
    kept = crashing.get(f"/v1/responses/{response_id}", api=1)
    assert kept == events[-1]["response"]


def told(
    method: str, url: str, count: int | None = None, then: Callable[[], Any] = lambda: None, **request: Any
) -> list[dict[str, Any]]:
    """The events of a response: all of them, or so many, and `then` something happens before the stream is left."""
    events: list[dict[str, Any]] = []
    with httpx2.stream(method, url, timeout=2 * PATIENCE_S, **request) as response:
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


def test_a_stopped_worker_is_fenced_when_it_continues(crashing: Farm, eventually: Callable[..., Any]) -> None:
    undisturbed = Answer(crashing.url, SEEDED).read()
    process = psutil.Process(crashing.model_pid())
    crashing.fail_at("SIGSTOP 15")
    with Answer(crashing.url, SEEDED) as answer:
        eventually(lambda: process.status() == psutil.STATUS_STOPPED)
        assert crashing.declare_dead() == [answer.job_id]
        process.send_signal(signal.SIGCONT)
        assert answer.read() == undisturbed
    assert answer.sequences == list(range(1, len(answer.ids) + 1))


def test_a_leaving_client_cancels_its_job(crashing: Farm, eventually: Callable[..., Any]) -> None:
    crashing.fail_at("hang 10")
    with Answer(crashing.url, GREEDY) as left:
        eventually(crashing.has_failed)
        left.read(events=1)
    job = shard_key(0, f"j:{left.job_id}")
    eventually(lambda: crashing.redis.ask("HGET", job, "cancel") == b"cancelled")
    crashing.go_on()
    eventually(lambda: crashing.get(f"/v1/jobs/{left.job_id}")["state"] == "cancelled")


def test_a_worker_asked_to_stop_hands_its_jobs_to_the_next_one(crashing: Farm, eventually: Callable[..., Any]) -> None:
    undisturbed = Answer(crashing.url, SEEDED).read()
    crashing.fail_at("hang 10")
    with Answer(crashing.url, SEEDED) as moved:
        eventually(crashing.has_failed)
        crashing.start("workers")
        crashing.worker.process.send_signal(signal.SIGTERM)
        eventually(lambda: crashing.get(f"/v1/jobs/{moved.job_id}")["attempts"] == 2)
        crashing.go_on()
        assert moved.read() == undisturbed
    assert crashing.worker.finish() == 0
    assert crashing.get(f"/v1/jobs/{moved.job_id}")["crashes"] == 0
