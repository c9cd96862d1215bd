"""Providers over HTTP: what admins see and change, and what nobody ever sees."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from tests.api.conftest import StartNode
from tests.api.scripted_farm import NodeServer

KEY = "sk-canary-0123456789"


def described(**changes: Any) -> dict[str, Any]:
    said = {"name": "cloud", "kind": "openai", "base_url": "https://api.example.com/v1", "models": [{"name": "big"}]}
    return said | {"key": KEY} | changes


async def test_a_provider_is_added_changed_and_disabled_and_its_key_never_shown(
    client: httpx2.AsyncClient, server: NodeServer, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = [await client.post("/admin/providers", json=described())]
    assert seen[0].status_code == 201
    body = {name: value for name, value in described(concurrency=3).items() if name not in ("name", "key")}
    for path, sent in {"cloud": body, "cloud/rotate": {"key": f"{KEY}-2"}, "cloud/disable": None}.items():
        seen.append(await client.post(f"/admin/providers/{path}", json=sent))
    for path in ("/admin/providers", "/admin/providers/cloud", "/admin/changes"):
        seen.append(await client.get(path))
    assert [answer.status_code for answer in seen[1:]] == [200] * 6
    assert [answer for answer in seen if KEY in answer.text] == []
    provider = seen[5].json()
    assert (provider["enabled"], provider["has_key"], provider["concurrency"]) == (False, True, 3)
    assert provider["base_url"] == "https://api.example.com/v1"
    assert server.node.providers.key_of(await server.node.providers.get("cloud")) == f"{KEY}-2"
    assert KEY not in "".join(capfd.readouterr())


async def test_a_refused_body_is_refused_without_the_key_that_is_in_it(client: httpx2.AsyncClient) -> None:
    changes: list[dict[str, Any]] = [
        {"kind": "telnet"},
        {"models": []},
        {"base_url": "http://10.0.0.1/v1"},
        {"key": 17},
        {"key": f"{KEY}\r\nx: y"},
        {"x": KEY},
    ]
    for change in changes:
        answer = await client.post("/admin/providers", json=described(**change))
        assert answer.status_code == 400, change
        assert KEY not in answer.text, change


@pytest.mark.parametrize("url", ["http://api.example.com/v1", "https://127.0.0.1/v1", "https://[fd00::1]/v1"])
async def test_an_address_that_is_not_public_is_refused(client: httpx2.AsyncClient, url: str) -> None:
    answer = await client.post("/admin/providers", json=described(base_url=url))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_provider", "base_url")
    assert (await client.get("/admin/providers")).json()["data"] == []


async def test_a_gateway_of_ones_own_is_named_by_the_operator(start_node: StartNode) -> None:
    server = await start_node(provider_hosts="127.0.0.1:4000")
    async with httpx2.AsyncClient(base_url=server.url, timeout=300) as client:
        gateway = described(base_url="http://127.0.0.1:4000/v1", key="")
        answer = await client.post("/admin/providers", json=gateway)
        assert (answer.status_code, answer.json()["has_key"]) == (201, False)
        again = await client.post("/admin/providers", json=gateway)
        assert (again.status_code, again.json()["error"]["code"]) == (409, "provider_exists")
    assert (await client_get(server, "/admin/providers/nobody")).status_code == 404


async def client_get(server: NodeServer, path: str) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=server.url, timeout=300) as client:
        return await client.get(path)
