"""One large file from the hub into the cache: what has come is kept, and the next try goes on from there.

huggingface_hub begins a file anew where its download was cut, and compares sizes only; so the bytes are brought here:
into `blobs/NAME.incomplete`, which is what the cache's own tools call a part, and under `blobs/NAME` once their hash is
the hub's. One process at a time has the part (flock).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from huggingface_hub.utils._headers import build_hf_headers

from workers.gallery.errors import PullStopped, PullUnderWay, TornFile
from workers.gallery.hub import HubFile, ModelName

HASHED_BYTES: Final = 4 << 20
Tell = Callable[[str, int], None]
"""Hears of a file's path, and how much of it is here."""


class Part:
    """A file that is being filled: tells how far it is, and ends the download when it is to stop.

    `http_get` writes into it from where it stands, and goes back to its start where the server ignores the range.
    """

    def __init__(self, file: IO[bytes], stop: threading.Event, tell: Callable[[int], None], name: str) -> None:
        self._file = file
        self._stop = stop
        self._tell = tell
        self._name = name

    def write(self, data: bytes) -> int:
        """Raises PullStopped when it is to stop; the data is kept then too."""
        written = self._file.write(data)
        self._tell(self._file.tell())
        if self._stop.is_set():
            raise PullStopped(self._name)
        return written

    def tell(self) -> int:
        """Where it stands."""
        return self._file.tell()

    def seek(self, offset: int) -> int:
        """Go there."""
        return self._file.seek(offset)

    def truncate(self) -> int:
        """Forget what is behind."""
        return self._file.truncate()


def fetch(name: ModelName, commit: str, file: HubFile, stop: threading.Event, tell: Tell) -> Path:
    """Bring the file's content into the cache, whole and checked; its path.

    Raises GalleryError, and what huggingface_hub raises where the hub does not answer.
    """
    blob = name.folder / "blobs" / file.blob
    blob.parent.mkdir(parents=True, exist_ok=True)
    if blob.is_file() and blob.stat().st_size == file.size_bytes:
        return blob
    part = blob.with_name(f"{file.blob}.incomplete")
    with _owned(part, file.path) as content:
        if not (blob.is_file() and blob.stat().st_size == file.size_bytes):  # nobody has brought it meanwhile
            _fill(content, name, commit, file, stop, tell)
            _check(content, part, file)
            os.fsync(content.fileno())
            os.replace(part, blob)
    part.unlink(missing_ok=True)
    return blob


def _fill(content: IO[bytes], name: ModelName, commit: str, file: HubFile, stop: threading.Event, tell: Tell) -> None:
    here_bytes = content.seek(0, os.SEEK_END)
    if here_bytes > file.size_bytes:
        here_bytes = content.seek(0)
        content.truncate()
    tell(file.path, here_bytes)
    if stop.is_set():
        raise PullStopped(str(name))
    target: Any = Part(content, stop, lambda at_bytes: tell(file.path, at_bytes), str(name))
    try:
        http_get(
            hf_hub_url(name.repo, file.path, revision=commit),
            target,
            resume_size=here_bytes,
            headers=build_hf_headers(),
            expected_size=file.size_bytes,
            displayed_filename=file.path,
        )
    except (HfHubHTTPError, OfflineModeIsEnabled):  # which are OSErrors too
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise TornFile(file.path, str(error).splitlines()[0]) from error  # http_get's word for a wrong size
    content.flush()


def _check(content: IO[bytes], part: Path, file: HubFile) -> None:
    """Raises TornFile, once it is gone."""
    content.seek(0)
    if why := difference(content, file):
        part.unlink()
        raise TornFile(file.path, why)


def difference(content: IO[bytes], file: HubFile) -> str:
    """In what a content is not the hub's: size or hash; empty where it is. A git blob's hash has its size in it."""
    size_bytes = os.fstat(content.fileno()).st_size
    if size_bytes != file.size_bytes:
        return f"it has {size_bytes} bytes instead of {file.size_bytes}"
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)
    while piece := content.read(HASHED_BYTES):
        digest.update(piece)
    return "" if digest.hexdigest() == file.blob else f"its hash is {digest.hexdigest()} instead of {file.blob}"


@contextmanager
def _owned(part: Path, name: str) -> Iterator[IO[bytes]]:
    """The part, for this process alone. Raises PullUnderWay."""
    with part.open("ab+") as content:
        try:
            fcntl.flock(content, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PullUnderWay(name) from None
        yield content
