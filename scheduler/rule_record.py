"""Routing rules in SQL: versions that are written once, drafts, and the requests that they can be tried on.

A change is a new version, whatever it changes, and a rollback is one with the content of an older version: what was in
effect when a job was routed can always be looked up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Executable, delete, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from ulid import ULID

from scheduler.admin_log import Actor, note_change
from scheduler.database import record_errors
from scheduler.errors import RulesMoved, UnknownRules
from scheduler.jobs import Job
from scheduler.routing.choice import RuleSet
from scheduler.routing.rules import Rule, checked_rules, read_rule
from scheduler.store import job_of_row
from scheduler.tables import JobRow, RuleDraftRow, RuleRow, RuleVersionRow


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleVersion:
    """One version's head. `restores`: the version whose content it took up again; `rules`: how many."""

    version: int
    applied_ms: int
    actor: str
    note: str
    draft: str | None
    restores: int | None
    rules: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleDraft:
    """Rules that are to replace all those of version `base`."""

    id: str
    base: int
    rules: tuple[Rule, ...]
    actor: str
    note: str
    created_ms: int


class RuleRecord:
    """All methods raise RecordUnavailable when the database does not answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def newest(self) -> int:
        """The version in effect; 0 on a new farm."""
        [row] = await self._all(select(func.max(RuleVersionRow.version)))
        return int(row[0] or 0)

    async def rules(self, version: int | None = None) -> RuleSet:
        """The rules of a version, by default of the one in effect. Raises UnknownRules, InvalidRule."""
        async with record_errors(), self._engine.connect() as connection:
            number = version if version is not None else await _newest(connection)
            rows = await _rules(connection, number)
            if not rows and number and not await _exists(connection, number):
                raise UnknownRules(number)
        return await asyncio.to_thread(_rule_set, number, rows)

    async def versions(self, *, before: int | None = None, limit: int = 50) -> list[RuleVersion]:
        """The newest versions, or those before one of them."""
        head, rule = RuleVersionRow.__table__, RuleRow.__table__
        count = select(func.count()).select_from(rule).where(rule.c.version == head.c.version).scalar_subquery()
        query = select(head, count.label("rules")).order_by(head.c.version.desc()).limit(limit)
        if before is not None:
            query = query.where(head.c.version < before)
        return [RuleVersion(**row._mapping) for row in await self._all(query)]

    async def save_draft(self, rules: Sequence[Rule], base: int, actor: Actor, note: str = "") -> RuleDraft:
        """Keep rules that are to be tried before they are applied. Raises InvalidRule."""
        checked_rules(rules)
        draft = RuleDraft(
            id=str(ULID()), base=base, rules=tuple(rules), actor=actor.id, note=note, created_ms=_now_ms()
        )
        row = {field.name: getattr(draft, field.name) for field in fields(draft)}
        async with record_errors(), self._engine.begin() as connection:
            await connection.execute(insert(RuleDraftRow).values(row | {"rules": [rule.as_json() for rule in rules]}))
            await note_change(connection, actor, "rules.draft", draft.id, {"base": base, "rules": len(rules)})
        return draft

    async def draft(self, draft_id: str) -> RuleDraft:
        """Raises UnknownRules, InvalidRule."""
        rows = await self._all(select(RuleDraftRow.__table__).where(RuleDraftRow.id == draft_id))
        if not rows:
            raise UnknownRules(draft_id)
        return await asyncio.to_thread(_draft_of_row, rows[0])

    async def applied_as(self, draft_id: str) -> int | None:
        """The version that a draft has become."""
        rows = await self._all(select(RuleVersionRow.version).where(RuleVersionRow.draft == draft_id))
        return int(rows[0].version) if rows else None

    async def drafts(self, limit: int = 50) -> list[RuleDraft]:
        """The newest drafts."""
        rows = await self._all(select(RuleDraftRow.__table__).order_by(RuleDraftRow.id.desc()).limit(limit))
        return await asyncio.to_thread(lambda: [_draft_of_row(row) for row in rows])

    async def discard(self, draft_id: str, actor: Actor) -> None:
        """Forget a draft. Raises UnknownRules."""
        async with record_errors(), self._engine.begin() as connection:
            gone = await connection.execute(delete(RuleDraftRow).where(RuleDraftRow.id == draft_id))
            if not gone.rowcount:
                raise UnknownRules(draft_id)
            await note_change(connection, actor, "rules.discard", draft_id, {})

    async def apply(self, draft: RuleDraft, actor: Actor) -> RuleSet:
        """Make a draft the next version; the draft goes.

        Raises RulesMoved where the version in effect is not the one that the draft was made from, UnknownRules where
        the draft has been applied or discarded meanwhile.
        """
        async with record_errors():
            try:
                async with self._engine.begin() as connection:
                    if not (await connection.execute(delete(RuleDraftRow).where(RuleDraftRow.id == draft.id))).rowcount:
                        raise UnknownRules(draft.id)
                    current = await _newest(connection)
                    if current != draft.base:
                        raise RulesMoved(draft.base, current)
                    head = {"version": current + 1, "actor": actor.id, "note": draft.note, "draft": draft.id}
                    await _write(connection, head, [_row_of(rule) for rule in draft.rules])
                    details = {"draft": draft.id, "rules": len(draft.rules), "note": draft.note}
                    await note_change(connection, actor, "rules.apply", str(current + 1), details)
            except IntegrityError as error:  # another node has written this version in the meantime
                raise RulesMoved(draft.base, draft.base + 1) from error
        return await self.rules(draft.base + 1)

    async def roll_back(self, version: int, actor: Actor, note: str = "") -> RuleSet:
        """Make the content of an older version (0: no rules) the next one. Raises UnknownRules, RulesMoved."""
        current = 0
        async with record_errors():
            try:
                async with self._engine.begin() as connection:
                    if version and not await _exists(connection, version):
                        raise UnknownRules(version)
                    current = await _newest(connection)
                    head = {"version": current + 1, "actor": actor.id, "note": note, "restores": version}
                    old = [{name: row[name] for name in _RULE_COLUMNS} for row in await _rules(connection, version)]
                    await _write(connection, head, old)
                    details = {"restores": version, "replaces": current, "note": note}
                    await note_change(connection, actor, "rules.rollback", str(current + 1), details)
            except IntegrityError as error:
                raise RulesMoved(current, current + 1) from error
        return await self.rules(current + 1)

    async def recent_jobs(self, limit: int) -> list[Job]:
        """The newest recorded requests, of all tenants."""
        table = JobRow.__table__
        query = select(table).order_by(table.c.submitted_ms.desc(), table.c.id.desc()).limit(limit)
        return [job_of_row(row._mapping) for row in await self._all(query)]

    async def _all(self, query: Executable) -> Sequence[Any]:
        async with record_errors(), self._engine.connect() as connection:
            rows: Sequence[Any] = (await connection.execute(query)).all()
            return rows


_RULE_COLUMNS = tuple(column.name for column in RuleRow.__table__.columns if column.name not in ("version", "position"))


async def _newest(connection: AsyncConnection) -> int:
    return int((await connection.execute(select(func.max(RuleVersionRow.version)))).scalar() or 0)


async def _exists(connection: AsyncConnection, version: int) -> bool:
    found = select(RuleVersionRow.version).where(RuleVersionRow.version == version)
    return (await connection.execute(found)).first() is not None


async def _rules(connection: AsyncConnection, version: int) -> Sequence[Any]:
    query = select(RuleRow.__table__).where(RuleRow.version == version).order_by(RuleRow.position)
    return (await connection.execute(query)).mappings().all()


async def _write(connection: AsyncConnection, head: dict[str, Any], rules: Sequence[dict[str, Any]]) -> None:
    """The version first: of two writers of one, the second is refused here."""
    await connection.execute(
        insert(RuleVersionRow).values({"applied_ms": _now_ms(), "restores": None, "draft": None} | head)
    )
    rows = [rule | {"version": head["version"], "position": position} for position, rule in enumerate(rules)]
    if rows:
        await connection.execute(insert(RuleRow), rows)


def _row_of(rule: Rule) -> dict[str, Any]:
    """Every part in a column of its own."""
    return {
        "name": rule.name,
        "match": rule.match.value,
        "pattern": rule.pattern,
        "conditions": rule.when.as_json(),
        "targets": [target.as_json() for target in rule.targets],
        "sticky": rule.sticky.value,
        "fallback": [target.as_json() for target in rule.fallback],
        "lane": rule.lane.value if rule.lane else None,
        "overrides": rule.overrides.as_json(),
        "note": rule.note,
    }


def _rule_set(version: int, rows: Sequence[Any]) -> RuleSet:
    """Also compiles the regular expressions: not in the event loop."""
    rules = [read_rule({"when" if name == "conditions" else name: row[name] for name in _RULE_COLUMNS}) for row in rows]
    return RuleSet(version=version, rules=tuple(rules))


def _draft_of_row(row: Any) -> RuleDraft:
    values = dict(row._mapping)
    return RuleDraft(**values | {"rules": tuple(read_rule(said) for said in values["rules"])})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
