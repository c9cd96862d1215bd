"""`mlx-farm alias …` on a real node: a name that models are asked for by, from the command to the answer."""

from __future__ import annotations

import json

import httpx2

from tests.api.commands import mlx_farm
from tests.api.scripted_farm import MODEL, NodeServer, ScriptedWorker, chat_body
from tests.scheduler.ruling import put_in_effect, rule

CHAT = "/v1/chat/completions"


async def alias(server: NodeServer, *words: str, code: int = 0) -> str:
    """What `mlx-farm alias …` prints."""
    return await mlx_farm(server, "alias", *words, code=code)


async def test_a_model_is_asked_for_by_another_name_until_that_is_taken_away(
    server: NodeServer, client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    assert (await client.post(CHAT, json=chat_body(model="fast"))).status_code == 404
    assert "version 1" in await alias(server, "add", "fast", "nobody")
    assert "version 2" in await alias(server, "add", "fast", MODEL)
    assert "version 3" in await alias(server, "add", "smart", MODEL)
    assert json.loads(await alias(server, "ls", "--json")) == {"fast": MODEL, "smart": MODEL}
    for path, body in ((CHAT, chat_body(model="fast")), ("/v1/completions", {"model": "smart", "prompt": "Hi"})):
        assert (await client.post(path, json=body)).status_code == 200, path
    assert [request.model for request in worker.requests] == [MODEL, MODEL]
    listed = {model["id"]: model["root"] for model in (await client.get("/v1/models")).json()["data"]}
    assert listed == {MODEL: MODEL, "fast": MODEL, "smart": MODEL}
    shown = (await client.get("/v1/models/fast")).json()
    assert (shown["id"], shown["root"], shown["parent"]) == ("fast", MODEL, None)
    refused = await client.post("/admin/models/load", json={"model": "fast"})
    assert refused.json()["error"]["message"].startswith(f"Cannot load {MODEL!r}")
    counted = await client.post("/tokenize", json={"model": "fast", "prompt": "Hi"})
    assert counted.status_code == 200
    assert "version 4" in await alias(server, "rm", "fast")
    assert (await client.post(CHAT, json=chat_body(model="fast"))).status_code == 404
    assert (await alias(server, "ls")).splitlines()[1:] == [f"smart\t{MODEL}"]
    assert "There is no alias 'fast'" in await alias(server, "rm", "fast", code=2)
    assert "already" in await alias(server, "add", MODEL, MODEL, code=2)


async def test_other_rules_stay_as_they_are_behind_aliases(
    server: NodeServer, client: httpx2.AsyncClient, worker: ScriptedWorker
) -> None:
    await put_in_effect(server.node.rules.record, rule("all", "prefix", "", "nobody"))
    await alias(server, "add", "fast", MODEL)
    assert (await client.post(CHAT, json=chat_body(model="fast"))).status_code == 200
    rules = (await client.get("/admin/rules/current")).json()["rules"]
    assert [each["name"] for each in rules] == ["alias: fast", "all"]
