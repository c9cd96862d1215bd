"""Tenants see their own things only: another's are not there. The endpoints are the router's own list."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api.access import ENDPOINTS, Need
from api.app import create_app
from scheduler.admin_log import COMMAND_LINE
from scheduler.keys import KeyTerms, Role
from scheduler.settings import ApiSettings
from tests.api.conftest import StartNode
from tests.api.scripted_farm import MODEL, ScriptedWorker, chat_body
from tests.api.test_access import endpoints_of

CHAT = "/v1/chat/completions"
NOBODYS = {"model_id", "name", "key_id", "version", "draft_id", "pull_id", "_path"}
"""Parameters of paths that name nothing of a tenant's: models, their pulls, tenants, keys, rules, what nobody has."""


@dataclass
class Two:
    """Two tenants' clients; `ids` are what the first one owns, by the path that names it up to the parameter."""

    a: httpx2.AsyncClient
    b: httpx2.AsyncClient
    ids: dict[str, str]


@pytest.fixture
async def two(
    start_node: StartNode, worker: ScriptedWorker, project: Callable[[], Awaitable[None]]
) -> AsyncIterator[Two]:
    server = await start_node()
    clients = []
    for tenant, role in (("default", Role.ADMIN), ("a", Role.CLIENT), ("b", Role.CLIENT)):
        _, text = await server.node.keys.create(KeyTerms(name="n", tenant=tenant, role=role), COMMAND_LINE)
        clients.append(
            httpx2.AsyncClient(base_url=server.url, timeout=300, headers={"authorization": f"Bearer {text}"})
        )
    await server.node.key_watch.refresh()
    _, a, b = clients
    ids = await _belongings(a)
    await project()
    yield Two(a, b, ids)
    for client in clients:
        await client.aclose()


async def _belongings(a: httpx2.AsyncClient) -> dict[str, str]:
    """One thing of each kind."""
    line = {"custom_id": "1", "method": "POST", "url": CHAT, "body": chat_body()}
    file = await a.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", _line(line))})
    message = {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
    made = {
        "/v1/files/": file,
        "/v1/batches/": await a.post(
            "/v1/batches",
            json={"input_file_id": file.json()["id"], "endpoint": CHAT, "completion_window": "24h"},
        ),
        "/v1/messages/batches/": await a.post(
            "/v1/messages/batches", json={"requests": [{"custom_id": "1", "params": message}]}
        ),
        f"{CHAT}/": await a.post(CHAT, json=chat_body(store=True)),
        "/v1/responses/": await a.post("/v1/responses", json={"model": MODEL, "input": "Hi"}),
        "/v1/jobs/": await a.post(CHAT, json=chat_body(), headers={"prefer": "respond-async"}),
    }
    assert {path: answer.status_code for path, answer in made.items() if answer.status_code >= 300} == {}
    return {path: answer.json()["id"] for path, answer in made.items()}


def _line(line: dict[str, Any]) -> bytes:
    return httpx2.Request("POST", "http://farm", json=line).content + b"\n"


def with_parameters(tmp_path: Path) -> Iterator[tuple[str, str, str, str]]:
    """Method, the path up to the parameter, its name and the rest, of all endpoints that name a tenant's things."""
    for method, template in sorted(endpoints_of(create_app(ApiSettings(home=tmp_path)).routes)):
        found = re.fullmatch(r"(.*?)\{(\w+)(?::path)?\}(.*)", template)
        if found and found[2] not in NOBODYS:
            assert "{" not in found[3], f"{template}: say here whose these are"
            yield method, found[1], found[2], found[3]


async def test_no_endpoint_tells_of_another_tenants_things(two: Two, tmp_path: Path) -> None:
    asked, wrong = set(), []
    for method, before, name, after in with_parameters(tmp_path):
        assert before in two.ids, f"{before}{{{name}}}: a new kind of thing; make one in _belongings"
        answers = []
        for thing in (two.ids[before], _unknown(two.ids[before])):
            body: dict[str, Any] | None = {"metadata": {}} if method == "POST" else None
            answers.append(await two.b.request(method, f"{before}{thing}{after}", json=body))
        statuses = [answer.status_code for answer in answers]
        texts = [re.sub(r"req-\w+|" + re.escape(two.ids[before]), "", answer.text) for answer in answers[:1]]
        if statuses != [404, 404] or "tenant" in texts[0]:
            wrong.append((method, before, after, statuses, answers[0].text))
        asked.add((before, after))
    assert wrong == []
    assert len(asked) >= 12


def _unknown(thing: str) -> str:
    """An id that looks like it and names nothing."""
    last = "0" if thing[-1] != "0" else "1"
    return thing[:-1] + last


async def test_their_owner_still_has_them(two: Two, tmp_path: Path) -> None:
    await test_no_endpoint_tells_of_another_tenants_things(two, tmp_path)
    for before, thing in two.ids.items():
        assert (before, (await two.a.get(f"{before}{thing}")).status_code) == (before, 200)


async def test_lists_have_ones_own_things_only(two: Two) -> None:
    shown: set[str] = set()
    for need in (Need.KEY, Need.USE):
        for line in ENDPOINTS[need]:
            methods, _, path = line.partition(" ")
            if "GET" not in methods or "{" in path or path == "/openapi.json":
                continue
            theirs, own = await two.b.get(path), await two.a.get(path)
            assert [thing for thing in two.ids.values() if thing in theirs.text] == [], path
            shown |= {before for before, thing in two.ids.items() if thing in own.text}
    assert shown | {"/v1/responses/"} == set(two.ids)  # responses are in no list


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/audit/requests"])
async def test_another_tenants_records_cannot_be_asked_for(two: Two, path: str) -> None:
    refused = await two.b.get(path, params={"tenant": "a"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tenant")
    assert len((await two.a.get(path, params={"tenant": "a"})).json()["data"]) >= 3


async def test_bodies_cannot_name_another_tenants_things(two: Two) -> None:
    response, file = two.ids["/v1/responses/"], two.ids["/v1/files/"]
    asked: list[tuple[str, dict[str, Any]]] = [
        ("/v1/responses", {"model": MODEL, "input": "Hi", "previous_response_id": response}),
        ("/v1/responses/input_tokens", {"model": MODEL, "input": "Hi", "previous_response_id": response}),
        ("/v1/batches", {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}),
    ]
    for path, body in asked:
        theirs = await two.b.post(path, json=body)
        assert (path, theirs.status_code in (400, 404)) == (path, True), theirs.text
        assert (await two.a.post(path, json=body)).status_code == 200


async def test_an_idempotency_key_is_a_tenants_own(two: Two) -> None:
    for headers in ({"idempotency-key": "k"}, {"idempotency-key": "k", "prefer": "respond-async"}):
        jobs = [
            (await client.post(CHAT, json=chat_body(), headers=headers)).headers["farm-job-id"]
            for client in (two.a, two.b, two.a)
        ]
        assert (jobs[0] == jobs[2], jobs[0] != jobs[1]) == (True, True)


async def test_prompts_carry_their_tenants_salt(two: Two, worker: ScriptedWorker) -> None:
    for client in (two.a, two.b):
        await client.post(CHAT, json=chat_body())
    assert [request.cache_salt for request in worker.requests[-2:]] == ["a", "b"]


async def test_a_farm_of_one_tenant_or_one_that_shares_has_no_salts(
    start_node: StartNode, worker: ScriptedWorker
) -> None:
    server = await start_node(share_prefixes=True)
    async with httpx2.AsyncClient(base_url=(await start_node()).url, timeout=300) as alone:
        await alone.post(CHAT, json=chat_body())
    terms = KeyTerms(name="n", tenant="a", role=Role.CLIENT)
    _, text = await server.node.keys.create(terms, COMMAND_LINE, has_other_admin=True)
    await server.node.key_watch.refresh()
    async with httpx2.AsyncClient(base_url=server.url, timeout=300) as sharing:
        await sharing.post(CHAT, json=chat_body(), headers={"authorization": f"Bearer {text}"})
    assert [request.cache_salt for request in worker.requests] == ["", ""]
