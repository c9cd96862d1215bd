"""The ids of responses and of their items: made from the job's, so that every node makes the same and finds them; pure.

`resp_<job>`, and for the n-th item of its answer `msg_<job>_<n>`; items of its input have `in` before their number.
"""

from __future__ import annotations

import re

_RESPONSE_ID = re.compile(r"resp_([0-9]{1,9}-[0-9A-Z]{26})")
_ITEM_ID = re.compile(r"[a-z]{2,4}_([0-9]{1,9}-[0-9A-Z]{26})_(?:in)?[0-9]{1,9}")

PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
}


def response_id(job_id: str) -> str:
    """The response of a job."""
    return f"resp_{job_id}"


def job_of(response: str) -> str | None:
    """Inverse of `response_id`; None for what is no id of ours."""
    match = _RESPONSE_ID.fullmatch(response)
    return match[1] if match else None


def item_id(kind: str, job_id: str, index: int, *, is_input: bool = False) -> str:
    """The id of an item of a job's answer, or of its input."""
    return f"{PREFIXES[kind]}_{job_id}_{'in' if is_input else ''}{index}"


def job_of_item(item: str) -> str | None:
    """The job whose answer or input an item belongs to; None for what is no id of ours."""
    match = _ITEM_ID.fullmatch(item)
    return match[1] if match else None
