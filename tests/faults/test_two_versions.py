"""A farm that is upgraded process by process: what each version writes the other one reads, in both directions."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from scheduler.queue import event_key
from tests.farm.conftest import Role
from tests.farm.streams import Answer, ask, post
from tests.faults.patching import patched
from tests.waiting import until

BODY = ask("Tell me a story.", temperature=1.1, seed=8)
NEWER = patched("newer_version")


def moved(farm: Any, node: Role, leaving: Role, successor: dict[str, str]) -> tuple[str, Role]:
    """The text of a stream whose worker has handed the job to a successor in the middle of it, and that one."""
    farm.fail_at("hang 10")
    with Answer(str(node.facts["url"]), BODY) as answer:
        until(farm.has_failed)
        worker = farm.start("workers", **successor)
        leaving.process.send_signal(signal.SIGTERM)
        until(lambda: farm.get(f"/v1/jobs/{answer.job_id}")["attempts"] == 2)
        farm.go_on()
        text = answer.read()
    assert leaving.finish() == 0
    return text, worker


def test_processes_of_two_versions_share_a_farm(start_farm: Callable[..., Any]) -> None:
    """F48: requests, frames, ends, events, cards and figures with fields that the other version does not know."""
    farm = start_farm(failpoints=True, drain_s="1")
    old, new = farm.apis[0], farm.start("api", **NEWER)
    undisturbed = Answer(farm.url, BODY).read()
    text, newer_worker = moved(farm, new, farm.worker, NEWER)
    assert text == undisturbed
    text, _ = moved(farm, old, newer_worker, {})
    assert text == undisturbed
    accepted = post(f"{new.facts['url']}/v1/chat/completions", BODY | {"stream": False}, Prefer="respond-async")
    assert accepted.status_code == 202
    job = until(lambda: (found := farm.get(accepted.headers["location"]))["state"] == "finished" and found)
    assert job["result"]["choices"][0]["message"]["content"] == undisturbed
    ends = "SELECT COUNT(*) FROM jobs WHERE state = 'finished'"
    counts = f"SELECT ({ends}) AS finished, (SELECT COUNT(*) FROM projection_errors) AS errors"
    until(lambda: farm.query(counts) == [{"finished": 4, "errors": 0}])
    told = b"".join(fields[b"d"] for _, fields in farm.redis.ask("XRANGE", event_key(0), "-", "+"))
    assert b"of_a_newer_version" in told
    farm.stop()
