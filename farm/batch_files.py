"""The two files of a batch run: requests in, results out, both JSON lines in OpenAI's batch format.

The result file is also the memory of the run: a custom_id that is in it is done.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm.errors import CommandError, UsageRefused

FSYNC_EVERY_S = 1.0
_REQUIRED = {"custom_id": str, "method": str, "url": str, "body": dict}


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request of the input file."""

    number: int
    custom_id: str
    url: str
    body: bytes
    key: str
    """The same line of the same run has the same key, also after a restart."""


@dataclass(frozen=True, slots=True)
class InvalidLine:
    """A line that cannot be sent, and why."""

    number: int
    reason: str


class RequestFile:
    """The input: checked whole before anything runs, then read line by line."""

    def __init__(self, path: Path, results: Path) -> None:
        self._path = path
        self._run = f"{path.resolve()}\n{results.resolve()}"
        self.custom_ids: dict[str, int] = {}
        self.invalid: list[InvalidLine] = []

    def check(self) -> None:
        """Fill `custom_ids` (id → line number) and `invalid`. Raises UsageRefused when the file cannot be read."""
        for number, raw in self._lines():
            value, reason = _parse(raw)
            if value is None:
                self.invalid.append(InvalidLine(number, reason))
                continue
            first = self.custom_ids.setdefault(value["custom_id"], number)
            if first != number:
                self.invalid.append(
                    InvalidLine(number, f"custom_id {value['custom_id']!r} is already used in line {first}")
                )

    def requests(self, done: set[str]) -> Iterator[BatchLine]:
        """The valid lines that are not done, in order."""
        for number, raw in self._lines():
            value, _ = _parse(raw)
            if value is None or value["custom_id"] in done or self.custom_ids[value["custom_id"]] != number:
                continue
            body = json.dumps(value["body"], ensure_ascii=False, separators=(",", ":")).encode()
            digest = hashlib.sha256(f"{self._run}\n{value['custom_id']}\n{value['url']}\n".encode() + body)
            yield BatchLine(number, value["custom_id"], value["url"], body, digest.hexdigest())

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        try:
            with self._path.open("rb") as file:
                for number, raw in enumerate(file, 1):
                    if raw.strip():
                        yield number, raw
        except OSError as error:
            raise UsageRefused(f"Cannot read {self._path}: {error.strerror}.") from error


class ResultFile:
    """The output: opened for one writer at a time, mended after a kill, appended line by line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.done: dict[str, int] = {}
        """custom_id → HTTP status of the lines that are there."""
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise UsageRefused(f"Cannot write {path}: {error.strerror}.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UsageRefused(f"Another batch run is writing {path}. Let it finish, or name another file.") from None
        self._synced_at = time.monotonic()
        self._recover()

    def append(self, line: dict[str, Any]) -> None:
        """Write one result. It survives this process from here on, and the machine after the next sync."""
        try:
            self._file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
            if time.monotonic() - self._synced_at > FSYNC_EVERY_S:
                os.fsync(self._file.fileno())
                self._synced_at = time.monotonic()
        except OSError as error:
            raise CommandError(
                f"Cannot write {self._path}: {error.strerror}. Make room and start the command again: it continues."
            ) from error
        self.done[line["custom_id"]] = line["response"]["status_code"]

    def close(self) -> None:
        """Sync and close."""
        os.fsync(self._file.fileno())
        self._file.close()

    def _recover(self) -> None:
        """Read what is there and cut off a last line that a kill has torn."""
        self._file.seek(0)
        end = 0
        for number, raw in enumerate(self._file, 1):
            if not raw.endswith(b"\n"):
                break
            try:
                value = json.loads(raw)
                self.done[value["custom_id"]] = value["response"]["status_code"]
            except (ValueError, KeyError, TypeError) as error:
                raise UsageRefused(
                    f"{self._path} line {number} is not a result line, so this is not the output of a batch run. "
                    "Name another file."
                ) from error
            end += len(raw)
        self._file.truncate(end)


def _parse(raw: bytes) -> tuple[dict[str, Any] | None, str]:
    """The line as an object, or None and why it cannot be sent."""
    try:
        value = json.loads(raw)
    except ValueError as error:
        return None, f"not JSON: {error}"
    if not isinstance(value, dict):
        return None, "not a JSON object"
    for name, kind in _REQUIRED.items():
        if name not in value:
            return None, f"{name} is missing"
        if not isinstance(value[name], kind):
            return None, f"{name} must be {'an object' if kind is dict else 'a string'}"
    if value["method"] != "POST":
        return None, f"method must be POST, not {value['method']!r}"
    if not value["url"].startswith("/v1/"):
        return None, f"url must begin with /v1/, not be {value['url']!r}"
    if value["body"].get("stream"):
        return None, "body.stream cannot be true in a batch"
    return value, ""
