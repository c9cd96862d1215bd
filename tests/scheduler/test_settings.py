"""Where settings come from, and which source is stronger."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from scheduler.settings import ApiSettings, FarmSettings, SchedulerSettings, WorkerSettings


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder and a FARM_HOME with nothing in them."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARM_HOME", str(home))
    return home


def test_the_defaults_live_under_the_home(empty_home: Path) -> None:
    settings = FarmSettings()
    assert settings.redis == f"unix://{empty_home}/run/valkey.sock"
    assert settings.database == f"sqlite+aiosqlite:///{empty_home}/farm.db"


def test_each_source_is_stronger_than_the_one_before(
    empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [WorkerSettings().max_sequences]
    (empty_home / "config.toml").write_text('max_sequences = 5\nlog_level = "ERROR"\nsomething_else = 1\n')
    seen.append(WorkerSettings().max_sequences)
    (tmp_path / "farm.toml").write_text("max_sequences = 6\n")
    seen.append(WorkerSettings().max_sequences)
    monkeypatch.setenv("FARM_MAX_SEQUENCES", "7")
    seen.append(WorkerSettings().max_sequences)
    seen.append(WorkerSettings(max_sequences=8).max_sequences)
    assert seen == [32, 5, 6, 7, 8]
    assert WorkerSettings().log_level == "ERROR"


def test_a_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_HOME", "~/somewhere")
    assert FarmSettings().home_path == Path.home() / "somewhere"


def test_urls_point_to_other_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_REDIS_URL", "redis://h:1/2")
    monkeypatch.setenv("FARM_DATABASE_URL", "postgresql+asyncpg://h/d")
    assert (FarmSettings().redis, FarmSettings().database) == ("redis://h:1/2", "postgresql+asyncpg://h/d")


def test_the_queues_policy_is_in_ms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_LEASE_S", "2.5")
    monkeypatch.setenv("FARM_MAX_CRASHES", "5")
    policy = SchedulerSettings().queue_policy
    assert (policy.lease_ms, policy.max_crashes, policy.log_ttl_ms) == (2500, 5, 3_600_000)


@pytest.mark.parametrize(("name", "value"), [("SHARDS", "0"), ("PORT", "70000"), ("LOG_FORMAT", "x"), ("LEASE_S", "0")])
def test_impossible_values_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"FARM_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        ApiSettings()


def test_the_api_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_API_KEY", "sesame-77")
    assert "sesame-77" not in repr(ApiSettings())


def test_the_bits_of_the_cache_are_8_or_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WorkerSettings().kv_bits == 0
    monkeypatch.setenv("FARM_KV_BITS", "8")
    assert WorkerSettings().kv_bits == 8
    for wrong in ("4", "eight"):
        monkeypatch.setenv("FARM_KV_BITS", wrong)
        with pytest.raises(ValidationError, match="kv_bits"):
            WorkerSettings()


def test_adapters_are_named_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert WorkerSettings().adapters == {}
    (tmp_path / "farm.toml").write_text('[adapters]\nsql = "/models/a,b"\n')
    assert WorkerSettings().adapters == {"sql": Path("/models/a,b")}
    monkeypatch.setenv("FARM_ADAPTERS", "sql=/models/sql,poems=~/poems=1")
    assert WorkerSettings().adapters == {"sql": Path("/models/sql"), "poems": Path("~/poems=1")}
    monkeypatch.setenv("FARM_ADAPTERS", "")
    assert WorkerSettings().adapters == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("/models/sql", "is not NAME=FOLDER"),
        ("sql=", "is not NAME=FOLDER"),
        ("a=/1,a=/2", "two adapters are named 'a'"),
    ],
)
def test_other_words_for_adapters_are_refused(given: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_ADAPTERS", given)
    with pytest.raises(ValidationError, match=said):
        WorkerSettings()


def test_tenants_have_weights_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "farm.toml").write_text('[tenant_weights]\n"a b" = 3\n')
    assert ApiSettings().queue_policy.tenant_weights == (("a b", 3.0),)
    monkeypatch.setenv("FARM_TENANT_WEIGHTS", "acme=2.5,default=0.5")
    assert SchedulerSettings().queue_policy.tenant_weights == (("acme", 2.5), ("default", 0.5))
    for wrong in ("acme", "acme=0", "acme=nan", "acme=much", "acme=1,acme=2"):
        monkeypatch.setenv("FARM_TENANT_WEIGHTS", wrong)
        with pytest.raises(ValidationError, match="tenant_weights"):
            WorkerSettings()


@pytest.mark.parametrize(
    ("rows", "reserved", "in_effect"), [(32, None, 2), (8, None, 0), (1, None, 0), (8, 3, 3), (4, 9, 3), (32, 0, 0)]
)
def test_some_rows_but_never_all_are_the_high_lanes(rows: int, reserved: int | None, in_effect: int) -> None:
    assert WorkerSettings(max_sequences=rows, reserved_rows=reserved).high_lane_rows == in_effect
