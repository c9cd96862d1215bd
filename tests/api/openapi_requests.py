"""`python openapi_requests.py URL`: sends what schemathesis makes of a server's OpenAPI document; prints JSON.

A process of its own: making requests takes all of a core, and the server answers in the test's.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok

EXAMPLES = 3
"""For each operation."""

UNHEALTHY = {("GET", "/readyz"), ("GET", "/health")}
"""Their 503 is an answer."""

TIMEOUT_S = 150


def exercise(url: str) -> dict[str, Any]:
    """How many requests each operation got, and what went wrong."""
    sent: dict[str, int] = {}
    failures: list[str] = []
    for result in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        assert isinstance(result, Ok), result.err()
        operation = result.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def send(case: Any) -> None:
            response = case.call(base_url=url, timeout=TIMEOUT_S)
            name = f"{case.method} {case.operation.path}"
            sent[name] = sent.get(name, 0) + 1
            if response.status_code >= 500 and (case.method, case.operation.path) not in UNHEALTHY:
                failures.append(f"{name} {case.body!r} {case.query!r}: {response.status_code} {response.text[:300]}")

        send()
    return {"sent": sent, "failures": failures}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(exercise(sys.argv[1])))
