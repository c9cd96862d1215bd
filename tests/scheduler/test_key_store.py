"""Keys in SQL: no text of one is in it, changes are in order, the pepper is a file of this user's."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.admin_log import COMMAND_LINE, admin_changes
from scheduler.database import open_database
from scheduler.errors import InvalidKey, InvalidTerms, KeyEnded, PepperUnusable, RecordUnavailable, UnknownKey
from scheduler.key_ring import KeyRing
from scheduler.key_store import KeyStore
from scheduler.keys import KeyTerms, Role
from scheduler.pepper import Pepper
from scheduler.settings import FarmSettings
from scheduler.tables import AdminChangeRow, KeyRow

ADMIN = KeyTerms(name="ann", tenant="default", role=Role.ADMIN)
CLIENT = KeyTerms(name="app", tenant="acme", role=Role.CLIENT, models=("demo",))


@pytest.fixture
def pepper(tmp_path: Path) -> Pepper:
    return Pepper(FarmSettings(home=tmp_path))


@pytest.fixture
def store(engine: AsyncEngine, pepper: Pepper) -> KeyStore:
    return KeyStore(engine, pepper)


async def ring_of(store: KeyStore, pepper: Pepper) -> KeyRing:
    ring = KeyRing()
    ring.learn(await store.changed_since(0), pepper.read())
    return ring


async def test_a_key_is_made_found_rotated_and_revoked(store: KeyStore, pepper: Pepper) -> None:
    await store.create(ADMIN, COMMAND_LINE)
    key, text = await store.create(CLIENT, COMMAND_LINE)
    assert (await ring_of(store, pepper)).check(text) == key == await store.get(key.id)
    assert key.terms == CLIENT
    rotated, new_text = await store.rotate(key.id, 60_000, COMMAND_LINE)
    ring = await ring_of(store, pepper)
    assert ring.check(new_text) == ring.check(text) == rotated
    with pytest.raises(InvalidKey):
        ring.check(text, now_ms=(rotated.previous_until_ms or 0) + 1)
    await store.revoke(key.id, COMMAND_LINE)
    ring = await ring_of(store, pepper)
    for ended in (text, new_text):
        with pytest.raises(InvalidKey, match="revoked"):
            ring.check(ended)
    assert await store.revoke(key.id, COMMAND_LINE) == await store.get(key.id)
    with pytest.raises(KeyEnded, match="revoked"):
        await store.rotate(key.id, 0, COMMAND_LINE)
    assert {known.terms.name for known in await store.all()} == {"app", "ann"}


async def test_what_changed_is_told_once_and_in_the_log(store: KeyStore, engine: AsyncEngine) -> None:
    first, _ = await store.create(ADMIN, COMMAND_LINE)
    key, _ = await store.create(CLIENT, COMMAND_LINE)
    assert await store.changed_since(first.version) == [key]
    revoked = await store.revoke(first.id, COMMAND_LINE)
    assert await store.changed_since(key.version) == [revoked]
    assert await store.changed_since(revoked.version) == []
    changes = await admin_changes(engine)
    told = [(change.action, change.target) for change in changes]
    assert told == [("keys.revoke", first.id), ("keys.create", key.id), ("keys.create", first.id)]
    assert changes[1].details["models"] == ["demo"]


async def test_changes_at_once_get_versions_of_their_own(store: KeyStore) -> None:
    await store.create(ADMIN, COMMAND_LINE)
    made = await asyncio.gather(*(store.create(CLIENT, COMMAND_LINE) for _ in range(8)))
    versions = [key.version for key in await store.changed_since(0)]
    assert versions == list(range(1, 10))
    assert len({key.id for key, _ in made}) == 8


async def test_no_text_of_a_key_is_in_the_database(store: KeyStore, engine: AsyncEngine, pepper: Pepper) -> None:
    key, text = await store.create(ADMIN, COMMAND_LINE)
    _, later = await store.rotate(key.id, 60_000, COMMAND_LINE)
    async with engine.connect() as connection:
        kept = [tuple(row) for table in (KeyRow, AdminChangeRow) for row in await connection.execute(select(table))]
    secrets = [text, later, text.removeprefix(f"{key.id}_"), (pepper.read() or b"").decode()]
    assert [secret for secret in secrets if secret in repr(kept) or secret.encode().hex() in repr(kept)] == []
    assert text not in repr(key)
    assert "mac" not in repr(key)


async def test_the_first_key_is_an_admins_unless_there_is_another_way_in(store: KeyStore) -> None:
    with pytest.raises(InvalidTerms, match="first key"):
        await store.create(CLIENT, COMMAND_LINE)
    await store.create(CLIENT, COMMAND_LINE, has_other_admin=True)


async def test_of_many_first_starts_one_makes_the_key(store: KeyStore, pepper: Pepper) -> None:
    texts = await asyncio.gather(*(store.create_first(COMMAND_LINE) for _ in range(4)))
    [text] = [text for text in texts if text is not None]
    assert (await ring_of(store, pepper)).check(text).terms.role is Role.ADMIN
    assert await store.create_first(COMMAND_LINE) is None


async def test_what_is_not_there_or_over_is_said(store: KeyStore) -> None:
    with pytest.raises(InvalidTerms, match="expires"):
        await store.create(KeyTerms(name="n", tenant="t", role=Role.ADMIN, expires_ms=1), COMMAND_LINE)
    for change in (store.get("fk_x"), store.revoke("fk_x", COMMAND_LINE), store.rotate("fk_x", 0, COMMAND_LINE)):
        with pytest.raises(UnknownKey):
            await change


async def test_a_node_without_the_farms_pepper_makes_none(engine: AsyncEngine, store: KeyStore, tmp_path: Path) -> None:
    key, _ = await store.create(ADMIN, COMMAND_LINE)
    elsewhere = KeyStore(engine, Pepper(FarmSettings(home=tmp_path / "other")))
    with pytest.raises(PepperUnusable, match="missing"):
        await elsewhere.create(CLIENT, COMMAND_LINE)
    with pytest.raises(PepperUnusable, match="missing"):
        await elsewhere.rotate(key.id, 0, COMMAND_LINE)


async def test_a_record_that_is_away_is_said_to_be(pepper: Pepper) -> None:
    engine = open_database("postgresql+asyncpg://nobody@127.0.0.1:1/none")
    with pytest.raises(RecordUnavailable):
        await KeyStore(engine, pepper).all()
    await engine.dispose()


def test_a_pepper_is_made_once_and_for_this_user_only(pepper: Pepper, tmp_path: Path) -> None:
    assert pepper.read() is None
    made = pepper.read_or_make()
    assert made == pepper.read_or_make() == pepper.read()
    assert stat.S_IMODE((tmp_path / "pepper").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["pepper"]
    (tmp_path / "pepper").chmod(0o640)
    with pytest.raises(PepperUnusable, match="chmod 600"):
        pepper.read()


@pytest.mark.parametrize("given", ["short", "x" * 31])
def test_a_short_pepper_is_refused(tmp_path: Path, given: str) -> None:
    with pytest.raises(PepperUnusable, match="shorter"):
        Pepper(FarmSettings(home=tmp_path, key_pepper=SecretStr(given))).read()


def test_a_given_pepper_goes_before_the_file(tmp_path: Path) -> None:
    given = Pepper(FarmSettings(home=tmp_path, key_pepper=SecretStr("x" * 32)))
    assert given.read_or_make() == b"x" * 32
    assert list(tmp_path.iterdir()) == []
