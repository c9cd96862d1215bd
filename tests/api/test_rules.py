"""Operators change who serves whom while the farm runs: drafts, dry runs, versions; the record tells who decided."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis
from sqlalchemy import select

from scheduler.queue import shard_key
from scheduler.tables import EventRow
from tests.api.conftest import StartNode
from tests.api.scripted_farm import MODEL, NodeServer, ScriptedWorker, chat_body, make_card, until

CHAT = "/v1/chat/completions"
GPT = {"name": "gpt", "match": "prefix", "pattern": "gpt-", "targets": [{"model": MODEL}]}


async def applied(client: httpx2.AsyncClient, *rules: dict[str, Any]) -> int:
    """The version that these rules become."""
    draft = await client.post("/admin/rules/drafts", json={"rules": list(rules)})
    assert draft.status_code == 201, draft.text
    answer = await client.post("/admin/rules/apply", json={"draft": draft.json()["id"]})
    assert answer.status_code == 200, answer.text
    return int(answer.json()["version"])


async def served(client: httpx2.AsyncClient, path: str = CHAT, **changes: Any) -> httpx2.Response:
    """A request that is answered."""
    response = await client.post(path, json=chat_body(**changes))
    assert response.status_code == 200, response.text
    return response


async def test_a_draft_is_tried_applied_and_rolled_back(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    empty = (await client.get("/admin/rules")).json()
    assert (empty["current"], empty["data"], empty["drafts"]) == (0, [], [])
    draft = (await client.post("/admin/rules/drafts", json={"rules": [GPT], "note": "first"})).json()
    assert (draft["base"], draft["rules"], draft["warnings"]) == (0, [GPT], [])
    assert (await client.get(f"/admin/rules/drafts/{draft['id']}")).json() == draft
    assert (await client.post(CHAT, json=chat_body(model="gpt-4"))).status_code == 404

    trial = {"draft": draft["id"], "request": {"body": chat_body(model="gpt-4")}}
    tried = (await client.post("/admin/rules/dry-run", json=trial)).json()
    assert tried["steps"] == [{"rule": "gpt", "outcome": "matches"}]
    assert (tried["route"]["model"], tried["current"]["model"], tried["changes"]) == (MODEL, "gpt-4", ["target"])

    first = await client.post("/admin/rules/apply", json={"draft": draft["id"]})
    again = await client.post("/admin/rules/apply", json={"draft": draft["id"]})
    assert first.json() == again.json() == {"object": "routing.rules", "version": 1, "rules": [GPT], "warnings": []}
    await served(client, model="gpt-4")

    back = (await client.post("/admin/rules/rollback", json={"version": 0, "note": "no"})).json()
    assert (back["version"], back["rules"]) == (2, [])
    assert (await client.post(CHAT, json=chat_body(model="gpt-4"))).status_code == 404
    assert (await client.get("/admin/rules/current")).json() == back
    assert (await client.get("/admin/rules/1")).json()["rules"] == [GPT]
    listed = (await client.get("/admin/rules", params={"limit": 1})).json()
    assert (listed["current"], listed["has_more"], listed["data"][0]["restores"]) == (2, True, 0)
    assert [version["version"] for version in (await client.get("/admin/rules?before=2")).json()["data"]] == [1]


async def test_the_decision_is_in_the_event_the_record_and_the_job(
    server: NodeServer,
    client: httpx2.AsyncClient,
    worker: ScriptedWorker,
    project: Callable[[], Awaitable[None]],
) -> None:
    rule = GPT | {
        "targets": [{"model": "away", "timeout_s": 2}],
        "fallback": [{"model": MODEL, "timeout_s": 3}],
        "lane": "low",
        "overrides": {"temperature": 0.25, "max_tokens": 5},
    }
    version = await applied(client, GPT | {"name": "other", "pattern": "x"}, rule)
    response = await served(client, model="gpt-4", temperature=1.5, user="me", tools=TOOLS)
    request = worker.requests[0]
    assert (request.model, request.sampling.temperature, request.stopping.max_tokens) == (MODEL, 0.25, 5)
    await project()
    job = (await client.get(f"/v1/jobs/{response.headers['farm-job-id']}")).json()
    routing = job["routing"]
    asked = routing.pop("asked")
    assert routing == {
        "rule": "gpt",
        "version": version,
        "passed_over": [{"model": "away", "reason": "not served"}],
        "timeout_s": 3.0,
        "overrides": {"temperature": 0.25, "max_tokens": 5},
    }
    assert (asked["lane"], asked["has_tools"]) == ("normal", True)
    assert asked["prompt_tokens"] > 1
    assert "me" not in asked["session"]
    assert (job["lane"], job["params"]["temperature"], job["params"]["max_tokens"]) == ("low", 0.25, 5)

    row = (await client.get("/v1/audit/requests")).json()["data"][0]
    assert (row["route"], row["rule_version"], row["routing"]["overrides"]) == ("gpt", version, rule["overrides"])
    assert '""temperature"":0.25' in (await client.get("/v1/audit/requests?format=csv")).text
    async with server.node.store.engine.connect() as connection:
        submitted = select(EventRow.data).where(EventRow.job_id == job["id"], EventRow.type == "submitted")
        event = (await connection.execute(submitted)).scalar_one()
    assert (event["route"], event["rule_version"], event["routing"]) == ("gpt", version, row["routing"])


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


async def test_overrides_hold_in_every_protocol(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    await applied(client, GPT | {"overrides": {"temperature": 0.5, "top_k": 7, "max_tokens": 4}})
    asked = {"model": "gpt-4", "temperature": 1.0}
    bodies: dict[str, dict[str, Any]] = {
        CHAT: asked | {"messages": chat_body()["messages"]},
        "/v1/completions": asked | {"prompt": "Hi", "max_tokens": 9},
        "/v1/messages": asked | {"messages": chat_body()["messages"], "max_tokens": 3},
        "/v1/responses": asked | {"input": "Hi", "store": False},
    }
    answers = {}
    for path, body in bodies.items():
        response = await client.post(path, json=body)
        assert response.status_code == 200, response.text
        answers[path] = response.json()
    found = [(r.sampling.temperature, r.sampling.top_k, r.stopping.max_tokens) for r in worker.requests]
    assert found == [(0.5, 7, 4), (0.5, 7, 4), (0.5, 7, 3), (0.5, 7, 4)]
    assert answers["/v1/responses"]["temperature"] == 0.5


async def test_conditions_look_at_lane_size_tools_images_and_tenant(
    client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    def to(name: str, **when: Any) -> dict[str, Any]:
        return {"name": name, "match": "prefix", "pattern": "", "targets": [{"model": name}], "when": when}

    rules = [
        to("elsewhere", tenants=["somebody else"]),
        to("images", images=True),
        to("tools", tools=True),
        to("long", min_prompt_tokens=1000),
        to("fast", lanes=["high"]),
        to("rest", tenants=["default"], max_prompt_tokens=1000),
    ]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9000}}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("images", chat_body(messages=[{"role": "user", "content": [image, {"type": "text", "text": "?"}]}])),
        ("tools", chat_body(tools=TOOLS)),
        ("rest", chat_body(tools=TOOLS, tool_choice="none")),
        ("long", chat_body(messages=[{"role": "user", "content": "four" * 1000}])),
        ("fast", chat_body(service_tier="priority")),
        ("rest", chat_body()),
    ]
    for expected, body in cases:
        tried = await client.post("/admin/rules/dry-run", json={"rules": rules, "request": {"body": body}})
        assert tried.status_code == 200, tried.text
        assert tried.json()["route"]["model"] == expected
    request = {"body": chat_body(), "tenant": "somebody else", "hour": 3, "session": "s", "lane": "low"}
    tried = await client.post("/admin/rules/dry-run", json={"rules": rules, "request": request})
    assert (tried.json()["route"]["model"], tried.json()["asked"]["hour"]) == ("elsewhere", 3)


async def test_a_session_stays_with_its_target(
    client: httpx2.AsyncClient, worker: ScriptedWorker, project: Callable[[], Awaitable[None]]
) -> None:
    await worker.announce(make_card(adapters=("left", "right")))
    await applied(client, GPT | {"targets": [{"model": "left"}, {"model": "right"}]})
    for _ in range(6):
        await client.post(CHAT, json=chat_body(model="gpt-4"), headers={"farm-session": "one"})
    for number in range(24):
        await client.post(CHAT, json=chat_body(model="gpt-4", user=str(number)))
    drawn = [request.adapter for request in worker.requests]
    assert len(set(drawn[:6])) == 1
    assert set(drawn[6:]) == {"left", "right"}
    await project()
    tried = (await client.post("/admin/rules/dry-run", json={"last": 100})).json()
    assert (tried["requests"], tried["changed"]) == (30, 0)  # the recorded facts draw the same


async def test_a_dry_run_on_recorded_requests_lists_those_that_change(
    client: httpx2.AsyncClient, worker: ScriptedWorker, project: Callable[[], Awaitable[None]]
) -> None:
    await applied(client, GPT)
    for number in range(5):
        await served(client, model="gpt-4" if number < 2 else "gpt-5")
    await served(client)
    await project()
    other = GPT | {"name": "five", "pattern": "gpt-5", "targets": [{"model": "big"}]}
    tried = (await client.post("/admin/rules/dry-run", json={"rules": [other, GPT], "last": 4})).json()
    assert (tried["requests"], tried["changed"], tried["changed_target"]) == (4, 3, 3)
    assert tried["moves"] == [{"from": MODEL, "to": "big", "requests": 3}]
    change = tried["changes"][0]
    assert (change["model_asked"], change["served_by"], change["changes"]) == ("gpt-5", MODEL, ["target"])
    assert (change["from"]["rule"], change["to"]["rule"]) == ("gpt", "five")


async def test_a_failed_model_is_passed_over_and_the_last_resort_where_nothing_else_is_left(
    client: httpx2.AsyncClient, worker: ScriptedWorker, project: Callable[[], Awaitable[None]]
) -> None:
    await worker.announce(make_card(name="broken", state="failed"))
    await worker.announce()  # it serves the usual one
    await applied(client, GPT | {"targets": [{"model": "broken"}], "fallback": [{"model": MODEL}]})
    response = await served(client, model="gpt-4")
    await project()
    job = (await client.get(f"/v1/jobs/{response.headers['farm-job-id']}")).json()
    assert job["routing"]["passed_over"] == [{"model": "broken", "reason": "failed"}]
    await applied(client, GPT | {"targets": [{"model": "away"}], "fallback": [{"model": "broken"}]})
    queued = await client.post(CHAT, json=chat_body(model="gpt-4"), headers={"prefer": "respond-async"})
    assert (queued.status_code, queued.json()["model"]) == (202, "broken")
    await applied(client, GPT | {"targets": [{"model": "away"}], "fallback": [{"model": "gone"}]})
    refused = await client.post(CHAT, json=chat_body(model="gpt-4"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert "'away'" in refused.json()["error"]["message"]


async def test_every_node_follows(start_node: StartNode, worker: ScriptedWorker) -> None:
    first, second = await start_node(), await start_node()
    async with httpx2.AsyncClient(base_url=first.url, timeout=60) as client:
        version = await applied(client, GPT)
    assert first.node.rules.current.version == version
    await until(lambda: second.node.rules.current.version == version, timeout_s=60)
    async with httpx2.AsyncClient(base_url=second.url, timeout=60) as client:
        await served(client, model="gpt-4")


async def test_a_targets_timeout_bounds_jobs_that_somebody_waits_for(
    client: httpx2.AsyncClient, worker: ScriptedWorker, redis: Redis
) -> None:
    async def deadline_ms(job_id: str) -> float | None:
        due: float | None = await redis.zscore(shard_key(0, "ddl"), job_id)
        return due

    await applied(client, GPT | {"targets": [{"model": MODEL, "timeout_s": 86_400}]})
    worker.script.hold_before = 0
    patient = {"farm-timeout": "600000"}
    answer = asyncio.create_task(client.post(CHAT, json=chat_body(model="gpt-4"), headers=patient))
    await worker.held.wait()
    queued = await client.post(CHAT, json=chat_body(model="gpt-4"), headers={"prefer": "respond-async"})
    seconds, _ = await redis.time()
    waited_for = await deadline_ms(worker.claimed[0])
    assert waited_for is not None
    assert 0 < waited_for / 1000 - seconds <= 86_401
    assert await deadline_ms(queued.json()["id"]) is None
    worker.resume.set()
    assert (await answer).status_code == 200


@pytest.mark.parametrize(
    ("rule", "param", "says"),
    [
        ({"targets": [{"model": "m", "provider": 7}]}, "rules.0.targets.0.provider", "Extra inputs"),
        ({"match": "regex", "pattern": "(a"}, "rules.0", "no regular expression of RE2"),
        ({"overrides": {"temperature": 9}}, "rules.0.overrides.temperature", "less than or equal to 2"),
        ({"when": {"weather": "fine"}}, "rules.0.when.weather", "Extra inputs are not permitted"),
        ({"name": 7}, "rules.0.name", "valid string"),
    ],
)
async def test_rules_that_cannot_be_applied_are_refused_with_their_place(
    client: httpx2.AsyncClient, rule: dict[str, Any], param: str, says: str
) -> None:
    refused = await client.post("/admin/rules/drafts", json={"rules": [GPT | rule]})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, param)
    assert says in error["message"]


async def test_what_is_unknown_moved_or_ambiguous_is_refused(client: httpx2.AsyncClient) -> None:
    async def refusal(path: str, body: dict[str, Any]) -> tuple[int, str | None]:
        response = await client.post(f"/admin/rules/{path}", json=body)
        return response.status_code, response.json()["error"]["code"]

    draft = (await client.post("/admin/rules/drafts", json={"rules": []})).json()["id"]
    await applied(client, GPT)
    assert await refusal("apply", {"draft": draft}) == (409, "rules_moved")
    assert await refusal("apply", {"draft": "none"}) == (404, "rules_not_found")
    assert await refusal("rollback", {"version": 9}) == (404, "rules_not_found")
    assert await refusal("drafts", {"rules": [GPT, GPT]}) == (400, "invalid_rule")
    assert await refusal("drafts", {"rules": [], "base": 5}) == (404, "rules_not_found")
    assert (await refusal("dry-run", {}))[0] == 400
    assert (await refusal("dry-run", {"last": 5, "version": 1, "draft": draft}))[0] == 400
    assert (await refusal("dry-run", {"request": {"body": {"messages": []}}}))[0] == 400
    assert (await client.delete(f"/admin/rules/drafts/{draft}")).json()["deleted"]
    assert (await client.delete(f"/admin/rules/drafts/{draft}")).status_code == 404
    assert (await client.get("/admin/rules/77")).status_code == 404


async def test_a_draft_warns_of_what_is_probably_not_meant(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    rules = [GPT, GPT | {"name": "late", "pattern": "gpt-4", "fallback": [{"model": "away"}]}]
    warnings = (await client.post("/admin/rules/drafts", json={"rules": rules})).json()["warnings"]
    assert [(found["rule"], found["warning"].split(":")[0]) for found in warnings] == [
        ("late", "It can never match"),
        ("late", "Nobody serves the model 'away' at the moment."),
    ]


async def test_counting_follows_the_rules_too(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    await applied(client, GPT)
    counted = await client.post(
        "/v1/messages/count_tokens", json={"model": "gpt-4", "messages": [{"role": "user", "content": "Hi"}]}
    )
    assert counted.json()["input_tokens"] > 2
    assert (await client.post("/tokenize", json={"model": "gpt-4", "prompt": "Hi"})).json()["count"] == 2
