"""Every endpoint has its rule, every rule its endpoint, and each role gets what its rules say, asked over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
from fastapi.routing import iter_route_contexts
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import Receive, Scope, Send

from api.access import ENDPOINTS, GRANTED, Access, Need
from api.app import create_app
from api.errors import ApiError
from scheduler.admin_log import COMMAND_LINE
from scheduler.keys import KeyTerms, Role
from scheduler.settings import ApiSettings
from tests.api.conftest import StartNode

Endpoint = tuple[str, str]


def endpoints_of(routes: list[BaseRoute], prefix: str = "") -> Iterator[Endpoint]:
    """Method and path of all that a router serves; what can serve anything at all is a path that no rule has."""
    for context in iter_route_contexts(routes):
        route = getattr(context, "original_route", None) or context
        methods, path = getattr(context, "methods", None), getattr(context, "path", None)
        if isinstance(route, Mount):
            yield from endpoints_of(list(route.routes), prefix + route.path)
            if not route.routes:
                yield "*", f"{prefix}{route.path}/*"
        elif path is None or not methods:
            yield "*", f"{prefix}{path or route!r}"
        else:
            yield from ((method, prefix + path) for method in methods)


def ruled() -> dict[Endpoint, Need]:
    """The table, one row for each method."""
    rows = [(need, line.split(" ")) for need, lines in ENDPOINTS.items() for line in lines]
    return {(method, path): need for need, (methods, path) in rows for method in methods.split(",")}


def sample(path: str) -> str:
    """A path that fits a template."""
    parts = [
        ("a/b" if part.endswith(":path}") else "x-1") if part.startswith("{") else part for part in path.split("/")
    ]
    return "/".join(parts)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> set[Endpoint]:
    app = create_app(ApiSettings(home=tmp_path_factory.mktemp("home")))
    return set(endpoints_of(app.routes))


def test_every_endpoint_has_a_rule_and_every_rule_an_endpoint(served: set[Endpoint]) -> None:
    rules = set(ruled())
    assert served - rules == set(), "give each of these its line in api/access.py"
    assert rules - served == set(), "nothing is there any more"


def test_a_new_endpoint_or_mount_without_a_rule_would_be_noticed(tmp_path: Path) -> None:
    async def anything(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    async def new() -> None:
        raise AssertionError

    app = create_app(ApiSettings(home=tmp_path))
    before = set(endpoints_of(app.routes))
    app.add_api_route("/new", new, methods=["PUT"])
    app.mount("/files", anything)
    app.mount("/sub", Router([Route("/deep", anything, methods=["GET"])]))
    assert {("PUT", "/new"), ("*", "/files/*"), ("GET", "/sub/deep")} <= set(endpoints_of(app.routes)) - before


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/new", 404), ("GET", "/v1/jobs/", 404), ("DELETE", "/admin/keys", 405), ("POST", "/v1/jobs/dead", 405)],
)
def test_what_has_no_rule_is_not_there(method: str, path: str, status: int) -> None:
    with pytest.raises(ApiError) as refused:
        Access().needs(method, path)
    assert refused.value.status_code == status


def test_a_path_that_fits_two_templates_needs_what_both_need() -> None:
    access = Access({Need.KEY: ("GET /a/{x}",), Need.GRANT: ("GET /a/b",), Need.NOTHING: ("GET /c", "GET /{x:path}")})
    assert access.needs("GET", "/a/b") == {Need.KEY, Need.GRANT, Need.NOTHING}
    assert access.is_open("GET", "/c")
    assert not access.is_open("GET", "/a/b")


def test_clients_use_models_and_nobody_but_admins_makes_keys() -> None:
    assert [role for role in Role if Need.GRANT in GRANTED[role]] == [Role.ADMIN]
    assert Need.LOOK not in GRANTED[Role.CLIENT]
    assert Need.USE not in GRANTED[Role.VIEWER]
    assert all(Need.NOTHING in granted for granted in GRANTED.values())


@pytest.fixture
async def keyed(start_node: StartNode) -> AsyncIterator[tuple[httpx2.AsyncClient, dict[Role, str]]]:
    """A node whose farm has a key of each role."""
    server = await start_node()
    texts = {}
    for role in Role:
        _, texts[role] = await server.node.keys.create(KeyTerms(name=role, tenant="default", role=role), COMMAND_LINE)
    await server.node.key_watch.refresh()
    async with httpx2.AsyncClient(base_url=server.url, timeout=300) as http:
        yield http, texts


async def test_each_role_gets_in_where_the_table_says_and_nowhere_else(
    keyed: tuple[httpx2.AsyncClient, dict[Role, str]],
) -> None:
    """Whoever gets in meets the endpoint's own opinion of an empty request, which is neither 401 nor 403."""
    http, texts = keyed
    wrong = []
    for (method, path), need in ruled().items():
        for role in [None, *Role]:
            headers = {"authorization": f"Bearer {texts[role]}"} if role else {}
            answer = await http.request(method, sample(path), headers=headers)
            if role is None:
                expected = need is Need.NOTHING
                allowed = answer.status_code != 401
            else:
                expected = need in GRANTED[role]
                allowed = answer.status_code not in (401, 403)
            if allowed is not expected:
                wrong.append((method, path, role, answer.status_code))
    assert wrong == []


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.VIEWER, Role.CLIENT])
async def test_who_may_not_make_keys_is_told_who_may(
    keyed: tuple[httpx2.AsyncClient, dict[Role, str]], role: Role
) -> None:
    http, texts = keyed
    for path in ("/admin/keys", "/admin/keys/x/rotate", "/admin/keys/x/revoke"):
        refused = await http.post(path, json={"name": "n"}, headers={"x-api-key": texts[role]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
        assert "admin" in refused.json()["error"]["message"]
    assert (await http.get("/admin/keys", headers={"x-api-key": texts[Role.ADMIN]})).json()["data"]
