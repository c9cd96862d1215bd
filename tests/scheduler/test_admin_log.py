"""Who changed what: with the change or not at all, newest first."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from scheduler.admin_log import COMMAND_LINE, Actor, admin_changes, note_change


async def test_changes_are_told_newest_first_in_pages(engine: AsyncEngine) -> None:
    for number in range(3):
        async with engine.begin() as connection:
            await note_change(connection, COMMAND_LINE, "keys.create", f"key-{number}", {"number": number})
    newest = await admin_changes(engine, limit=2)
    assert [(change.target, change.details) for change in newest] == [
        ("key-2", {"number": 2}),
        ("key-1", {"number": 1}),
    ]
    assert [change.target for change in await admin_changes(engine, before_id=newest[-1].id)] == ["key-0"]


async def test_a_change_that_is_undone_was_never_made(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await note_change(connection, Actor(id="k", role="operator", address="::1"), "rules.apply", "3", {})
        await connection.rollback()
    assert await admin_changes(engine) == []
