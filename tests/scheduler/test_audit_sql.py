"""An operator's query reads and never writes, on either database."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.audit_sql import Answer, select_rows
from scheduler.database import open_database
from scheduler.errors import InvalidQuery, RecordUnavailable
from scheduler.rule_record import RuleRecord
from scheduler.store import Store
from tests.scheduler.ruling import put_in_effect, rule

NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) SELECT i FROM n"
RULES = "SELECT name FROM routing_rules"


@pytest.fixture
async def store(engine: AsyncEngine) -> Store:
    """A database with one rule in it."""
    await put_in_effect(RuleRecord(engine), rule("r", "exact", "p"))
    return Store(engine)


async def test_a_select_gives_columns_and_rows(store: Store) -> None:
    answer = await select_rows(store.engine, "SELECT name, version AS v FROM routing_rules WHERE position = 0;")
    assert answer == Answer(("name", "v"), (("r", 1),), False)


async def test_rows_beyond_the_limit_are_left_out_and_said_to_be(store: Store) -> None:
    answer = await select_rows(store.engine, NUMBERS, limit=10)
    assert ([row[0] for row in answer.rows], answer.more) == (list(range(1, 11)), True)
    assert not (await select_rows(store.engine, NUMBERS, limit=1000)).more


async def test_colons_in_a_query_are_only_colons(store: Store) -> None:
    assert (await select_rows(store.engine, "SELECT 'a:b' AS x, ':name' AS y")).rows == (("a:b", ":name"),)


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM routing_rules",
        "UPDATE routing_rules SET name = 'x'",
        "INSERT INTO checkpoints VALUES ('x', '1')",
        "DROP TABLE routing_rules",
        "CREATE TABLE x (i int)",
        "WITH x AS (SELECT 1) DELETE FROM routing_rules",
        "DELETE FROM routing_rules RETURNING name",
        "SELECT 1; DELETE FROM routing_rules",
        "SELECT 1; SELECT 2",
        "SELECT nothing FROM nowhere",
        "SELEKT 1",
        "",
        ";",
        "-- nothing",
        "SELECT 'a\0b'",
        "COMMIT",
    ],
)
async def test_what_is_not_one_reading_select_is_refused_and_changes_nothing(store: Store, query: str) -> None:
    with pytest.raises(InvalidQuery):
        await select_rows(store.engine, query)
    assert (await select_rows(store.engine, RULES)).rows == (("r",),)


async def test_the_engine_can_write_after_a_query(store: Store) -> None:
    await asyncio.gather(*(select_rows(store.engine, RULES) for _ in range(8)))
    with pytest.raises(InvalidQuery):
        await select_rows(store.engine, "SELEKT")
    assert (await put_in_effect(RuleRecord(store.engine))).version == 2


async def test_the_documented_views_are_there(store: Store) -> None:
    for view, column in (("v_requests", "queue_ms"), ("v_usage_daily", "output_tokens")):
        answer = await select_rows(store.engine, f"SELECT * FROM {view}")
        assert column in answer.columns
        assert answer.rows == ()


async def test_a_database_that_is_down_is_no_fault_of_the_query() -> None:
    with pytest.raises(RecordUnavailable):
        await select_rows(open_database("postgresql+asyncpg://nobody@127.0.0.1:1/none"), "SELECT 1")
