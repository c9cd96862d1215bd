"""A job in a worker's hands, without a worker."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from scheduler.events import EventType
from scheduler.frames import Chunk, End, Frame, FrameId
from scheduler.jobs import JobState, Lane
from scheduler.queue import Claimed
from scheduler.requests import JobRequest, Stopping
from workers.held import HeldJob


def claimed(n: int = 1, generation: int = 1, sequence: int = 0) -> Claimed:
    request = JobRequest(kind="chat", model="m", prompts=((1, 2, 3),), n=n, stopping=Stopping(max_tokens=9))
    return Claimed("0-job", "7:w:n", generation, sequence, request, False, 1_000, 1_250, 1, Lane.NORMAL)


def held(log: Sequence[Frame] = (), n: int = 1) -> HeldJob:
    return HeldJob(claimed(n, sequence=len(log)), log, now_s=10.0, run="0-job/0")


def frame(sequence: int, *chunks: Chunk) -> Frame:
    return Frame("0-job", FrameId(1, sequence), chunks)


def test_frames_are_numbered_from_one_without_gaps() -> None:
    job = held()
    ids = [job.next_frame([Chunk(0, (5,), "a")], 10.5)[0] for _ in range(3)]
    assert [str(frame_id) for frame_id in ids] == ["1-1", "1-2", "1-3"]


def test_a_resumed_job_continues_the_numbers_and_the_tokens_of_its_log() -> None:
    job = held([frame(1, Chunk(0, (5, 6), "ab")), frame(2, Chunk(0, (7,), "c"))])
    assert job.choices[0].token_ids == [5, 6, 7]
    assert str(job.next_frame([Chunk(0, (8,), "d")], 11.0)[0]) == "1-3"
    assert job.output_tokens == 4


def test_a_choice_whose_prompt_was_scored_has_its_scores_in_the_log() -> None:
    scored = Chunk(0, (5,), "a", (), prompt_logprobs=((1, None, ()), (2, -0.5, ())))
    job = held([frame(1, scored, Chunk(1, (6,), "b")), frame(2, Chunk(0, (7,), "c"))], n=2)
    assert [choice.has_scores for choice in job.choices] == [True, False]


def test_a_choice_that_had_finished_is_not_run_again() -> None:
    job = held([frame(1, Chunk(0, (5,), "a", None, "stop"), Chunk(1, (6,), "b"))], n=2)
    assert job.unfinished == [1]


def test_the_terminal_frame_of_an_earlier_attempt_is_no_output() -> None:
    job = held([frame(1, Chunk(0, (5,), "a")), Frame("0-job", FrameId(1, 2), End(JobState.CANCELLED))])
    assert job.output_tokens == 1
    assert job.unfinished == [0]


def test_the_end_tells_usage_and_times() -> None:
    job = held(n=2)
    job.next_frame([Chunk(0, (5,), "a", None, "length"), Chunk(1, (6,), "b", None, "length")], 10.5)
    facts = job.end(EventType.FINISHED, 11.5)
    assert facts == {
        "prompt_tokens": 3,
        "cached_tokens": 0,
        "cache_written_tokens": 0,
        "output_tokens": 2,
        "finish_reason": "length",
        "prefill_ms": pytest.approx(500),
        "decode_ms": pytest.approx(1000),
        "ttft_ms": pytest.approx(750),
    }


def test_a_resumed_job_does_not_claim_a_time_to_first_token() -> None:
    job = held([frame(1, Chunk(0, (5,), "a"))])
    job.next_frame([Chunk(0, (6,), "b", None, "stop")], 10.5)
    assert "ttft_ms" not in job.end(EventType.FINISHED, 11.0)


def test_a_failed_job_tells_why() -> None:
    job = held()
    job.error = ("engine_error", "too hot")
    facts = job.end(EventType.FAILED, 11.0)
    assert (facts["error_code"], facts["error"], facts["finish_reason"]) == ("engine_error", "too hot", "failed")
