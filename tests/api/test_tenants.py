"""Tenants over HTTP: listed with what they have in the queue, their weight changed and taken back."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.api.conftest import StartNode
from tests.api.scripted_farm import ScriptedWorker, chat_body
from tests.waiting import PATIENCE_S


async def test_weights_are_shown_changed_and_taken_back(start_node: StartNode, worker: ScriptedWorker) -> None:
    node = await start_node(tenant_weights={"acme": 2.5})
    worker.retire()
    await worker.gone.wait()
    async with httpx2.AsyncClient(base_url=node.url, timeout=PATIENCE_S) as client:
        await client.post("/v1/chat/completions", json=chat_body(max_tokens=5), headers={"prefer": "respond-async"})
        listed = (await client.get("/admin/tenants")).json()["data"]
        assert [(row["name"], row["weight"], row["set_by"], row["jobs"]) for row in listed] == [
            ("acme", 2.5, "settings", 0),
            ("default", 1.0, "default", 1),
        ]
        changed = await client.post("/admin/tenants/default", json={"weight": 4})
        assert (changed.json()["weight"], changed.json()["set_by"], changed.json()["jobs"]) == (4.0, "live", 1)
        back = await client.post("/admin/tenants/default", json={"weight": None})
        assert (back.json()["weight"], back.json()["set_by"]) == (1.0, "default")


@pytest.mark.parametrize("body", [{"weight": 0}, {"weight": -1}, {"weight": 1e9}, {"weight": "2"}, {}, {"heavy": 1}])
async def test_a_weight_that_cannot_be_is_refused_by_name(client: httpx2.AsyncClient, body: dict[str, Any]) -> None:
    refused = await client.post("/admin/tenants/acme", json=body)
    assert (refused.status_code, refused.json()["error"]["param"] in ("weight", "heavy")) == (400, True)
    assert (await client.get("/admin/tenants")).json()["data"] == []
