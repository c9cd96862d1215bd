"""Why a client waited, and where the time went, from what it read and from the events of its job."""

from __future__ import annotations

from typing import Any

import pytest

from bench.chaos_pauses import Cause, Pause, pauses_of, quantiles, summary
from scheduler.events import Event, EventType

READ = [(10.0, "5-1"), (10.1, "5-2"), (14.0, "9-3"), (14.1, "9-4")]


def event(at_s: float, kind: EventType, **data: Any) -> Event:
    return Event(f"{round(at_s * 1000)}-0", kind, "0-job", round(at_s * 1000), data)


CLAIMED = event(13.5, EventType.CLAIMED, generation=9)


@pytest.mark.parametrize(
    ("why", "cause", "deaths"),
    [
        ({"why": "worker_lost", "seen_by": "agent"}, Cause.PROCESS, 1),
        ({"why": "worker_lost", "seen_by": "lease"}, Cause.LEASE, 1),
        ({"why": "drain"}, Cause.DRAIN, 0),
        ({"why": "disowned"}, Cause.MEMORY, 0),
    ],
)
def test_a_pause_is_split_at_the_events_of_its_job(why: dict[str, str], cause: Cause, deaths: int) -> None:
    (pause,) = pauses_of(
        READ, [CLAIMED, event(13.1, EventType.REQUEUED, **why), event(9, EventType.CLAIMED, generation=5)]
    )
    assert (pause.cause, pause.deaths) == (cause, deaths)
    parts = (pause.noticed_s, pause.waited_s, pause.restored_s, pause.total_s)
    assert parts == pytest.approx((3.0, 0.4, 0.5, 3.9))


def test_a_second_death_before_the_next_frame_is_counted_in_the_same_pause() -> None:
    lost = {"why": "worker_lost", "seen_by": "agent"}
    told = [event(at_s, EventType.REQUEUED, **lost) for at_s in (10.5, 12.0)]
    (pause,) = pauses_of(READ, [event(11, EventType.CLAIMED, generation=7), *told, CLAIMED])
    assert pause.deaths == 2
    assert pause.noticed_s == pytest.approx(0.4)


def test_a_claim_that_redis_forgot_makes_a_pause_all_the_same() -> None:
    (pause,) = pauses_of(READ, [])
    assert (pause.cause, pause.deaths) == (Cause.MEMORY, 0)
    assert pause.total_s == pytest.approx(3.9)


def test_the_summary_has_every_cause_that_occurred() -> None:
    pauses = [Pause(Cause.LEASE, 3.0, 0.5, 0.5, 1), Pause(Cause.PROCESS, 0.1, 0.2, 0.2, 2)]
    told = summary(pauses)
    assert told["all"] == {"n": 2, "p50": 4.0, "p95": 4.0, "max": 4.0}
    assert set(told["by_cause"]) == {"lease_end", "process_death"}
    assert told["at_most_one_death"] == {"n": 1, "p50": 4.0, "p95": 4.0, "max": 4.0}
    assert told["deaths_in_a_pause"] == {1: 1, 2: 1}
    assert quantiles([]) == {"n": 0}
