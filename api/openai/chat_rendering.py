"""Frames as chat completions: deltas and messages with reasoning, tool calls and logprobs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from api.openai.rendering import RenderingNote, TokenBytes, finite, stream_extras, token_text, usage
from api.openai.segments import Markers, Piece, SegmentKind, SegmentSplitter
from api.openai.tool_calls import CallReader, ToolCall, parse_call
from scheduler.frames import Chunk, End


class _Choice:
    """One answer as it grows."""

    def __init__(self, job_id: str, index: int, note: RenderingNote) -> None:
        self._splitter = SegmentSplitter(Markers(note.think, note.call), in_thinking=note.in_thinking)
        self._call_start, self._call_end = note.call or ("", "")
        self._seed = f"{job_id}:{index}"
        self._single_call = note.single_call
        self._bound_calls = note.bound_calls
        self._reader = CallReader()
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.logprobs: list[dict[str, Any]] = []
        self.finish_reason: str | None = None
        self.output_tokens = 0
        self.reasoning_tokens = 0
        self.unparsed_calls = 0

    def feed(self, chunk: Chunk) -> dict[str, Any]:
        """Take a chunk in and return its delta."""
        self.output_tokens += len(chunk.token_ids)
        if self._splitter.in_reasoning:
            self.reasoning_tokens += len(chunk.token_ids)
        text = chunk.text
        if self._single_call and chunk.stop_string == self._call_end:
            text += self._call_end  # our own stop string: the call it ends is complete
        pieces = self._splitter.push(text)
        if chunk.finish_reason is not None:
            pieces += self._splitter.flush()
        delta = self._delta(pieces)
        if chunk.finish_reason is not None:
            called = bool(self.calls) and chunk.finish_reason == "stop"
            self.finish_reason = "tool_calls" if called else chunk.finish_reason
        return delta

    def message(self) -> dict[str, Any]:
        """The whole answer."""
        content = "".join(self.content)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = message["reasoning"] = "".join(self.reasoning)
        if self.calls:
            message["content"] = content or None
            message["tool_calls"] = self.calls
        return message

    def _delta(self, pieces: list[Piece]) -> dict[str, Any]:
        content: list[str] = []
        reasoning: list[str] = []
        calls: list[dict[str, Any]] = []
        for piece in pieces:
            if piece.kind is SegmentKind.CONTENT:
                content.append(piece.text)
            elif piece.kind is SegmentKind.REASONING:
                reasoning.append(piece.text)
            else:
                self._call(piece, content, calls)
        if self._bound_calls and self._splitter.open_call is not None:
            calls += self._grow(self._splitter.open_call)
        self.content += content
        self.reasoning += reasoning
        delta: dict[str, Any] = {}
        if reasoning:
            delta["reasoning_content"] = delta["reasoning"] = "".join(reasoning)
        if content:
            delta["content"] = "".join(content)
        if calls:
            delta["tool_calls"] = calls
        return delta

    def _call(self, piece: Piece, content: list[str], calls: list[dict[str, Any]]) -> None:
        """A call, or its text where it is broken."""
        if self._bound_calls:
            calls += self._grow(piece.text)
            was_read, self._reader = self._reader.name is not None, CallReader()
            if was_read:  # perhaps cut off by its length: its arguments are what came
                return
        call = parse_call(piece.text) if piece.kind is SegmentKind.CALL else None
        if call is None:
            self.unparsed_calls += 1
            closing = self._call_end if piece.kind is SegmentKind.CALL else ""
            content.append(f"{self._call_start}{piece.text}{closing}")
            return
        calls.append(self._add(call))

    def _grow(self, inside: str) -> list[dict[str, Any]]:
        """The delta of a call that is being written; none while its name is not known."""
        is_known = self._reader.name is not None
        arguments = self._reader.read(inside)
        if self._reader.name is None:
            return []
        if not is_known:
            return [self._add(ToolCall(self._reader.name, arguments))]
        self.calls[-1]["function"]["arguments"] += arguments
        return [{"index": len(self.calls) - 1, "function": {"arguments": arguments}}] if arguments else []

    def _add(self, call: ToolCall) -> dict[str, Any]:
        """Take a call in and return its first delta."""
        digest = hashlib.sha256(f"{self._seed}:{len(self.calls)}".encode()).hexdigest()
        call_id = f"call_{digest[:24]}"
        self.calls.append(call.as_object(call_id))
        return {"index": len(self.calls) - 1, **call.as_object(call_id)}


class ChatRenderer:
    """Implements Renderer for kind `chat.completions`."""

    def __init__(self, job_id: str, note: RenderingNote, token_bytes: TokenBytes) -> None:
        self._note = note
        self._token_bytes = token_bytes
        self._choices = [_Choice(job_id, index, note) for index in range(note.choices)]
        self._late_finishes: list[dict[str, Any]] = []
        self._head = {"id": f"chatcmpl-{job_id}", "created": note.created_s, "model": note.model}

    @property
    def unparsed_calls(self) -> int:
        """Tool calls that were shown as text."""
        return sum(choice.unparsed_calls for choice in self._choices)

    def opening(self) -> dict[str, Any]:
        """The role of every choice."""
        choices = [
            _choice_chunk(i, {"role": "assistant", "content": ""}, None, None) for i in range(self._note.choices)
        ]
        return self._chunk(choices, chars=0)

    def step(self, chunks: Sequence[Chunk]) -> dict[str, Any]:
        """One frame as one chunk; a choice whose text is held back has an empty delta."""
        choices = []
        chars = 0
        for chunk in chunks:
            choice = self._choices[chunk.index]
            delta = choice.feed(chunk)
            logprobs = self._logprobs(chunk)
            choice.logprobs += logprobs or []
            finish_reason = choice.finish_reason if chunk.finish_reason is not None else None
            if finish_reason is not None and "tool_calls" in delta:
                self._late_finishes.append(_choice_chunk(chunk.index, {}, None, finish_reason))
                finish_reason = None
            choices.append(_choice_chunk(chunk.index, delta, logprobs, finish_reason))
            chars += len(chunk.text)
        return self._chunk(choices, chars)

    def closing(self, end: End) -> dict[str, Any] | None:
        """The usage chunk, where the caller asked for it; and finish reasons that came together with a call.

        The openai SDK's stream helper sees a call's end only if the finish reason comes in a later chunk.
        """
        chunk = self._chunk(self._late_finishes, chars=0)
        if self._note.include_usage:
            return chunk | {"usage": self._usage(end)}
        return chunk if self._late_finishes else None

    def whole(self, end: End) -> dict[str, Any]:
        """The chat completion object."""
        choices = [
            {
                "index": index,
                "message": choice.message(),
                "logprobs": {"content": choice.logprobs, "refusal": None} if self._note.logprobs else None,
                "finish_reason": choice.finish_reason or "stop",
            }
            for index, choice in enumerate(self._choices)
        ]
        return {
            **self._head,
            "object": "chat.completion",
            "service_tier": self._note.service_tier,
            "choices": choices,
            "usage": self._usage(end),
        }

    def _chunk(self, choices: list[dict[str, Any]], chars: int) -> dict[str, Any]:
        note = self._note
        chunk = {
            **self._head,
            "object": "chat.completion.chunk",
            "service_tier": note.service_tier,
            "choices": choices,
        }
        return chunk | stream_extras(note, self._usage(None) if note.continuous_usage else None, chars)

    def _usage(self, end: End | None) -> dict[str, Any]:
        return usage(
            self._note,
            output_tokens=sum(choice.output_tokens for choice in self._choices),
            reasoning_tokens=sum(choice.reasoning_tokens for choice in self._choices),
            end=end,
        )

    def _logprobs(self, chunk: Chunk) -> list[dict[str, Any]] | None:
        if not self._note.logprobs or chunk.logprobs is None:
            return None
        return [
            self._token(token_id, logprob) | {"top_logprobs": [self._token(*pair) for pair in top]}
            for token_id, logprob, top in chunk.logprobs
        ]

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        piece = self._token_bytes(token_id)
        return {"token": token_text(piece), "logprob": finite(logprob), "bytes": list(piece)}


def _choice_chunk(
    index: int, delta: dict[str, Any], logprobs: list[dict[str, Any]] | None, finish_reason: str | None
) -> dict[str, Any]:
    """One entry of a chunk's `choices`."""
    return {
        "index": index,
        "delta": delta,
        "logprobs": None if logprobs is None else {"content": logprobs, "refusal": None},
        "finish_reason": finish_reason,
    }
