"""What does it cost to check a key?

Many keys are in memory, as on a node of a large farm; each way a request can go is timed on its own, many times:
a good key, a wrong one of a known id, one of an unknown id, text that is no key; then the whole gate (key, address,
role, endpoint). Every check is timed alone, so that the percentiles are of checks and not of loops.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import time
from collections.abc import Callable
from contextlib import suppress

from starlette.datastructures import Headers

from api.authorization import Authorization
from scheduler.admission import Admission
from scheduler.errors import FarmError
from scheduler.key_ring import KeyRing
from scheduler.keys import ApiKey, KeyTerms, Role, mac_of, new_key_id, new_key_text, pepper_id_of

PEPPER = secrets.token_bytes(32)


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--keys", type=int, default=10_000)
    arguments.add_argument("--checks", type=int, default=20_000)
    chosen = arguments.parse_args()
    keys = [made() for _ in range(chosen.keys)]
    ring = KeyRing()
    began_s = time.perf_counter()
    ring.learn([key for key, _ in keys], PEPPER)
    print(
        f"{chosen.keys} keys, learned in {(time.perf_counter() - began_s) * 1000:.0f} ms; {chosen.checks} checks each"
    )
    key, text = secrets.choice(keys)
    admission = Admission(None, ring=ring)
    ways: dict[str, Callable[[], object]] = {
        "a good key": lambda: admission.authenticate(text),
        "a wrong text of a known id": lambda: admission.authenticate(f"{key.id}_{'A' * 43}"),
        "an unknown id": lambda: admission.authenticate(f"fk_{'a' * 12}_{'A' * 43}"),
        "no key's text": lambda: admission.authenticate("sk-unused"),
        "the gate, /v1/chat/completions": gate(admission, text, "POST", "/v1/chat/completions"),
        "the gate, /v1/jobs/{id}/cancel": gate(admission, text, "POST", "/v1/jobs/0-01M7ZX9S5ZBB9GPXZDGEKHSX4X/cancel"),
    }
    print(f"{'':32}  p50 µs   p99 µs")
    for name, way in ways.items():
        spent_us = [timed_us(way) for _ in range(chosen.checks)]
        print(f"{name:32}  {statistics.median(spent_us):6.1f}  {statistics.quantiles(spent_us, n=100)[98]:7.1f}")


def made() -> tuple[ApiKey, str]:
    """A key of the ring, and its text."""
    text = new_key_text(new_key_id())
    terms = KeyTerms(name="bench", tenant="acme", role=Role.CLIENT)
    key = ApiKey(
        id=text[:15], version=1, terms=terms, pepper_id=pepper_id_of(PEPPER), mac=mac_of(PEPPER, text), created_ms=0
    )
    return key, text


def gate(admission: Admission, text: str, method: str, path: str) -> Callable[[], object]:
    """All that a request passes before its body is read."""
    authorization = Authorization(admission)
    scope = {"method": method, "path": path, "client": ("192.0.2.1", 1)}
    headers = Headers({"authorization": f"Bearer {text}", "content-type": "application/json", "host": "farm"})
    return lambda: authorization.caller(scope, headers)


def timed_us(way: Callable[[], object]) -> float:
    """One check, alone."""
    began_ns = time.perf_counter_ns()
    with suppress(FarmError):
        way()
    return (time.perf_counter_ns() - began_ns) / 1000


if __name__ == "__main__":
    main()
