"""Keys of providers are kept encrypted, and opened by a secret outside the database."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.admin_log import COMMAND_LINE, admin_changes
from scheduler.errors import ProviderExists, UnknownProvider, VaultUnusable
from scheduler.provider_store import ProviderStore
from scheduler.providers import Provider, read_provider
from scheduler.settings import FarmSettings
from scheduler.vault import Vault

KEY = "sk-canary-0123456789"


def provider(name: str = "cloud") -> Provider:
    models = [{"name": "big", "input_usd": 3.0}]
    return read_provider({"name": name, "kind": "openai", "base_url": "https://api.example.com/v1", "models": models})


@pytest.fixture
def settings(tmp_path: Path) -> FarmSettings:
    return FarmSettings(home=tmp_path)


@pytest.fixture
def store(engine: AsyncEngine, settings: FarmSettings) -> ProviderStore:
    return ProviderStore(engine, Vault(settings))


async def _dump(engine: AsyncEngine) -> str:
    async with engine.connect() as connection:
        rows = [
            (await connection.execute(text(f"SELECT * FROM {name}"))).all() for name in ("providers", "audit_admin")
        ]
    return repr(rows)


async def test_the_record_never_has_a_key_as_text(engine: AsyncEngine, store: ProviderStore, tmp_path: Path) -> None:
    kept = await store.create(provider(), KEY, COMMAND_LINE)
    assert store.key_of(kept) == KEY
    assert KEY not in await _dump(engine)
    assert KEY not in repr(kept)
    assert os.stat(tmp_path / "secret-key").st_mode & 0o777 == 0o600
    [change] = await admin_changes(engine)
    assert (change.action, change.target) == ("providers.create", "cloud")


async def test_a_cipher_moved_to_another_row_opens_nothing(engine: AsyncEngine, store: ProviderStore) -> None:
    await store.create(provider("one"), KEY, COMMAND_LINE)
    await store.create(provider("two"), "sk-other", COMMAND_LINE)
    async with engine.begin() as connection:
        theft = "UPDATE providers SET cipher = (SELECT cipher FROM providers WHERE name = 'one') WHERE name = 'two'"
        await connection.execute(text(theft))
    with pytest.raises(VaultUnusable, match="encrypted for another"):
        store.key_of(await store.get("two"))


async def test_a_key_can_be_changed_and_a_provider_disabled(store: ProviderStore) -> None:
    first = await store.create(provider(), KEY, COMMAND_LINE)
    with pytest.raises(ProviderExists):
        await store.create(provider(), KEY, COMMAND_LINE)
    rotated = await store.rotate("cloud", "sk-new", COMMAND_LINE)
    assert store.key_of(rotated) == "sk-new"
    disabled = await store.enable("cloud", COMMAND_LINE, enabled=False)
    assert (disabled.enabled, store.key_of(disabled)) == (False, "sk-new")
    assert first.version < rotated.version < disabled.version == await store.newest()
    with pytest.raises(UnknownProvider):
        await store.rotate("nobody", KEY, COMMAND_LINE)


async def test_a_rotated_secret_opens_what_the_old_one_closed_and_the_old_one_nothing_any_more(
    engine: AsyncEngine, store: ProviderStore, settings: FarmSettings, tmp_path: Path
) -> None:
    await store.create(provider("one"), KEY, COMMAND_LINE)
    await store.create(provider("two"), "sk-other", COMMAND_LINE)
    await store.create(provider("none"), "", COMMAND_LINE)
    old = (tmp_path / "secret-key").read_text().strip()
    vault = Vault(settings)
    vault.begin_rotation()
    assert store.key_of(await store.get("one")) == KEY  # also in between
    assert await ProviderStore(engine, vault).encrypt_again(COMMAND_LINE) == 2
    vault.end_rotation()
    assert old not in (tmp_path / "secret-key").read_text()
    assert [store.key_of(kept) for kept in await store.all()] == ["", KEY, "sk-other"]
    with_old = ProviderStore(engine, Vault(FarmSettings(home=tmp_path / "elsewhere", secret_key=old)))
    with pytest.raises(VaultUnusable, match="does not open"):
        with_old.key_of(await store.get("one"))


async def test_a_node_without_the_farms_secret_makes_no_other(
    engine: AsyncEngine, store: ProviderStore, tmp_path: Path
) -> None:
    await store.create(provider("one"), KEY, COMMAND_LINE)
    elsewhere = ProviderStore(engine, Vault(FarmSettings(home=tmp_path / "elsewhere")))
    with pytest.raises(VaultUnusable, match="is missing"):
        await elsewhere.create(provider("two"), KEY, COMMAND_LINE)
    assert not (tmp_path / "elsewhere").exists()


def test_a_secret_that_others_can_read_is_refused(settings: FarmSettings, tmp_path: Path) -> None:
    vault = Vault(settings)
    vault.encrypt(KEY, "cloud")
    (tmp_path / "secret-key").chmod(0o644)
    with pytest.raises(VaultUnusable, match="can be read by others"):
        vault.encrypt(KEY, "cloud")


def test_a_secret_of_the_environment_goes_before_the_file_and_is_rotated_there(tmp_path: Path) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    cipher = Vault(FarmSettings(home=tmp_path, secret_key=old)).encrypt(KEY, "cloud")
    both = Vault(FarmSettings(home=tmp_path, secret_key=f"{new},{old}"))
    assert both.decrypt(cipher, "cloud") == KEY
    assert not (tmp_path / "secret-key").exists()
    with pytest.raises(VaultUnusable, match="put a new key in front"):
        both.begin_rotation()
    with pytest.raises(VaultUnusable, match="holds no Fernet keys"):
        Vault(FarmSettings(home=tmp_path, secret_key="short")).encrypt(KEY, "cloud")
