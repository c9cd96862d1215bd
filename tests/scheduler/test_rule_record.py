"""Rules have versions that nobody changes; of two changes made from one version one is refused; each has its author."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler import migrate
from scheduler.admin_log import admin_changes
from scheduler.database import open_database
from scheduler.errors import InvalidRule, RulesMoved, UnknownRules
from scheduler.migrate import upgrade
from scheduler.routing.choice import RuleSet
from scheduler.rule_record import RuleRecord
from tests.scheduler.ruling import OPERATOR, put_in_effect, rule

PLAIN = rule("plain", "exact", "é")
RICH = rule(
    "rich",
    "regex",
    r"(gpt|o)-\d.*",
    {"model": "a", "weight": 9, "timeout_s": 1.5},
    {"model": "b"},
    when={"tenants": ["t"], "lanes": ["low"], "min_prompt_tokens": 5, "tools": False, "hours": {"start": 22, "end": 6}},
    fallback=[{"model": "c"}],
    sticky="tenant",
    lane="high",
    overrides={"temperature": 1, "max_tokens": 7},
    note="for the night",
)


@pytest.fixture
def record(engine: AsyncEngine) -> RuleRecord:
    """On an empty database."""
    return RuleRecord(engine)


async def test_each_change_is_a_new_version_and_the_old_ones_stay(record: RuleRecord) -> None:
    assert (await record.newest(), await record.rules(), await record.versions()) == (0, RuleSet(), [])
    first = await put_in_effect(record, PLAIN, RICH)
    assert first == RuleSet(version=1, rules=(PLAIN, RICH))
    second = await put_in_effect(record)
    assert second == RuleSet(version=2)
    assert (await record.rules(), await record.rules(1)) == (second, first)
    heads = [(head.version, head.rules, head.actor, head.restores) for head in await record.versions()]
    assert heads == [(2, 0, "key-1", None), (1, 2, "key-1", None)]
    assert [head.version for head in await record.versions(before=2)] == [1]


async def test_a_rollback_is_a_new_version_with_the_old_content(record: RuleRecord) -> None:
    first = await put_in_effect(record, RICH, PLAIN)
    await put_in_effect(record, PLAIN)
    assert await record.roll_back(1, OPERATOR, "too slow") == RuleSet(version=3, rules=first.rules)
    assert await record.roll_back(0, OPERATOR) == RuleSet(version=4)
    newest, restored = (await record.versions())[:2]
    assert (newest.restores, restored.restores, restored.note) == (0, 1, "too slow")
    with pytest.raises(UnknownRules):
        await record.roll_back(9, OPERATOR)


async def test_a_draft_is_kept_until_it_is_applied_or_discarded(record: RuleRecord) -> None:
    draft = await record.save_draft([RICH], 0, OPERATOR, "try it")
    other = await record.save_draft([], 0, OPERATOR)
    assert await record.draft(draft.id) == draft
    assert {kept.id for kept in await record.drafts()} == {draft.id, other.id}
    await record.discard(other.id, OPERATOR)
    assert (await record.apply(draft, OPERATOR)).rules == (RICH,)
    assert (await record.applied_as(draft.id), await record.applied_as(other.id)) == (1, None)
    for gone in (draft, other):
        with pytest.raises(UnknownRules):
            await record.draft(gone.id)
        with pytest.raises(UnknownRules):
            await record.apply(gone, OPERATOR)


async def test_a_draft_of_a_version_that_is_no_longer_in_effect_is_refused_and_stays(record: RuleRecord) -> None:
    late = await record.save_draft([PLAIN], 0, OPERATOR)
    await put_in_effect(record, RICH)
    with pytest.raises(RulesMoved, match="version 1 is in effect"):
        await record.apply(late, OPERATOR)
    assert await record.draft(late.id) == late
    assert (await record.rules()).rules == (RICH,)


async def test_of_two_changes_at_once_one_is_refused(record: RuleRecord) -> None:
    drafts = [await record.save_draft([rule(f"r{number}", "prefix", "")], 0, OPERATOR) for number in range(4)]
    outcomes = await asyncio.gather(*(record.apply(draft, OPERATOR) for draft in drafts), return_exceptions=True)
    applied = [outcome for outcome in outcomes if isinstance(outcome, RuleSet)]
    assert sum(isinstance(outcome, RulesMoved) for outcome in outcomes) == 3, outcomes
    assert applied == [await record.rules()]
    assert len(await record.drafts()) == 3


async def test_who_changed_what_is_written_with_the_change(record: RuleRecord, engine: AsyncEngine) -> None:
    await put_in_effect(record, PLAIN)
    await record.roll_back(0, OPERATOR)
    with pytest.raises(UnknownRules):
        await record.roll_back(7, OPERATOR)
    rows = [(change.action, change.actor, change.target) for change in await admin_changes(engine)]
    assert rows[:2] == [("rules.rollback", "key-1", "2"), ("rules.apply", "key-1", "1")]
    assert [row[0] for row in rows[2:]] == ["rules.draft"]


async def test_rules_that_are_refused_change_nothing(record: RuleRecord) -> None:
    with pytest.raises(InvalidRule):
        await record.save_draft([PLAIN, PLAIN], 0, OPERATOR)
    assert (await record.drafts(), await record.newest()) == ([], 0)


async def test_a_version_that_never_was_is_unknown(record: RuleRecord) -> None:
    with pytest.raises(UnknownRules, match="version or draft 3"):
        await record.rules(3)


async def test_rules_of_the_first_schema_are_taken_over_and_given_back(database_url: str) -> None:
    config = migrate._config(database_url)
    await asyncio.to_thread(command.downgrade, config, "0004")
    engine = open_database(database_url)
    columns = "(version, position, name, match, pattern, model, lane, applied_ms)"
    rows = "(1, -1, '', 'exact', '', '', NULL, 5), (1, 0, 'gpt', 'prefix', 'gpt-', 'demo', 'low', 5), "
    rows += "(2, -1, '', 'exact', '', '', NULL, 6)"
    async with engine.begin() as connection:
        await connection.execute(sa.text(f"INSERT INTO routing_rules {columns} VALUES {rows}"))
        before = (await connection.execute(sa.text("SELECT * FROM routing_rules ORDER BY version, position"))).all()
    await asyncio.to_thread(upgrade, database_url)
    record = RuleRecord(engine)
    assert (await record.rules(1)).rules == (rule("gpt", "prefix", "gpt-", "demo", lane="low"),)
    assert [(head.version, head.applied_ms, head.rules) for head in await record.versions()] == [(2, 6, 0), (1, 5, 1)]
    await asyncio.to_thread(command.downgrade, config, "0004")
    async with engine.connect() as connection:
        after = (await connection.execute(sa.text("SELECT * FROM routing_rules ORDER BY version, position"))).all()
    assert after == before
    await engine.dispose()
