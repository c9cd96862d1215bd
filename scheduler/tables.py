"""The record's tables (shape only). Documented views for people's SQL live in migrations/ (v_requests, v_usage_daily).

Times are ms since 1970 (Redis' clock where they come from events), durations ms, sizes tokens. Text has no length
bound: PostgreSQL must not refuse an event for one.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Index, LargeBinary, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Table(DeclarativeBase):
    """Base of all tables; `Table.metadata` is what migrations compare with."""

    type_annotation_map = {int: BigInteger, dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012


class JobRow(Table):
    """One row per job: the projection that equals `scheduler.jobs.replay` of the event log."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_submitted", "submitted_ms", "id"),
        Index("ix_jobs_model_submitted", "model", "submitted_ms"),
        Index("ix_jobs_state_submitted", "state", "submitted_ms"),
        Index("ix_jobs_tenant_submitted", "tenant", "submitted_ms"),
    )

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    state: Mapped[str] = mapped_column(Text)
    tenant: Mapped[str] = mapped_column(Text)
    lane: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    model_asked: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    route: Mapped[str] = mapped_column(Text)
    rule_version: Mapped[int]
    routing: Mapped[dict[str, Any]] = mapped_column(JSON, server_default="{}")
    request_id: Mapped[str] = mapped_column(Text)
    params: Mapped[dict[str, Any]]
    durable: Mapped[bool]
    prompt_tokens: Mapped[int]
    submitted_ms: Mapped[int]
    claimed_ms: Mapped[int | None]
    ended_ms: Mapped[int | None]
    cached_tokens: Mapped[int]
    output_tokens: Mapped[int]
    cost_usd: Mapped[float | None]
    ttft_ms: Mapped[float | None]
    prefill_ms: Mapped[float | None]
    decode_ms: Mapped[float | None]
    finish_reason: Mapped[str | None] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)
    worker: Mapped[str | None] = mapped_column(Text)
    attempts: Mapped[int]
    crashes: Mapped[int]
    last_event: Mapped[str] = mapped_column(Text)


class EventRow(Table):
    """The permanent event log, append-only; its key is the stream id, so that no event is stored twice."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_job", "job_id"),)

    shard: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    ms: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(Text)
    job_id: Mapped[str] = mapped_column(Text)
    at_ms: Mapped[int]
    data: Mapped[dict[str, Any]]


class ModelEventRow(Table):
    """What node agents decided about models (model_events.py), append-only; its key is the id in the log in Redis."""

    __tablename__ = "model_events"
    __table_args__ = (Index("ix_model_events_model", "model", "at_ms"),)

    at_ms: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    agent: Mapped[str] = mapped_column(Text)
    event: Mapped[str] = mapped_column(Text)
    model: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]]


class ProjectionErrorRow(Table):
    """Events that the projector could not apply: kept raw, skipped, and worth an alert. Shard -1: of model events."""

    __tablename__ = "projection_errors"

    shard: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    event_id: Mapped[str] = mapped_column(Text, primary_key=True)
    raw: Mapped[str] = mapped_column(Text)
    error: Mapped[str] = mapped_column(Text)


class CheckpointRow(Table):
    """Where each shard's projection stands; moved in the same transaction as what it projects."""

    __tablename__ = "checkpoints"

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    position: Mapped[str] = mapped_column(Text)


class UsageRow(Table):
    """Tokens and jobs per hour, tenant and model (jobs that have ended, by the hour of their end)."""

    __tablename__ = "usage_hourly"

    hour_ms: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    model: Mapped[str] = mapped_column(Text, primary_key=True)
    jobs: Mapped[int]
    prompt_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    output_tokens: Mapped[int]


class DurableJobRow(Table):
    """An async job: committed before its 202, relayed to the queue, its result kept until retention."""

    __tablename__ = "durable_jobs"
    __table_args__ = (
        UniqueConstraint("tenant", "idempotency_key"),
        Index("ix_durable_jobs_relayed", "relayed_ms", "accepted_ms"),
    )

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    idempotency_key: Mapped[str | None] = mapped_column(Text)
    body_hash: Mapped[str] = mapped_column(Text)
    submission: Mapped[dict[str, Any]]
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    accepted_ms: Mapped[int]
    relayed_ms: Mapped[int | None]
    ended_ms: Mapped[int | None]
    result: Mapped[bytes | None] = mapped_column(LargeBinary)


class JobImageRow(Table):
    """An image that an async job shows, in order; the rows go when it has ended."""

    __tablename__ = "job_images"

    job_id: Mapped[str] = mapped_column(Text, primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    tenant: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(Text)


class ImageRow(Table):
    """An image of a tenant's async jobs, once; `uses` counts its rows of `job_images`, it goes with the last one."""

    __tablename__ = "images"

    tenant: Mapped[str] = mapped_column(Text, primary_key=True)
    digest: Mapped[str] = mapped_column(Text, primary_key=True)
    uses: Mapped[int]
    data: Mapped[bytes] = mapped_column(LargeBinary)


class TurnRow(Table):
    """The input of an async job that a client asked to keep, and the turn that it goes on from."""

    __tablename__ = "turns"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    previous_id: Mapped[str | None] = mapped_column(Text)
    input: Mapped[bytes] = mapped_column(LargeBinary)


class RuleVersionRow(Table):
    """One version of the routing rules, as it was applied; the newest is in effect. `restores`: a rollback to it."""

    __tablename__ = "routing_versions"

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    applied_ms: Mapped[int]
    actor: Mapped[str] = mapped_column(Text)
    note: Mapped[str] = mapped_column(Text)
    draft: Mapped[str | None] = mapped_column(Text)
    restores: Mapped[int | None]


class RuleRow(Table):
    """A routing rule of a version, written with it as a whole and never updated. JSON columns: routing/rules.py."""

    __tablename__ = "routing_rules"

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(Text)
    match: Mapped[str] = mapped_column(Text)
    pattern: Mapped[str] = mapped_column(Text)
    conditions: Mapped[dict[str, Any]]
    targets: Mapped[list[Any]]
    sticky: Mapped[str] = mapped_column(Text)
    fallback: Mapped[list[Any]]
    lane: Mapped[str | None] = mapped_column(Text)
    overrides: Mapped[dict[str, Any]]
    note: Mapped[str] = mapped_column(Text)


class RuleDraftRow(Table):
    """Rules that have not been applied, made from a version (`base`); never updated: another draft is another row."""

    __tablename__ = "routing_drafts"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    base: Mapped[int]
    rules: Mapped[list[Any]]
    actor: Mapped[str] = mapped_column(Text)
    note: Mapped[str] = mapped_column(Text)
    created_ms: Mapped[int]


class FileRow(Table):
    """An uploaded or produced file; its content lies under FARM_HOME by its id."""

    __tablename__ = "files"
    __table_args__ = (Index("ix_files_tenant", "tenant", "id"), Index("ix_files_expires", "expires_ms"))

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(Text)
    filename: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(Text)
    created_ms: Mapped[int]
    expires_ms: Mapped[int | None]


class BatchRow(Table):
    """A batch of requests. `version` counts the moves of its worker: a move that finds another version is undone."""

    __tablename__ = "batches"
    __table_args__ = (Index("ix_batches_tenant", "tenant", "protocol", "id"), Index("ix_batches_state", "state"))

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    protocol: Mapped[str] = mapped_column(Text)
    endpoint: Mapped[str] = mapped_column(Text)
    input_file_id: Mapped[str] = mapped_column(Text)
    completion_window: Mapped[str] = mapped_column(Text)
    options: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(Text)
    version: Mapped[int]
    created_ms: Mapped[int]
    expires_ms: Mapped[int]
    in_progress_ms: Mapped[int | None]
    finalizing_ms: Mapped[int | None]
    cancelling_ms: Mapped[int | None]
    ended_ms: Mapped[int | None]
    total: Mapped[int]
    succeeded: Mapped[int]
    errored: Mapped[int]
    canceled: Mapped[int]
    expired: Mapped[int]
    next_line: Mapped[int]
    next_offset: Mapped[int]
    models: Mapped[dict[str, Any]]
    usage: Mapped[dict[str, Any]]
    errors: Mapped[dict[str, Any]]
    output_file_id: Mapped[str | None] = mapped_column(Text)
    error_file_id: Mapped[str | None] = mapped_column(Text)


class BatchLineRow(Table):
    """A line of a batch that has become a job or has its result; the rows go when the result files are written."""

    __tablename__ = "batch_lines"
    __table_args__ = (Index("ix_batch_lines_outcome", "batch_id", "outcome"),)

    batch_id: Mapped[str] = mapped_column(Text, primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    custom_id: Mapped[str] = mapped_column(Text)
    job_id: Mapped[str | None] = mapped_column(Text)
    outcome: Mapped[str | None] = mapped_column(Text)
    result: Mapped[bytes | None] = mapped_column(LargeBinary)


class WebhookRow(Table):
    """A webhook that is to be delivered, written with what it tells; `due_ms` None: delivered or given up."""

    __tablename__ = "webhooks"
    __table_args__ = (Index("ix_webhooks_due", "due_ms"),)

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant: Mapped[str] = mapped_column(Text)
    url: Mapped[str] = mapped_column(Text)
    payload: Mapped[str] = mapped_column(Text)
    created_ms: Mapped[int]
    attempts: Mapped[int]
    due_ms: Mapped[int | None]
    delivered_ms: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)


class KeyRow(Table):
    """An API key: never its secret, only what that is checked with. Rows stay when keys are revoked.

    `version` is that of the last change of any key: higher than all before it, and visible only after them.
    """

    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("version"),)

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    version: Mapped[int]
    name: Mapped[str] = mapped_column(Text)
    tenant: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text)
    terms: Mapped[dict[str, Any]]
    pepper_id: Mapped[str] = mapped_column(Text)
    mac: Mapped[bytes] = mapped_column(LargeBinary)
    previous_mac: Mapped[bytes | None] = mapped_column(LargeBinary)
    previous_until_ms: Mapped[int | None]
    created_ms: Mapped[int]
    rotated_ms: Mapped[int | None]
    expires_ms: Mapped[int | None]
    revoked_ms: Mapped[int | None]


class ProviderRow(Table):
    """A provider. `terms`: providers.py. `cipher`: its key, encrypted (vault.py). Rows stay when it is disabled.

    `version` is that of the last change of any provider: higher than all before it.
    """

    __tablename__ = "providers"
    __table_args__ = (UniqueConstraint("version"),)

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    version: Mapped[int]
    terms: Mapped[dict[str, Any]]
    cipher: Mapped[bytes | None] = mapped_column(LargeBinary)
    enabled: Mapped[bool]
    created_ms: Mapped[int]
    changed_ms: Mapped[int]
    key_changed_ms: Mapped[int]


class AdminChangeRow(Table):
    """Who changed what of the farm, written in the transaction that changed it; append-only, ids in order of time."""

    __tablename__ = "audit_admin"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    at_ms: Mapped[int]
    actor: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text)
    address: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    target: Mapped[str] = mapped_column(Text)
    details: Mapped[dict[str, Any]]
