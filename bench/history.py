"""What must be true of a farm's history, whatever was done to it: pure, used by bench/chaos.py and by tests/faults.

The invariants are those that docs/reliability.md promises:
I1 every accepted job has exactly one terminal event; I2 logs have no hole; I3 each client has read the undisturbed
text once, to its end; I4 nothing was written without a claim; I5 usage is billed once; I6 no key stays for ever;
I7 the counters are back at 0; I8 processes hold no more files and threads than before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from scheduler.events import Event, EventType
from scheduler.frames import End, Frame
from scheduler.jobs import TERMINAL, TRANSITIONS, Job

Tokens = Mapping[int, tuple[int, ...]]
"""Token ids per choice."""

FILES_SLACK = 48
"""More than a process has at its start: pools keep a connection to Redis per client at once (24) and 15 to SQL."""

THREADS_SLACK = 16
"""SQLite has a thread per connection."""


@dataclass(frozen=True, slots=True)
class Story:
    """One client's: what it asked (by name), the job that answered last, the text per choice, and how it ended."""

    asked: str
    job_id: str
    texts: tuple[str, ...]
    done: bool
    ids: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Expected:
    """What an undisturbed run answers."""

    texts: tuple[str, ...]
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Held:
    """Files and threads of one process, at its start and after the last client."""

    name: str
    files: tuple[int, int]
    threads: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Everything that is left when all is quiet. `set_aside`: what was told of jobs after their recorded end."""

    stories: Sequence[Story]
    expected: Mapping[str, Expected]
    jobs: Mapping[str, Job]
    events: Sequence[Event]
    logs: Mapping[str, Sequence[Frame]]
    set_aside: Sequence[Event] = ()
    billed: Mapping[str, int] = field(default_factory=dict)
    eternal_keys: Sequence[str] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    held: Sequence[Held] = ()


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise."""

    invariant: str
    what: str


def violations(history: History) -> list[Violation]:
    """Every invariant that does not hold, with what shows it; empty for a history as it should be."""
    checks = (_ends, _logs, _stories, _claims, _bill, _keys, _counters, _resources)
    return [Violation(f"I{number}", what) for number, check in enumerate(checks, 1) for what in check(history)]


def doubled(history: History) -> int:
    """Jobs that ended twice, and clients that read an event twice or another text than the undisturbed one."""
    ends = Counter(event.job_id for event in history.events if TRANSITIONS[event.type][1] in TERMINAL)
    readers = sum(
        len(set(story.ids)) != len(story.ids) or (story.done and story.texts != history.expected[story.asked].texts)
        for story in history.stories
    )
    return sum(count > 1 for count in ends.values()) + readers


def tokens_of(log: Sequence[Frame]) -> dict[int, tuple[int, ...]]:
    """The token ids of a log, per choice."""
    tokens: dict[int, tuple[int, ...]] = {}
    for frame in log:
        if not isinstance(frame.body, End):
            for chunk in frame.body:
                tokens[chunk.index] = tokens.get(chunk.index, ()) + chunk.token_ids
    return tokens


def _ends(history: History) -> Iterator[str]:
    ends = Counter(event.job_id for event in history.events if TRANSITIONS[event.type][1] in TERMINAL)
    for job_id, job in history.jobs.items():
        if ends[job_id] != 1 or job.state not in TERMINAL:
            yield f"job {job_id} is {job.state} and has {ends[job_id]} terminal events"
    for story in history.stories:
        if story.job_id and story.job_id not in history.jobs:
            yield f"job {story.job_id} answered a client and is not in the record"


def _logs(history: History) -> Iterator[str]:
    for job_id, log in history.logs.items():
        sequences = [frame.id.sequence for frame in log]
        if sequences != list(range(1, len(log) + 1)):
            yield f"log of {job_id} has a hole: {sequences}"
        if [isinstance(frame.body, End) for frame in log] != [False] * (len(log) - 1) + [True]:
            yield f"log of {job_id} does not end with its one end"


def _stories(history: History) -> Iterator[str]:
    for story in history.stories:
        expected = history.expected[story.asked]
        if not story.done:
            yield f"client of {story.job_id or 'no job'} ({story.asked}) got no end: {story.problem}"
        elif story.texts != expected.texts:
            yield f"client of {story.job_id} ({story.asked}) read {story.texts!r} instead of {expected.texts!r}"
        if len(set(story.ids)) != len(story.ids):
            yield f"client of {story.job_id} got an event twice"
        log = history.logs.get(story.job_id)
        if story.done and log is not None and tokens_of(log) != expected.tokens:
            yield f"the log of {story.job_id} ({story.asked}) does not hold the undisturbed tokens"


def _claims(history: History) -> Iterator[str]:
    claims: dict[str, set[int]] = {}
    for event in (*history.events, *history.set_aside):
        if event.type is EventType.CLAIMED:
            claims.setdefault(event.job_id, set()).add(int(event.data["generation"]))
    for job_id, log in history.logs.items():
        generations = [frame.id.generation for frame in log if not isinstance(frame.body, End)]
        if generations != sorted(generations):
            yield f"in the log of {job_id} an earlier claim wrote after a later one"
        if not claims.get(job_id, set()) >= set(generations):
            yield f"the log of {job_id} holds frames that no claim accounts for"


def _bill(history: History) -> Iterator[str]:
    if not history.billed:
        return
    ended = [job for job in history.jobs.values() if job.state in TERMINAL]
    owed = {"jobs": len(ended), "output_tokens": sum(job.output_tokens for job in ended)}
    billed = {name: history.billed[name] for name in owed}
    if billed != owed:
        yield f"usage says {billed}, the jobs {owed}"
    for job in ended:
        log = history.logs.get(job.id)
        said = sum(map(len, tokens_of(log).values())) if log else job.output_tokens
        if said != job.output_tokens:
            yield f"job {job.id} is billed {job.output_tokens} tokens and its log holds {said}"


def _keys(history: History) -> Iterator[str]:
    if history.eternal_keys:
        yield f"keys without an end: {sorted(history.eternal_keys)[:10]}"


def _counters(history: History) -> Iterator[str]:
    left = {name: value for name, value in history.counters.items() if value}
    if left:
        yield f"counters are not 0: {left}"


def _resources(history: History) -> Iterator[str]:
    for process in history.held:
        both = (("files", process.files, FILES_SLACK), ("threads", process.threads, THREADS_SLACK))
        for kind, (before, after), slack in both:
            if after > before + slack:
                yield f"{process.name} holds {after} {kind}, at its start {before}"
