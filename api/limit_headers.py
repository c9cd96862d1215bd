"""How a caller stands to its limits, in the headers of both protocols: x-ratelimit-* and anthropic-ratelimit-*."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from scheduler.backpressure import Level, Standing


def limit_headers(standing: Standing | None) -> dict[str, str]:
    """Headers for an answer, a refusal too; none for a key without limits.

    `tokens` is the tighter of input and output, as both protocols define it.
    """
    if standing is None:
        return {}
    headers: dict[str, str] = {}
    now = datetime.now(UTC)
    named = {"requests": standing.requests, "tokens": standing.tokens}
    for name, level in named.items():
        if level is not None:
            headers |= {
                f"x-ratelimit-limit-{name}": str(level.limit),
                f"x-ratelimit-remaining-{name}": str(level.remaining),
                f"x-ratelimit-reset-{name}": duration(level.reset_s),
            }
    named |= {"input-tokens": standing.input_tokens, "output-tokens": standing.output_tokens}
    for name, level in named.items():
        if level is not None:
            headers |= _anthropic(name, level, now)
    return headers


def duration(seconds: float) -> str:
    """As OpenAI writes it: `20ms`, `7.66s`, `6m0s`, `1h0m0s`."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    if seconds < 60:
        return f"{round(seconds, 2):g}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + f"{minutes}m{rest}s"


def _anthropic(name: str, level: Level, now: datetime) -> dict[str, str]:
    reset = (now + timedelta(seconds=level.reset_s)).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {
        f"anthropic-ratelimit-{name}-limit": str(level.limit),
        f"anthropic-ratelimit-{name}-remaining": str(level.remaining),
        f"anthropic-ratelimit-{name}-reset": reset,
    }
