"""Keys over HTTP: made, used by the real SDKs, bound by their terms, rotated, revoked on every node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from api.auth_failures import FREE, LONGEST_S, AuthFailures
from scheduler.keys import new_key_text
from tests.api.conftest import StartNode
from tests.api.scripted_farm import MODEL, NodeServer, ScriptedWorker, chat_body, until

CHAT = "/v1/chat/completions"
MESSAGE: dict[str, Any] = {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}

MakeKey = Callable[..., Awaitable[dict[str, Any]]]


@pytest.fixture
async def admin(server: NodeServer) -> AsyncIterator[httpx2.AsyncClient]:
    """Plain HTTP with the farm's first key, which an open farm lets anybody make."""
    async with httpx2.AsyncClient(base_url=server.url, timeout=300) as http:
        made = await http.post("/admin/keys", json={"name": "ann", "role": "admin"})
        assert made.status_code == 201, made.text
        http.headers["authorization"] = f"Bearer {made.json()['key']}"
        yield http


@pytest.fixture
def make_key(admin: httpx2.AsyncClient) -> MakeKey:
    """Make a client's key with these terms."""

    async def make(**terms: Any) -> dict[str, Any]:
        made = await admin.post("/admin/keys", json={"name": "app", **terms})
        assert made.status_code == 201, made.text
        answer: dict[str, Any] = made.json()
        return answer

    return make


def bearer(key: dict[str, Any]) -> dict[str, str]:
    return {"authorization": f"Bearer {key['key']}"}


async def test_the_first_key_closes_an_open_farm(client: httpx2.AsyncClient, worker: ScriptedWorker) -> None:
    assert (await client.post(CHAT, json=chat_body())).status_code == 200
    refused = await client.post("/admin/keys", json={"name": "app"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "role")
    first = (await client.post("/admin/keys", json={"name": "ann", "role": "admin"})).json()
    for headers in ({}, {"authorization": "Bearer unused"}):
        assert (await client.post(CHAT, json=chat_body(), headers=headers)).status_code == 401
    assert (await client.post(CHAT, json=chat_body(), headers=bearer(first))).status_code == 200


async def test_a_key_is_shown_once_and_listed_by_its_prefix(admin: httpx2.AsyncClient, make_key: MakeKey) -> None:
    terms = {"tenant": "acme", "models": [MODEL], "lanes": ["low"], "limits": {"tokens_per_day": 9}}
    made = await make_key(**terms, expires_in_s=3600)
    listed = await admin.get("/admin/keys")
    assert made["key"].startswith(f"{made['id']}_")
    assert made["key"] not in listed.text
    shown = next(key for key in listed.json()["data"] if key["id"] == made["id"])
    assert shown == {name: value for name, value in made.items() if name != "key"}
    assert {name: shown[name] for name in terms} == terms
    assert (shown["state"], shown["role"], shown["expires_ms"] > shown["created_ms"]) == ("active", "client", True)
    assert (await admin.get(f"/admin/keys/{made['id']}")).json() == shown
    assert (await admin.get("/admin/keys/fk_none")).status_code == 404


async def test_the_sdks_bring_it_their_own_way(server: NodeServer, make_key: MakeKey, worker: ScriptedWorker) -> None:
    text = (await make_key())["key"]
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=text, max_retries=0) as sdk:
        assert (await sdk.chat.completions.create(**chat_body())).choices[0].message.content == "Hello, world!"
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key=text, max_retries=0) as claude:
        assert (await claude.messages.create(**MESSAGE)).role == "assistant"
    async with anthropic.AsyncAnthropic(base_url=server.url, auth_token=text, max_retries=0) as claude:
        assert (await claude.messages.create(**MESSAGE)).role == "assistant"
    wrong = new_key_text(text.rpartition("_")[0][:15])
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=wrong, max_retries=0) as sdk:
        with pytest.raises(openai.AuthenticationError):
            await sdk.models.list()
    async with anthropic.AsyncAnthropic(base_url=server.url, api_key=wrong, max_retries=0) as claude:
        with pytest.raises(anthropic.AuthenticationError):
            await claude.messages.create(**MESSAGE)


async def test_a_revoked_key_opens_no_node(
    start_node: StartNode, admin: httpx2.AsyncClient, make_key: MakeKey, worker: ScriptedWorker
) -> None:
    key = await make_key()
    other = await start_node()
    async with httpx2.AsyncClient(base_url=other.url, timeout=300) as there:

        async def status() -> int:
            return (await there.get("/v1/models", headers=bearer(key))).status_code

        assert await status() == 200  # a node that starts knows all keys
        assert (await admin.post(f"/admin/keys/{key['id']}/revoke")).json()["state"] == "revoked"
        here = await admin.get("/v1/models", headers=bearer(key))
        assert (here.status_code, "revoked" in here.json()["error"]["message"]) == (401, True)

        async def is_closed() -> bool:
            return await status() == 401

        await until(is_closed, timeout_s=300)
        later = await make_key()

        async def is_known() -> bool:
            return (await there.get("/v1/models", headers=bearer(later))).status_code == 200

        await until(is_known, timeout_s=300)


async def test_a_rotated_key_has_a_new_text_and_the_old_one_for_a_while(
    admin: httpx2.AsyncClient, make_key: MakeKey
) -> None:
    key = await make_key()
    new = (await admin.post(f"/admin/keys/{key['id']}/rotate", json={"grace_s": 3600})).json()
    assert (new["id"], new["key"] != key["key"]) == (key["id"], True)
    for text in (key, new):
        assert (await admin.get("/v1/models", headers=bearer(text))).status_code == 200
    last = (await admin.post(f"/admin/keys/{key['id']}/rotate")).json()
    statuses = [(await admin.get("/v1/models", headers=bearer(text))).status_code for text in (key, new, last)]
    assert statuses == [401, 401, 200]


async def test_a_key_sees_and_uses_its_models_only(admin: httpx2.AsyncClient, make_key: MakeKey, worker: Any) -> None:
    key = await make_key(models=["other"])
    assert (await admin.get("/v1/models", headers=bearer(key))).json()["data"] == []
    assert (await admin.get(f"/v1/models/{MODEL}", headers=bearer(key))).status_code == 404
    asked: dict[str, dict[str, Any]] = {
        CHAT: chat_body(),
        "/v1/completions": {"model": MODEL, "prompt": "Hi"},
        "/v1/responses": {"model": MODEL, "input": "Hi"},
        "/v1/responses/input_tokens": {"model": MODEL, "input": "Hi"},
        "/v1/messages": MESSAGE,
        "/v1/messages/count_tokens": {name: MESSAGE[name] for name in ("model", "messages")},
        "/tokenize": {"model": MODEL, "prompt": "Hi"},
        "/detokenize": {"model": MODEL, "tokens": [1]},
        "/v1/embeddings": {"model": MODEL, "input": "Hi"},
        "/v1/jobs": {"kind": "chat.completions", "body": chat_body()},
    }
    for path, body in asked.items():
        refused = await admin.post(path, json=body, headers=bearer(key))
        assert (path, refused.status_code, MODEL in refused.text) == (path, 403, True)
    assert worker.requests == []


async def test_a_keys_first_lane_serves_what_names_none(
    admin: httpx2.AsyncClient, make_key: MakeKey, worker: ScriptedWorker, queue: Any
) -> None:
    low, high = await make_key(lanes=["low"]), await make_key(lanes=["high", "normal"])
    for key, lane in ((low, "low"), (high, "normal")):
        answer = await admin.post(CHAT, json=chat_body(), headers=bearer(key))
        job = await queue.snapshot(answer.headers["farm-job-id"])
        assert job["lane"] == lane
    refused = await admin.post(CHAT, json=chat_body(), headers={**bearer(low), "farm-lane": "high"})
    assert (refused.status_code, "high lane" in refused.json()["error"]["message"]) == (403, True)
    batch = {"requests": [{"custom_id": "1", "params": MESSAGE}]}
    refused = await admin.post("/v1/messages/batches", json=batch, headers=bearer(high))
    assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")


async def test_each_key_has_limits_of_its_own(
    admin: httpx2.AsyncClient, make_key: MakeKey, worker: ScriptedWorker
) -> None:
    bound = await make_key(limits={"requests_per_minute": 1, "tokens_per_day": 10_000})
    free = await make_key()
    statuses = [(await admin.post(CHAT, json=chat_body(), headers=bearer(bound))).status_code for _ in range(2)]
    assert statuses == [200, 429]
    assert (await admin.post(CHAT, json=chat_body(), headers=bearer(free))).status_code == 200
    tired = await make_key(limits={"tokens_per_day": 60})
    body = chat_body(max_tokens=5)
    answers = [await admin.post(CHAT, json=body, headers=bearer(tired)) for _ in range(4)]
    assert answers[-1].status_code == 429
    assert "60 tokens per day" in answers[-1].text
    assert answers[0].status_code == 200


async def test_changes_are_told_with_who_made_them_and_from_where(admin: httpx2.AsyncClient, make_key: MakeKey) -> None:
    key = await make_key(tenant="acme")
    await admin.post(f"/admin/keys/{key['id']}/revoke")
    newest = (await admin.get("/admin/changes", params={"limit": 2})).json()
    assert [change["action"] for change in newest["data"]] == ["keys.revoke", "keys.create"]
    assert {change["target"] for change in newest["data"]} == {key["id"]}
    assert {change["address"] for change in newest["data"]} == {"127.0.0.1"}
    first_id = admin.headers["authorization"].removeprefix("Bearer ")[:15]
    assert {change["actor"] for change in newest["data"]} == {first_id}
    oldest = (await admin.get("/admin/changes", params={"after": newest["next"]})).json()
    assert [(change["actor"], change["action"]) for change in oldest["data"]] == [("", "keys.create")]
    assert (oldest["has_more"], oldest["next"]) == (False, None)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "n", "role": "god"}, "role"),
        ({"name": "n", "lanes": ["express"]}, "lanes.0"),
        ({"name": "n", "limits": {"requests_per_minute": -1}}, "limits.requests_per_minute"),
        ({"name": "n", "limits": {"cost_per_day": 1}}, "limits.cost_per_day"),
        ({"name": "n", "expires_in_s": 0}, "expires_in_s"),
        ({"name": "n", "scopes": []}, "scopes"),
    ],
)
async def test_terms_that_make_no_sense_are_refused_by_name(
    admin: httpx2.AsyncClient, body: dict[str, Any], param: str
) -> None:
    refused = await admin.post("/admin/keys", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_an_address_that_brings_wrong_keys_waits_but_good_keys_pass(
    start_node: StartNode, worker: ScriptedWorker
) -> None:
    server = await start_node(api_key="sesame")
    async with httpx2.AsyncClient(base_url=server.url, timeout=300) as http:
        sesame = {"authorization": "Bearer sesame"}
        made = await http.post("/admin/keys", json={"name": "app"}, headers=sesame)
        wrong = {"authorization": "Bearer guess"}
        statuses = [(await http.get("/v1/models", headers=wrong)).status_code for _ in range(3 * FREE)]
        refused = await http.get("/v1/models", headers=wrong)
        assert set(statuses) == {401, 429}
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_wrong_keys")
        assert (int(refused.headers["retry-after"]) >= 1, refused.headers["x-should-retry"]) == (True, "false")
        assert (await http.get("/v1/models", headers=bearer(made.json()))).status_code == 200
        assert (await http.get("/v1/models")).status_code == 401
        assert (await http.get("/health")).status_code == 200


def test_wrong_keys_are_forgiven_with_time_and_cost_more_each_time() -> None:
    failures = AuthFailures()
    for _ in range(FREE):
        failures.note("192.0.2.1", 0.0)
    assert failures.wait_s("192.0.2.1", 0.0) == 0.0
    waits = []
    for _ in range(9):
        failures.note("192.0.2.1", 0.0)
        waits.append(failures.wait_s("192.0.2.1", 0.0))
    assert waits[:3] == [2.0, 4.0, 8.0]
    assert waits[-1] == LONGEST_S
    assert failures.wait_s("192.0.2.1", 1000.0) == failures.wait_s("192.0.2.2", 0.0) == 0.0
    failures.note("192.0.2.1", 10_000.0)
    assert failures.wait_s("192.0.2.1", 10_000.0) == 0.0


def test_addresses_of_one_network_of_ipv6_are_one_and_only_so_many_are_kept() -> None:
    failures = AuthFailures()
    for last in range(FREE + 1):
        failures.note(f"2001:db8::{last:x}", 0.0)
    assert failures.wait_s("2001:db8::ffff", 0.0) > 0
    assert failures.wait_s("2001:db8:0:1::1", 0.0) == 0.0
    for number in range(11_000):
        failures.note(f"10.0.{number // 250}.{number % 250}", 0.0)
    assert failures.wait_s("2001:db8::1", 0.0) == 0.0


async def test_while_the_record_is_away_a_node_with_a_pepper_lets_nobody_in(start_node: StartNode) -> None:
    away = "postgresql+asyncpg://nobody@127.0.0.1:1/none"
    closed = await start_node(database_url=away, key_pepper="p" * 32, api_key="sesame")
    async with httpx2.AsyncClient(base_url=closed.url, timeout=300) as http:
        assert (await http.get("/v1/models")).status_code == 401
        unread = await http.get("/v1/models", headers={"x-api-key": new_key_text("fk_abcdefghijkl")})
        assert (unread.status_code, unread.json()["error"]["code"]) == (503, "record_unavailable")
        assert (await http.get("/v1/models", headers={"x-api-key": "sesame"})).status_code == 200
    without = await start_node(database_url=away, key_pepper="p" * 32)
    async with httpx2.AsyncClient(base_url=without.url, timeout=300) as http:
        assert (await http.get("/v1/models")).status_code == 401


async def test_a_node_that_others_reach_is_never_open(start_node: StartNode) -> None:
    server = await start_node(host="0.0.0.0")
    async with httpx2.AsyncClient(base_url=server.url, timeout=300) as http:
        assert (await http.get("/v1/models")).status_code == 401
    insecure = await start_node(host="0.0.0.0", insecure=True)
    async with httpx2.AsyncClient(base_url=insecure.url, timeout=300) as http:
        assert (await http.get("/v1/models")).status_code == 200
