"""Frames as a response: numbered events in the strict order that OpenAI's SDKs check, and the response object.

Numbers are a function of the frames: any node tells the same events again, and leaves out those that were read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api.errors import ApiError, JobEnded
from api.openai.rendering import finite, obfuscation, token_text
from api.openai.responses.items import Items, Manner, Step
from api.openai.responses.names import response_id
from api.reading import AnswerReader, PartKind
from api.rendering import Dialect, Event, RenderingNote, TokenBytes, counted
from scheduler.frames import FILTERED, Chunk, End
from scheduler.jobs import JobState

RESPONSE_STREAM = Dialect(named=True, done=b"", keep_alive=b": keep-alive\n")

ERROR_CODES = {"invalid_request": "invalid_prompt", "context_length_exceeded": "context_length_exceeded"}
"""Our codes of failed jobs in OpenAI's words; everything else is a server_error."""


class ResponseRenderer:
    """Implements Renderer for kind `responses`."""

    def __init__(self, job_id: str, note: RenderingNote, token_bytes: TokenBytes) -> None:
        asked = note.extras
        self._job_id = job_id
        self._note = note
        self._token_bytes = token_bytes
        self._after = self._told = -1
        self._echo: dict[str, Any] = dict(asked.get("echo", {}))
        self._reader = AnswerReader(note)
        self._items = Items(job_id, Manner(tools=asked.get("tools", {}), seals=bool(asked.get("seals"))))
        self._logprobs: list[Any] = []
        self._begun = False

    @property
    def unparsed_calls(self) -> int:
        """Tool calls that were shown as text."""
        return self._reader.unparsed_calls

    @property
    def dialect(self) -> Dialect:
        """Named events, no [DONE]."""
        return RESPONSE_STREAM

    def begin_behind(self, number: int) -> None:
        """Events up to this number are counted and not told."""
        self._after = number

    def beginning(self) -> dict[str, Any]:
        """The response before its first frame: queued in the background, else in progress."""
        return self.as_response("queued" if self._echo.get("background") else "in_progress")

    def opening(self) -> list[Event]:
        """It is created; in the background it waits, otherwise it begins at once."""
        response = self.beginning()
        steps = [{"type": "response.created", "response": response}]
        if response["status"] == "queued":
            return self._numbered([*steps, {"type": "response.queued", "response": response}])
        return self._numbered(steps + self._in_progress())

    def step(self, chunks: Sequence[Chunk]) -> list[Event]:
        """What one frame adds."""
        steps = self._in_progress()
        for chunk in chunks:
            steps += self._take(chunk)
        return self._numbered(steps)

    def closing(self, end: End) -> list[Event]:
        """The whole response: completed, or incomplete."""
        response = self.whole(end)
        return self._numbered([*self._in_progress(), {"type": f"response.{response['status']}", "response": response}])

    def failure(self, error: ApiError) -> list[Event]:
        """The job's own bad end is the response's; a trouble of this node has the number of the last event told."""
        if isinstance(error, JobEnded):
            steps = self._in_progress() + self._items.close(whole=False)
            response = self.ended(error.end, error)
            return self._numbered([*steps, {"type": "response.failed", "response": response}])
        told = {"message": error.message, "code": error.code or error.kind, "param": error.param}
        return [{"type": "error", **told, "sequence_number": max(0, self._told)}]

    def whole(self, end: End) -> dict[str, Any]:
        """The response object of a finished job."""
        return self.ended(end, None)

    def ended(self, end: End, error: ApiError | None) -> dict[str, Any]:
        """The response object of a job that has ended, whatever the end; `error` says what went wrong."""
        if end.state is JobState.CANCELLED:
            return self.as_response("cancelled", end)
        if error is not None:
            code = ERROR_CODES.get(error.code or "", "server_error")
            return self.as_response("failed", end, error={"code": code, "message": error.message})
        if self._reader.finish_reason == "length":
            return self.as_response("incomplete", end, incomplete_details={"reason": "max_output_tokens"})
        if self._reader.finish_reason == FILTERED:
            return self.as_response("incomplete", end, incomplete_details={"reason": FILTERED})
        return self.as_response("completed", end)

    def as_response(self, status: str, end: End | None = None, **more: Any) -> dict[str, Any]:
        """The response object as far as it is known."""
        note = self._note
        return {
            "id": response_id(self._job_id),
            "object": "response",
            "created_at": note.created_s,
            "status": status,
            "completed_at": _completed_at(note, end) if status == "completed" else None,
            "error": None,
            "incomplete_details": None,
            "model": note.model,
            "output": list(self._items.items),
            "service_tier": note.service_tier,
            **self._echo,
            "usage": self._usage(end) if end is not None else None,
            **more,
        }

    def _in_progress(self) -> list[Step]:
        """Said once: at the beginning, or by the first frame of what waited in the background."""
        if self._begun:
            return []
        self._begun = True
        return [{"type": "response.in_progress", "response": self.as_response("in_progress")}]

    def _take(self, chunk: Chunk) -> list[Step]:
        if self._note.logprobs and chunk.logprobs is not None:
            self._logprobs += [
                self._token(token_id, logprob) | {"top_logprobs": [self._token(*pair) for pair in top]}
                for token_id, logprob, top in chunk.logprobs
            ]
        steps: list[Step] = []
        for part in self._reader.feed(chunk):
            logprobs, self._logprobs = self._logprobs, []
            steps += self._items.take(part, logprobs if part.kind is PartKind.CONTENT else [])
        if chunk.finish_reason is not None:
            steps += self._items.close(whole=chunk.finish_reason != "length")
            if not self._items.items:
                steps += self._items.say_nothing()
        return steps

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        piece = self._token_bytes(token_id)
        return {"token": token_text(piece), "logprob": finite(logprob), "bytes": list(piece)}

    def _numbered(self, steps: list[Step]) -> list[Event]:
        """The events of these steps that are not read yet."""
        events = []
        for step in steps:
            self._told += 1
            if self._told <= self._after:
                continue
            if self._note.obfuscation and "delta" in step:
                step["obfuscation"] = obfuscation(len(step["delta"]))
            events.append({**step, "sequence_number": self._told})
        return events

    def _usage(self, end: End) -> dict[str, Any]:
        counts = counted(self._note, self._reader.output_tokens, self._reader.reasoning_tokens, end)
        read, written = (int(end.data.get(name) or 0) for name in ("cached_tokens", "cache_written_tokens"))
        return {
            "input_tokens": counts.prompt_tokens,
            "input_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
            "output_tokens": counts.output_tokens,
            "output_tokens_details": {"reasoning_tokens": counts.reasoning_tokens},
            "total_tokens": counts.prompt_tokens + counts.output_tokens,
        }


def _completed_at(note: RenderingNote, end: End | None) -> int:
    """Seconds since 1970, from what the job's end says of its times."""
    took_ms = sum(float(end.data.get(name) or 0) for name in ("ttft_ms", "decode_ms")) if end else 0.0
    return note.created_s + round(took_ms / 1000)
