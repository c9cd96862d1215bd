"""`mlx-farm keys …`: against a stand-in of the API, and `--here` against the database itself."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

KEY = {"id": "fk_abc", "name": "app", "tenant": "acme", "role": "client", "state": "active", "key": "fk_abc_secret"}


@pytest.fixture(autouse=True)
def pointed(mlx_farm: Any, stub_api: Any) -> None:
    """The commands speak to the stand-in."""
    mlx_farm.environment["FARM_URL"] = stub_api.url


def test_a_key_is_made_with_its_terms_and_printed_alone(mlx_farm: Any, stub_api: Any) -> None:
    stub_api.answer = lambda request: stub_api.reply(KEY, 201)
    terms = ("--tenant", "acme", "--model", "a", "--model", "b/c", "--lane", "low", "--tokens-per-day", "9")
    done = mlx_farm("keys", "create", "app", *terms, "--expires-in", "90d")
    assert (done.returncode, done.stdout) == (0, "fk_abc_secret\n")
    assert "not shown again" in done.stderr
    [request] = stub_api.requests
    assert (request.method, request.path) == ("POST", "/admin/keys")
    assert request.body == {
        "name": "app",
        "tenant": "acme",
        "role": "client",
        "limits": {"tokens_per_day": 9},
        "models": ["a", "b/c"],
        "lanes": ["low"],
        "expires_in_s": 90 * 86400,
    }


def test_keys_are_listed_rotated_and_revoked(mlx_farm: Any, stub_api: Any) -> None:
    shown = KEY | {"models": ["a"], "lanes": [], "limits": {"tokens_per_day": 9}, "revoked_ms": None}
    stub_api.answer = lambda request: stub_api.reply({"data": [shown]} if request.method == "GET" else shown)
    listed = mlx_farm("keys", "ls")
    row = ["fk_abc", "app", "acme", "client", "active", "a, tokens_per_day=9", ""]
    assert (listed.returncode, listed.stdout.splitlines()[-1].split("\t")) == (0, row)
    assert json.loads(mlx_farm("keys", "rotate", "fk_abc", "--grace", "24h", "--json").stdout) == shown
    assert "app" in mlx_farm("keys", "revoke", "fk_abc").stdout
    assert stub_api.paths()[1:] == ["POST /admin/keys/fk_abc/rotate", "POST /admin/keys/fk_abc/revoke"]
    assert stub_api.requests[1].body == {"grace_s": 86400}


@pytest.mark.parametrize(
    "arguments", [("--expires-in", "soon"), ("--here", "--model", "a"), ("--here", "--role", "viewer")]
)
def test_what_cannot_be_is_refused_before_anything_is_asked(
    mlx_farm: Any, stub_api: Any, arguments: tuple[str, ...]
) -> None:
    done = mlx_farm("keys", "create", "app", *arguments)
    assert (done.returncode, stub_api.requests) == (2, [])


def test_who_has_the_database_makes_a_key_without_one(mlx_farm: Any, stub_api: Any) -> None:
    assert mlx_farm("db", "upgrade").returncode == 0
    for name in ("ann", "bob"):
        done = mlx_farm("keys", "create", name, "--here")
        assert (done.returncode, bool(re.fullmatch(r"fk_[a-z2-7]{12}_[\w-]{43}\n", done.stdout))) == (0, True), done
    assert json.loads(mlx_farm("keys", "create", "cid", "--here", "--json").stdout)["role"] == "admin"
    assert stub_api.requests == []
