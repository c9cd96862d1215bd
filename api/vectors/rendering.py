"""Frames with vectors as lists of embeddings, of scores, and of documents in the order of their scores."""

from __future__ import annotations

import base64
import sys
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from typing import Any

from api.errors import ApiError
from api.openai.rendering import OPENAI_STREAM, error_events
from api.rendering import Dialect, Event, RenderingNote, TokenBytes
from scheduler.frames import Chunk, End


class _VectorRenderer(ABC):
    """What the three have in common. Followed as a stream, each frame is an event with the items that it finished."""

    def __init__(self, job_id: str, note: RenderingNote, token_bytes: TokenBytes) -> None:
        self._job_id = job_id
        self._note = note
        self._vectors: dict[int, bytes] = {}

    @property
    def unparsed_calls(self) -> int:
        """None: nothing is generated."""
        return 0

    @property
    def dialect(self) -> Dialect:
        """OpenAI's."""
        return OPENAI_STREAM

    def opening(self) -> list[Event]:
        """None."""
        return []

    def step(self, chunks: Sequence[Chunk]) -> list[Event]:
        """The items of one frame."""
        fresh = {chunk.index: chunk.vector for chunk in chunks if chunk.vector is not None}
        self._vectors |= fresh
        return [{"object": "list", "model": self._note.model, "data": [self._item(index) for index in sorted(fresh)]}]

    def closing(self, end: End) -> list[Event]:
        """None: every item has been told."""
        return []

    def failure(self, error: ApiError) -> list[Event]:
        """One event."""
        return error_events(error)

    @abstractmethod
    def _item(self, index: int) -> dict[str, Any]:
        """What is told of one input."""

    def _score(self, index: int) -> float:
        return _floats(self._vectors[index])[0]

    def _usage(self) -> dict[str, int]:
        return {"prompt_tokens": self._note.prompt_tokens, "total_tokens": self._note.prompt_tokens}


class EmbeddingRenderer(_VectorRenderer):
    """Implements Renderer for kind `embeddings`."""

    def whole(self, end: End) -> dict[str, Any]:
        """OpenAI's list of embeddings."""
        data = [self._item(index) for index in sorted(self._vectors)]
        return {"object": "list", "data": data, "model": self._note.model, "usage": self._usage()}

    def _item(self, index: int) -> dict[str, Any]:
        vector = self._vectors[index]
        value: Any = base64.b64encode(vector).decode() if self._note.extras["base64"] else _floats(vector)
        return {"object": "embedding", "index": index, "embedding": value}


class ScoreRenderer(_VectorRenderer):
    """Implements Renderer for kind `score`."""

    def whole(self, end: End) -> dict[str, Any]:
        """vLLM's list of scores."""
        return {
            "id": f"score-{self._job_id}",
            "object": "list",
            "created": self._note.created_s,
            "model": self._note.model,
            "data": [self._item(index) for index in sorted(self._vectors)],
            "usage": self._usage(),
        }

    def _item(self, index: int) -> dict[str, Any]:
        return {"index": index, "object": "score", "score": self._score(index)}


class RerankRenderer(_VectorRenderer):
    """Implements Renderer for kind `rerank`."""

    def whole(self, end: End) -> dict[str, Any]:
        """The best first; documents of the same score in their order."""
        ranked = sorted(self._vectors, key=lambda index: (-self._score(index), index))
        usage = self._usage()
        return {
            "id": f"rerank-{self._job_id}",
            "object": "list",
            "model": self._note.model,
            "results": [self._item(index) for index in ranked[: self._note.extras["top_n"]]],
            "usage": usage,
            "meta": {"tokens": {"input_tokens": usage["prompt_tokens"]}},
        }

    def _item(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {"index": index, "relevance_score": self._score(index)}
        if self._note.extras["documents"] is not None:
            item["document"] = {"text": self._note.extras["documents"][index]}
        return item


def _floats(vector: bytes) -> list[float]:
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()
