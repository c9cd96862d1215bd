"""The input of a batch, line by line from the disk: checked whole before anything runs, then read on from an offset.

Everything here blocks and belongs into a thread; memory holds one line, and 16 bytes per custom_id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from api.batch_format import BadLine, BatchFormat, RequestLine

SHOWN_ERRORS = 100
MAX_MODELS = 1000
"""Names that are remembered as served."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class InputGone(Exception):
    """The content of a batch's input is not on the disk any more."""


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line that is not blank; `end` is the offset behind it."""

    number: int
    raw: bytes
    end: int


@dataclass(slots=True)
class Validation:
    """What a whole input is: its requests, the models that they ask for, and what is wrong with it."""

    total: int = 0
    models: list[str] = field(default_factory=list)
    errors: list[dict[str, object]] = field(default_factory=list)

    def add(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        """One more error; only the first ones are kept."""
        if len(self.errors) < SHOWN_ERRORS:
            self.errors.append({"code": code, "message": message, "line": line, "param": param})


def raw_lines(path: Path, offset: int, limit_bytes: int) -> Iterator[RawLine]:
    """The lines from an offset on, numbered from 1 there; blank ones are left out, long ones cut at the limit.

    Raises InputGone.
    """
    try:
        opened = path.open("rb")
    except FileNotFoundError as error:
        raise InputGone(path.name) from error
    with opened as file:
        file.seek(offset)
        number = 0
        while raw := file.readline(limit_bytes + 1):
            number += 1
            if offset == 0 and number == 1:
                raw = raw.removeprefix(BYTE_ORDER_MARK)
            if raw.strip():
                yield RawLine(number, raw, file.tell())


def take_lines(path: Path, offset: int, count: int, limit_bytes: int, *, most_bytes: int) -> list[RawLine]:
    """The next lines, no more than `count` of them, and none behind the first `most_bytes`: lines may hold images."""
    lines: list[RawLine] = []
    for line in raw_lines(path, offset, limit_bytes):
        lines.append(line)
        if len(lines) == count or line.end - offset >= most_bytes:
            break
    return lines


def validate(path: Path, form: BatchFormat, endpoint: str, *, max_requests: int, line_limit_bytes: int) -> Validation:
    """Read every line once."""
    found, known = Validation(), dict[bytes, int]()
    models: dict[str, None] = {}
    for line in raw_lines(path, 0, line_limit_bytes):
        found.total += 1
        if found.total > max_requests:
            found.add("too_many_requests", f"A batch has {max_requests} requests at most. Split the file.")
            break
        if len(line.raw) > line_limit_bytes:
            found.add("line_too_large", f"A line has {line_limit_bytes} bytes at most.", line.number)
            break
        request = _checked(line, form, endpoint, known, found)
        model = request.body.get("model") if request is not None else None
        if isinstance(model, str) and len(models) < MAX_MODELS:
            models[model] = None
    if not found.total:
        found.add("empty_file", "The input file has no requests.")
    found.models = list(models)
    return found


def _checked(
    line: RawLine, form: BatchFormat, endpoint: str, known: dict[bytes, int], found: Validation
) -> RequestLine | None:
    try:
        request = form.read(line.raw, endpoint)
    except BadLine as error:
        found.add(error.code, str(error), line.number, error.param)
        return None
    digest = hashlib.blake2b(request.custom_id.encode(), digest_size=16).digest()
    first = known.setdefault(digest, line.number)
    if first != line.number:
        text = f"The custom_id {request.custom_id!r} is already used in line {first}."
        found.add("duplicate_custom_id", text, line.number, "custom_id")
    return request
