"""The first start on an address that others can reach makes a key, once, in a file of this user's."""

from __future__ import annotations

import stat
from pathlib import Path

import httpx2
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from api.first_key import first_key_file, make_first_key
from scheduler.admin_log import admin_changes
from scheduler.database import open_database
from scheduler.settings import ApiSettings
from tests.api.conftest import StartNode


async def test_the_first_start_makes_an_admins_key_and_the_second_none(
    start_node: StartNode, database_url: str, tmp_path: Path
) -> None:
    settings = ApiSettings(home=tmp_path, database_url=database_url, host="0.0.0.0")
    await make_first_key(settings)
    file = first_key_file(settings)
    text = file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.unlink()
    await make_first_key(settings)
    assert not file.exists()
    server = await start_node(host="0.0.0.0")
    async with httpx2.AsyncClient(base_url=server.url, timeout=300) as http:
        listed = await http.get("/admin/keys", headers={"authorization": f"Bearer {text}"})
        assert [(key["name"], key["role"]) for key in listed.json()["data"]] == [("first", "admin")]
        assert (await http.get("/admin/keys")).status_code == 401
    engine: AsyncEngine = open_database(database_url)
    assert [change.actor for change in await admin_changes(engine)] == ["first start"]
    await engine.dispose()


@pytest.mark.parametrize(
    ("host", "public"),
    [
        ("127.0.0.1", False),
        ("::1", False),
        ("[::1]", False),
        ("localhost", False),
        ("0.0.0.0", True),
        ("farm.lan", True),
    ],
)
def test_which_addresses_others_can_reach(host: str, public: bool) -> None:
    assert ApiSettings(host=host).is_public is public


def test_a_generated_key_is_no_key_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_API_KEY", "fk_abcdefghijkl_" + "A" * 43)
    assert ApiSettings().own_key is None
    monkeypatch.setenv("FARM_API_KEY", "sesame")
    assert ApiSettings().own_key == "sesame"
