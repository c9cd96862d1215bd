"""The checker finds each kind of broken promise: a checker that finds nothing proves nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.history import Expected, Held, History, Story, doubled, violations
from scheduler.events import Event, EventType
from scheduler.frames import Chunk, End, Frame, FrameId
from scheduler.jobs import Job, JobState, replay

JOB = "0-job"
SUBMITTED = {
    "tenant": "t",
    "lane": "normal",
    "kind": "chat",
    "model_asked": "m",
    "model": "m",
    "route": "",
    "rule_version": 0,
    "request_id": "r",
    "params": {},
    "durable": False,
    "prompt_tokens": 3,
}
EVENTS = (
    Event("1-0", EventType.SUBMITTED, JOB, 1, SUBMITTED),
    Event("2-0", EventType.CLAIMED, JOB, 2, {"worker": "w", "fence": 1, "attempt": 1, "generation": 2}),
    Event("3-0", EventType.FINISHED, JOB, 3, {"output_tokens": 2}),
)
LOG = (
    Frame(JOB, FrameId(2, 1), (Chunk(0, (7,), "a"),)),
    Frame(JOB, FrameId(2, 2), (Chunk(0, (8,), "b", finish_reason="stop"),)),
    Frame(JOB, FrameId(2, 3), End(JobState.FINISHED)),
)
STORY = Story("greedy", JOB, ("ab",), True, ("2-1", "2-2"))
GOOD = History(
    stories=[STORY],
    expected={"greedy": Expected(("ab",), {0: (7, 8)})},
    jobs=replay(EVENTS),
    events=EVENTS,
    logs={JOB: LOG},
    billed={"jobs": 1, "output_tokens": 2},
    counters={"jobs": 0},
    held=[Held("api", (20, 22), (5, 5))],
)


def alive() -> Job:
    return replay(EVENTS[:2])[JOB]


def test_a_history_as_it_should_be_has_no_violation() -> None:
    assert violations(GOOD) == []


@pytest.mark.parametrize(
    ("invariant", "change"),
    [
        ("I1", {"events": (*EVENTS, replace(EVENTS[2], id="4-0"))}),
        ("I1", {"events": EVENTS[:2], "jobs": {JOB: alive()}, "billed": {}}),
        ("I1", {"stories": [replace(STORY, job_id="0-other")]}),
        ("I2", {"logs": {JOB: (LOG[0], LOG[2])}}),
        ("I2", {"logs": {JOB: LOG[:2]}}),
        ("I3", {"stories": [replace(STORY, texts=("abb",))]}),
        ("I3", {"stories": [replace(STORY, done=False)]}),
        ("I3", {"stories": [replace(STORY, ids=("2-1", "2-1"))]}),
        ("I3", {"expected": {"greedy": Expected(("ab",), {0: (7, 9)})}}),
        ("I4", {"logs": {JOB: (replace(LOG[0], id=FrameId(9, 1)), *LOG[1:])}}),
        ("I5", {"billed": {"jobs": 2, "output_tokens": 4}}),
        ("I6", {"eternal_keys": ["j:0-job"]}),
        ("I7", {"counters": {"t:default": 1}}),
        ("I8", {"held": [Held("api", (20, 70), (5, 5))]}),
        ("I8", {"held": [Held("api", (20, 22), (5, 25))]}),
    ],
)
def test_each_broken_promise_is_found(invariant: str, change: dict[str, Any]) -> None:
    assert invariant in {violation.invariant for violation in violations(replace(GOOD, **change))}


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({}, 0),
        ({"stories": [replace(STORY, done=False, texts=("a",))]}, 0),
        ({"stories": [replace(STORY, texts=("abb",))]}, 1),
        ({"stories": [replace(STORY, ids=("2-1", "2-1"))]}, 1),
        ({"events": (*EVENTS, replace(EVENTS[2], id="4-0"))}, 1),
    ],
)
def test_lost_is_not_counted_as_doubled(change: dict[str, Any], count: int) -> None:
    assert doubled(replace(GOOD, **change)) == count
