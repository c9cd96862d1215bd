"""The first schema: jobs, their events, usage, async jobs, routing rules and the documented views."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


V_REQUESTS = """
CREATE VIEW v_requests AS
SELECT id, state, tenant, lane, kind, model_asked, model, route, rule_version, request_id,
       prompt_tokens, cached_tokens, output_tokens, prompt_tokens + output_tokens AS total_tokens,
       submitted_ms, claimed_ms, ended_ms,
       claimed_ms - submitted_ms AS queue_ms, ended_ms - submitted_ms AS total_ms,
       ttft_ms, prefill_ms, decode_ms, finish_reason, error_code, error, worker, attempts, crashes
FROM jobs
"""

V_USAGE_DAILY = """
CREATE VIEW v_usage_daily AS
SELECT hour_ms - hour_ms % 86400000 AS day_ms, tenant, model, CAST(SUM(jobs) AS BIGINT) AS jobs,
       CAST(SUM(prompt_tokens) AS BIGINT) AS prompt_tokens, CAST(SUM(cached_tokens) AS BIGINT) AS cached_tokens,
       CAST(SUM(output_tokens) AS BIGINT) AS output_tokens
FROM usage_hourly
GROUP BY hour_ms - hour_ms % 86400000, tenant, model
"""


def upgrade() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("position", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "durable_jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=True),
        sa.Column("body_hash", sa.Text(), nullable=False),
        sa.Column("submission", sa.JSON(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("accepted_ms", sa.BigInteger(), nullable=False),
        sa.Column("relayed_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.Column("result", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("tenant", "idempotency_key"),
    )
    op.create_index("ix_durable_jobs_relayed", "durable_jobs", ["relayed_ms", "accepted_ms"])

    op.create_table(
        "job_events",
        sa.Column("shard", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("shard", "ms", "seq"),
    )
    op.create_index("ix_job_events_job", "job_events", ["job_id"])

    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("model_asked", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("rule_version", sa.BigInteger(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("durable", sa.Boolean(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("submitted_ms", sa.BigInteger(), nullable=False),
        sa.Column("claimed_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("ttft_ms", sa.Double(), nullable=True),
        sa.Column("prefill_ms", sa.Double(), nullable=True),
        sa.Column("decode_ms", sa.Double(), nullable=True),
        sa.Column("finish_reason", sa.Text(), nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("worker", sa.Text(), nullable=True),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("crashes", sa.BigInteger(), nullable=False),
        sa.Column("last_event", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_jobs_model_submitted", "jobs", ["model", "submitted_ms"])
    op.create_index("ix_jobs_state_submitted", "jobs", ["state", "submitted_ms"])
    op.create_index("ix_jobs_submitted", "jobs", ["submitted_ms", "id"])
    op.create_index("ix_jobs_tenant_submitted", "jobs", ["tenant", "submitted_ms"])

    op.create_table(
        "projection_errors",
        sa.Column("shard", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("raw", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("shard", "event_id"),
    )
    op.create_table(
        "routing_rules",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("match", sa.Text(), nullable=False),
        sa.Column("pattern", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("lane", sa.Text(), nullable=True),
        sa.Column("applied_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("version", "position"),
    )
    op.create_table(
        "usage_hourly",
        sa.Column("hour_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("jobs", sa.BigInteger(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hour_ms", "tenant", "model"),
    )
    op.execute(V_REQUESTS)
    op.execute(V_USAGE_DAILY)


def downgrade() -> None:
    op.execute("DROP VIEW v_usage_daily")
    op.execute("DROP VIEW v_requests")
    op.drop_table("usage_hourly")
    op.drop_table("routing_rules")
    op.drop_table("projection_errors")
    op.drop_index("ix_jobs_tenant_submitted", "jobs")
    op.drop_index("ix_jobs_submitted", "jobs")
    op.drop_index("ix_jobs_state_submitted", "jobs")
    op.drop_index("ix_jobs_model_submitted", "jobs")

    op.drop_table("jobs")
    op.drop_index("ix_job_events_job", "job_events")

    op.drop_table("job_events")
    op.drop_index("ix_durable_jobs_relayed", "durable_jobs")

    op.drop_table("durable_jobs")
    op.drop_table("checkpoints")
