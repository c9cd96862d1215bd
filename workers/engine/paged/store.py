"""Blocks of the prefix cache on disk: what a prompt needs that the pool no longer has, or had before a restart.

Several processes may use one folder without a lock: files appear complete, are proved by a checksum when read, and one
that another process has deleted is a miss. Nothing here raises because of the disk: a bad file is deleted and counts
as a miss, and a disk that cannot be written or listed switches the store off.
"""

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from workers.engine.paged import block_file
from workers.engine.paged.block_file import Array, Arrays, BadFile
from workers.engine.paged.store_folder import Index, shrink

FORMAT: Final = b"prefix-blocks-1"  # another format, another folder
UPKEEP_S: Final = 5.0  # between two writings of access times
SCAN_S: Final = 60.0  # between two looks at all files' sizes and ages
KEPT_WHEN_FULL: Final = 0.9  # of the size limit, so that not every write looks at all files

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """Blocks given and not given by `load`, bytes written and read, blocks not written; and what is stored now.

    `bytes` and `files` are of this identity only, as last seen.
    """

    hits_total: int = 0
    misses_total: int = 0
    saved_bytes_total: int = 0
    loaded_bytes_total: int = 0
    dropped_total: int = 0
    bytes: int = 0
    files: int = 0


class Loaded(NamedTuple):
    """The first `blocks` of the blocks asked for; each array has them on its first axis. No arrays if it is 0."""

    blocks: int
    arrays: Arrays


@dataclass(frozen=True, slots=True)
class _Job:
    hashes: Sequence[bytes]
    arrays: Arrays
    content_bytes: int


@dataclass(slots=True)
class _Queue:
    """What waits to be written; the job being written is still counted."""

    jobs: deque[_Job] = field(default_factory=deque)
    hashes: set[bytes] = field(default_factory=set)
    content_bytes: int = 0

    def put(self, job: _Job) -> None:
        self.jobs.append(job)
        self.hashes.update(job.hashes)
        self.content_bytes += job.content_bytes

    def done(self, job: _Job) -> None:
        self.hashes.difference_update(job.hashes)
        self.content_bytes -= job.content_bytes


class PrefixStore:
    """Blocks by hash in `folder`, which several processes and several models share. All methods are thread-safe.

    `identity` says what, besides the hashes, the bytes depend on (model, adapter, key-value type, block size, layers'
    shapes); files of another identity are never read. All identities' files together stay below `max_bytes` (if other
    processes write too: about, until the next look at the folder) and are deleted `max_age_s` after their last use.
    `queue_bytes` bounds the blocks waiting to be written; `refresh_s` how often the folder is looked at.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        max_age_s: float,
        identity: bytes,
        queue_bytes: int = 256 * 2**20,
        refresh_s: float = 1.0,
    ) -> None:
        """Creates the folder, readable by its owner only, and reads which blocks are there."""
        self._identity = hashlib.blake2b(FORMAT + identity, digest_size=16).hexdigest()
        self._root = folder
        self._folder = folder / self._identity
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._queue_bytes = queue_bytes
        self._refresh_s = refresh_s
        self._changed = threading.Condition()
        self._index = Index(self._folder, self._identity)
        self._queue = _Queue()
        self._touched: dict[str, int] = {}  # file -> its place in the row of files of a prompt
        self._busy = True
        self._closing = False
        self._stopped = False
        self._refreshed_s = -1e9
        self._kept_up_s = -1e9
        self._scanned_s = -1e9
        self._room_bytes = 0
        self._hits_total = self._misses_total = self._dropped_total = 0
        self._saved_bytes_total = self._loaded_bytes_total = 0
        self._writer = threading.Thread(target=self._run, name="prefix-store", daemon=True)
        try:
            self._create_folder()
        except OSError as error:
            self._switch_off(error)
        self._refresh()
        self._writer.start()

    @property
    def is_on(self) -> bool:
        """False for good after `close` and after a disk error: everything is a miss then and nothing is written."""
        return not self._stopped and not self._closing

    @property
    def stats(self) -> StoreStats:
        """Counts since the start, and what is stored now."""
        with self._changed:
            return StoreStats(
                hits_total=self._hits_total,
                misses_total=self._misses_total,
                saved_bytes_total=self._saved_bytes_total,
                loaded_bytes_total=self._loaded_bytes_total,
                dropped_total=self._dropped_total,
                bytes=sum(file_bytes for _, file_bytes in self._index.files.values()),
                files=len(self._index.files),
            )

    def find(self, hashes: Sequence[bytes]) -> int:
        """How many of the leading blocks are stored, as far as the index knows; this counts as a use of their files.

        Give the hashes of a whole prompt, also those that the pool has: what is in use stays on disk.
        """
        self._refresh()
        with self._changed:
            if not self.is_on:
                return 0
            names = list(self._index.stored(hashes))
            self._touch(names)
        return len(names)

    def missing(self, hashes: Sequence[bytes]) -> list[int]:
        """Which of the blocks (their places in `hashes`) `save` would take now: ask before copying from the device."""
        self._refresh()
        with self._changed:
            if not self.is_on or self._queue.content_bytes >= self._queue_bytes:
                return []
            return [place for place, block_hash in enumerate(hashes) if not self._is_known(block_hash)]

    def load(self, hashes: Sequence[bytes]) -> Loaded:
        """The leading blocks that can really be read, as host arrays; reads files, in the caller's thread.

        Give all that a prompt still needs: what is not found is counted as missed.
        """
        self._refresh()
        parts: list[Arrays] = []
        blocks = 0
        while blocks < len(hashes):
            part, count = self._load_next(hashes[blocks:])
            if count == 0 or (parts and _layout(part) != _layout(parts[0])):
                break
            parts.append(part)
            blocks += count
        arrays = {name: _join([part[name] for part in parts]) for name in parts[0]} if parts else {}
        with self._changed:
            self._hits_total += blocks
            self._misses_total += len(hashes) - blocks
            self._loaded_bytes_total += sum(array.nbytes for array in arrays.values())
            self._touch(list(self._index.stored(hashes[:blocks])))
        return Loaded(blocks, arrays)

    def save(self, hashes: Sequence[bytes], arrays: Arrays) -> None:
        """Queue consecutive blocks (first axis of every array) to be written; do not change the arrays afterwards.

        What is stored or queued already is left out, what does not fit the queue is dropped and counted.
        Raises ValueError for arrays of another length or of a type that the files cannot hold.
        """
        for name, array in arrays.items():
            if array.shape[:1] != (len(hashes),) or array.dtype not in block_file.CODES:
                raise ValueError(f"{name}: {array.dtype}{list(array.shape)} cannot be stored for {len(hashes)} blocks")
        block_bytes = sum(array.nbytes for array in arrays.values()) // max(1, len(hashes))
        with self._changed:
            if not self.is_on:
                return
            self._touch([name for name in map(self._index.places.get, hashes) if name is not None])
            for first, end in _runs([not self._is_known(block_hash) for block_hash in hashes]):
                if self._queue.content_bytes + (end - first) * block_bytes > self._queue_bytes:
                    self._dropped_total += end - first
                    continue
                part = {name: array[first:end] for name, array in arrays.items()}
                self._queue.put(_Job(hashes[first:end], part, (end - first) * block_bytes))
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was queued is on disk; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._stopped or not (self._queue.jobs or self._busy), timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is queued, but drop (and count) what is left after `timeout_s`. The store is off from now on."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._writer.join(timeout_s)
        with self._changed:
            self._stop()

    def _create_folder(self) -> None:
        self._root.parent.mkdir(parents=True, exist_ok=True)
        self._root.mkdir(mode=0o700, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def _refresh(self) -> None:
        with self._changed:
            now_s = time.monotonic()
            if not self.is_on or now_s - self._refreshed_s < self._refresh_s:
                return
            self._refreshed_s = now_s
            try:
                self._index.refresh()
            except OSError as error:
                self._switch_off(error)

    def _is_known(self, block_hash: bytes) -> bool:
        return block_hash in self._index.places or block_hash in self._queue.hashes

    def _touch(self, names: Sequence[str]) -> None:
        for rank, name in enumerate(dict.fromkeys(names)):
            self._touched[name] = min(rank, self._touched.get(name, rank))

    def _load_next(self, hashes: Sequence[bytes]) -> tuple[Arrays, int]:
        """The leading blocks that one file holds, and how many."""
        with self._changed:
            name = self._index.places.get(hashes[0]) if self.is_on else None
        if name is None:
            return {}, 0
        path = self._folder / name
        try:
            stored, arrays = block_file.read(path, self._identity)
        except OSError:  # most often gone: another process made room
            return self._not_in(name)
        except BadFile:
            with contextlib.suppress(OSError):
                path.unlink()
            return self._not_in(name)
        if hashes[0] not in stored:
            return self._not_in(name)
        first = stored.index(hashes[0])
        same = takewhile(lambda pair: pair[0] == pair[1], zip(hashes, stored[first:], strict=False))
        count = sum(1 for _ in same)
        return {name: array[first : first + count] for name, array in arrays.items()}, count

    def _not_in(self, name: str) -> tuple[Arrays, int]:
        with self._changed:
            self._index.forget(name)
        return {}, 0

    def _run(self) -> None:
        """The writer thread: jobs in order; access times, sizes and ages in between."""
        while True:
            self._upkeep()
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue.jobs or not self.is_on, UPKEEP_S)
                if self._stopped or (self._closing and not self._queue.jobs):
                    break
                self._busy = True
                job = self._queue.jobs.popleft() if self._queue.jobs else None
            if job is not None:
                self._write(job)
        self._write_access_times()

    def _write(self, job: _Job) -> None:
        """Afterwards the job's blocks are stored, or counted as dropped."""
        written: int | None = None
        name = block_file.file_name(job.hashes)
        try:
            self._create_folder()
            if (self._folder / name).exists():  # another process was faster
                written = 0
            elif self._make_room(block_file.file_bytes_at_most(job.hashes, job.arrays)):
                written = block_file.write(self._folder, self._identity, job.hashes, job.arrays)
        except OSError as error:
            self._switch_off(error)
        with self._changed:
            self._queue.done(job)
            if written is None:
                self._dropped_total += len(job.hashes)
            elif written and not self._stopped:
                self._index.add(name, job.hashes, written)
            self._saved_bytes_total += written or 0
            self._room_bytes -= written or 0

    def _make_room(self, file_bytes: int) -> bool:
        """Whether a file of this size may be written now; deletes others for it."""
        if self._room_bytes < file_bytes <= self._max_bytes:
            self._shrink(min(int(KEPT_WHEN_FULL * self._max_bytes), self._max_bytes - file_bytes))
        return file_bytes <= self._room_bytes

    def _upkeep(self) -> None:
        now_s = time.monotonic()
        if now_s - self._kept_up_s >= UPKEEP_S:
            self._kept_up_s = now_s
            self._write_access_times()
        if now_s - self._scanned_s >= SCAN_S:
            try:
                self._shrink(self._max_bytes)
            except OSError as error:
                self._switch_off(error)

    def _shrink(self, to_bytes: int) -> None:
        self._scanned_s = time.monotonic()
        self._write_access_times()
        left_bytes, deleted = shrink(self._root, to_bytes=to_bytes, max_age_s=self._max_age_s)
        self._room_bytes = self._max_bytes - left_bytes
        with self._changed:
            for path in deleted:
                if path.parent == self._folder:
                    self._index.forget(path.name)

    def _write_access_times(self) -> None:
        """The first file of a prompt becomes the newest, so that no file outlives one that it continues."""
        with self._changed:
            touched, self._touched = self._touched, {}
        now_ns = time.time_ns()
        for name, rank in touched.items():
            with contextlib.suppress(OSError):
                os.utime(self._folder / name, ns=(now_ns - rank * 1000, now_ns - rank * 1000))

    def _switch_off(self, error: OSError) -> None:
        with self._changed:
            if not self._stopped:
                log.warning("the store of prompt prefixes in %s is off: %s", self._folder, error)
                self._stop()

    def _stop(self) -> None:
        self._stopped = True
        self._dropped_total += sum(len(job.hashes) for job in self._queue.jobs)
        self._queue.jobs.clear()
        self._changed.notify_all()


def _runs(wanted: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """First and end of each run of wanted blocks, cut into pieces that one file may hold."""
    first = 0
    for place in range(len(wanted) + 1):
        ends = place == len(wanted) or not wanted[place]
        if place > first and (ends or place - first == block_file.MAX_BLOCKS):
            yield first, place
            first = place
        if ends:
            first = place + 1


def _layout(arrays: Arrays) -> dict[str, tuple[object, ...]]:
    return {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}


def _join(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
