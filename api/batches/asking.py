"""What the endpoints of all protocols share: how long a batch may take, who is told of its end, its settings."""

from __future__ import annotations

import re

from fastapi import Request

from api.errors import InvalidParameter
from scheduler.outbound import ForbiddenAddress, check_url
from scheduler.settings import ApiSettings

_WINDOW = re.compile(r"([1-9][0-9]{0,6})(s|m|h|d)")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LONGEST_WINDOW_S = 30 * 86_400


def window_s(text: str) -> int:
    """`24h` (and, beyond OpenAI, `90m`, `3d`, …) in seconds. Raises InvalidParameter."""
    found = _WINDOW.fullmatch(text)
    seconds = int(found[1]) * _UNIT_S[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_WINDOW_S:
        raise InvalidParameter("completion_window", "A number of s, m, h or d, such as 24h; up to 30d.")
    return seconds


def webhook_of(request: Request, settings: ApiSettings) -> str | None:
    """The header `Farm-Webhook`: where to tell of the batch's end. Raises InvalidParameter."""
    url = request.headers.get("farm-webhook")
    if url is None:
        return None
    if settings.webhook_secret is None:
        raise InvalidParameter("Farm-Webhook", "This farm sends no webhooks: it has no FARM_WEBHOOK_SECRET.")
    try:
        check_url(url, settings.trusted_webhook_hosts)
    except ForbiddenAddress as error:
        raise InvalidParameter("Farm-Webhook", str(error)) from error
    return url
