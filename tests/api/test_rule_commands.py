"""`mlx-farm route …` on a real node: a rule from its flags to its effect, and back."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2

from tests.api.commands import mlx_farm
from tests.api.scripted_farm import MODEL, NodeServer, ScriptedWorker, chat_body


async def route(server: NodeServer, *words: str, code: int = 0) -> str:
    """What `mlx-farm route …` prints."""
    return await mlx_farm(server, "route", *words, code=code)


async def test_a_rule_is_added_tried_applied_and_rolled_back(
    server: NodeServer,
    client: httpx2.AsyncClient,
    worker: ScriptedWorker,
    project: Callable[[], Awaitable[None]],
    tmp_path: Path,
) -> None:
    chat = "/v1/chat/completions"
    assert (await client.post(chat, json=chat_body())).status_code == 200
    await project()
    draft = await route(
        server, "add", "gpt", "--prefix", "gpt-", "--to", MODEL, "--set", "max_tokens=5", "--note", "why"
    )
    tried = (await route(server, "test", draft, "--model", "gpt-4")).splitlines()
    assert tried[1:] == [
        "gpt\tmatches",
        "now:  gpt-4 (no rule, lane normal)",
        f"then: {MODEL} (rule gpt, lane normal)",
    ]
    assert (await route(server, "test", draft, "--last", "5")).startswith("0 of 1 requests would change target")
    assert await route(server, "apply", draft) == "version 1 is in effect (1 rules)"
    assert (await client.post(chat, json=chat_body(model="gpt-4"))).status_code == 200
    assert (await route(server, "ls")).splitlines()[1] == f"gpt\tprefix\tgpt-\t\t{MODEL}\t\t\tmax_tokens=5"

    edited = tmp_path / "rules.json"
    shown: dict[str, Any] = json.loads(await route(server, "show"))
    edited.write_text(json.dumps({"rules": [shown["rules"][0] | {"lane": "low"}]}))
    changed = json.loads(await route(server, "add", "--file", str(edited), "--json"))
    assert (changed["base"], changed["rules"][0]["lane"]) == (1, "low")
    assert "version 2" in await route(server, "rollback", "0")
    assert "version 2 is in effect" in await route(server, "apply", changed["id"], code=1)
    listed = json.loads(await route(server, "ls", "--versions", "--json"))
    assert [version["note"] for version in listed["data"]] == ["", "why"]
    assert "There is no rule 'gpt'" in await route(server, "rm", "gpt", code=2)
