"""Routing rules with conditions, weighted targets and fallback; their versions and drafts; decisions in the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "routing_versions",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("applied_ms", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("draft", sa.Text(), nullable=True),
        sa.Column("restores", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("version"),
    )
    op.create_table(
        "routing_drafts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("base", sa.BigInteger(), nullable=False),
        sa.Column("rules", sa.JSON(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.add_column("jobs", sa.Column("routing", sa.JSON(), server_default="{}", nullable=False))
    _rewrite(_new_columns, _to_targets)


def downgrade() -> None:
    _rewrite(_old_columns, _to_model)
    op.drop_column("jobs", "routing")
    op.drop_table("routing_drafts")
    op.drop_table("routing_versions")


def _rewrite(
    columns: Callable[[], Sequence[sa.Column[Any]]], convert: Callable[[list[Any]], list[dict[str, Any]]]
) -> None:
    """The rules (they are few) in a table of another shape."""
    connection = op.get_bind()
    old = sa.Table("routing_rules", sa.MetaData(), autoload_with=connection)
    rows = convert(list(connection.execute(sa.select(old).order_by(old.c.version, old.c.position)).mappings()))
    op.drop_table("routing_rules")
    new = op.create_table("routing_rules", *columns(), sa.PrimaryKeyConstraint("version", "position"))
    if rows:
        connection.execute(sa.insert(new), rows)


def _first_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("match", sa.Text(), nullable=False),
        sa.Column("pattern", sa.Text(), nullable=False),
    ]


def _new_columns() -> list[sa.Column[Any]]:
    return [
        *_first_columns(),
        sa.Column("conditions", sa.JSON(), nullable=False),
        sa.Column("targets", sa.JSON(), nullable=False),
        sa.Column("sticky", sa.Text(), nullable=False),
        sa.Column("fallback", sa.JSON(), nullable=False),
        sa.Column("lane", sa.Text(), nullable=True),
        sa.Column("overrides", sa.JSON(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
    ]


def _old_columns() -> list[sa.Column[Any]]:
    return [
        *_first_columns(),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("lane", sa.Text(), nullable=True),
        sa.Column("applied_ms", sa.BigInteger(), nullable=False),
    ]


def _to_targets(rows: list[Any]) -> list[dict[str, Any]]:
    """A version of the old table began with a row at position -1."""
    versions = sa.table("routing_versions", *map(sa.column, ("version", "applied_ms", "actor", "note")))
    for row in rows:
        if row["position"] < 0:
            version = {"version": row["version"], "applied_ms": row["applied_ms"], "actor": "", "note": ""}
            op.get_bind().execute(sa.insert(versions).values(version))
    kept = ("version", "position", "name", "match", "pattern", "lane")
    more = {"conditions": {}, "sticky": "session", "fallback": [], "overrides": {}, "note": ""}
    return [
        {**{name: row[name] for name in kept}, **more, "targets": [{"model": row["model"]}]}
        for row in rows
        if row["position"] >= 0
    ]


def _to_model(rows: list[Any]) -> list[dict[str, Any]]:
    """What the old table cannot say is lost: the first target serves, whatever the conditions."""
    names = ("version", "applied_ms")
    versions = sa.table("routing_versions", *map(sa.column, names))
    applied_ms = {row.version: row.applied_ms for row in op.get_bind().execute(sa.select(versions))}
    marker = {"position": -1, "name": "", "match": "exact", "pattern": "", "model": "", "lane": None}
    kept = ("version", "position", "name", "match", "pattern", "lane")
    rules = [{**{name: row[name] for name in kept}, "model": row["targets"][0]["model"]} for row in rows]
    markers = [marker | {"version": version} for version in applied_ms]
    return [row | {"applied_ms": applied_ms[row["version"]]} for row in (*markers, *rules)]
