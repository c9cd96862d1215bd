"""The folder of stored blocks: which file holds which block, and which files have to go."""

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from workers.engine.paged import block_file
from workers.engine.paged.block_file import BadFile

IDENTITY_NAME: Final = re.compile(r"[0-9a-f]{32}")  # of the folder of one identity's files
LEFTOVER_AGE_S: Final = 3600.0  # of a temporary file whose writer must be dead
SETTLED_NS: Final = 50_000_000  # file systems stamp times in ticks: a folder changed less long ago may change unseen


class Index:
    """Which file holds which block, as the folder showed last. Not thread-safe."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder
        self._identity = identity
        self._seen_mtime_ns = -1
        self.files: dict[str, tuple[tuple[bytes, ...], int]] = {}  # hashes, bytes
        self.places: dict[bytes, str] = {}

    def add(self, name: str, hashes: Sequence[bytes], file_bytes: int) -> None:
        self.forget(name)
        self.files[name] = (tuple(hashes), file_bytes)
        self.places.update(dict.fromkeys(hashes, name))

    def forget(self, name: str) -> None:
        hashes, _ = self.files.pop(name, ((), 0))
        for block_hash in hashes:
            if self.places.get(block_hash) == name:
                del self.places[block_hash]

    def stored(self, hashes: Sequence[bytes]) -> Iterator[str]:
        """The files of the leading blocks that are stored, one for each block."""
        for block_hash in hashes:
            name = self.places.get(block_hash)
            if name is None:
                return
            yield name

    def refresh(self) -> None:
        """Read what other processes added or removed since the last time. Raises OSError."""
        try:
            mtime_ns = self._folder.stat().st_mtime_ns
            if mtime_ns == self._seen_mtime_ns:
                return
            names = {name for name in os.listdir(self._folder) if block_file.NAME.fullmatch(name)}
        except FileNotFoundError:  # the next write creates it again
            mtime_ns, names = 0, set()
        for gone in self.files.keys() - names:
            self.forget(gone)
        for name in names - self.files.keys():
            path = self._folder / name
            try:
                self.add(name, *block_file.read_hashes(path, self._identity))
            except BadFile:
                path.unlink(missing_ok=True)
            except OSError:  # gone already, or no file
                continue
        self._seen_mtime_ns = mtime_ns if time.time_ns() - mtime_ns > SETTLED_NS else -1


def shrink(root: Path, *, to_bytes: int, max_age_s: float) -> tuple[int, list[Path]]:
    """Delete the files of all identities that are too old, then the longest unused until `to_bytes` are left.

    Returns the bytes left and the files deleted. Only folders and files named as the store names them are touched.
    Raises OSError.
    """
    now_s = time.time()
    found: list[tuple[int, int, str]] = []
    for entry in _entries(root):
        with contextlib.suppress(FileNotFoundError):
            facts = entry.stat(follow_symlinks=False)
            if block_file.NAME.fullmatch(entry.name):
                found.append((facts.st_mtime_ns, facts.st_size, entry.path))
            elif entry.name.endswith(block_file.TEMPORARY_SUFFIX) and now_s - facts.st_mtime > LEFTOVER_AGE_S:
                os.unlink(entry.path)
    left_bytes = sum(size for _, size, _ in found)
    deleted = []
    for used_ns, size, name in sorted(found):
        if left_bytes <= to_bytes and now_s - used_ns / 1e9 <= max_age_s:
            break
        path = Path(name)
        path.unlink(missing_ok=True)
        left_bytes -= size
        deleted.append(path)
    return left_bytes, deleted


def _entries(root: Path) -> Iterator[os.DirEntry[str]]:
    """The files of all identities; those of a folder that vanishes meanwhile are left out."""
    with contextlib.suppress(FileNotFoundError), os.scandir(root) as identities:
        for identity in identities:
            if not IDENTITY_NAME.fullmatch(identity.name) or not identity.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(FileNotFoundError), os.scandir(identity.path) as files:
                yield from (entry for entry in files if entry.is_file(follow_symlinks=False))
