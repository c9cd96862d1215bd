"""Providers with encrypted keys; what jobs have cost."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

V_REQUESTS = """
CREATE VIEW v_requests AS
SELECT id, state, tenant, lane, kind, model_asked, model, route, rule_version, request_id,
       prompt_tokens, cached_tokens, output_tokens, prompt_tokens + output_tokens AS total_tokens,
       submitted_ms, claimed_ms, ended_ms,
       claimed_ms - submitted_ms AS queue_ms, ended_ms - submitted_ms AS total_ms,
       ttft_ms, prefill_ms, decode_ms, finish_reason, error_code, error, worker, attempts, crashes{cost}
FROM jobs
"""


def upgrade() -> None:
    op.create_table(
        "providers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("terms", sa.JSON(), nullable=False),
        sa.Column("cipher", sa.LargeBinary(), nullable=True),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("changed_ms", sa.BigInteger(), nullable=False),
        sa.Column("key_changed_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        sa.UniqueConstraint("version"),
    )
    op.execute("DROP VIEW v_requests")
    op.add_column("jobs", sa.Column("cost_usd", sa.Double(), nullable=True))
    op.execute(V_REQUESTS.format(cost=", cost_usd"))


def downgrade() -> None:
    op.execute("DROP VIEW v_requests")
    op.drop_column("jobs", "cost_usd")
    op.execute(V_REQUESTS.format(cost=""))
    op.drop_table("providers")
