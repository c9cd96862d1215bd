"""The farm's data folder as `serve` uses it: its subfolders, its one-owner lock, and where the Unix socket can live."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from farm.errors import CommandError

MAX_SOCKET_PATH_BYTES = 100
"""Unix socket addresses end at 104 bytes on macOS and 108 on Linux."""


@dataclass(frozen=True, slots=True)
class Home:
    """Paths under FARM_HOME."""

    path: Path

    @property
    def run(self) -> Path:
        """Socket, lock and process ids."""
        return self.path / "run"

    @property
    def logs(self) -> Path:
        """One log file per process."""
        return self.path / "logs"

    @property
    def valkey(self) -> Path:
        """The append-only files of the embedded Valkey."""
        return self.path / "valkey"

    def create(self) -> None:
        """Make the folders, readable by this user only. Raises CommandError."""
        for folder in (self.path, self.run, self.logs, self.valkey):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise CommandError(
                    f"Cannot create the data folder {folder}: {error.strerror}. Set FARM_HOME to a writable one."
                ) from error

    def socket(self) -> Path:
        """The embedded Valkey's socket: under `run`, or in a private temporary folder when that path is too long."""
        path = self.run / "valkey.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
            return path
        name = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"mlx-farm-{os.getuid()}-{name}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077:
            raise CommandError(
                f"{folder} is not a private folder of this user, so the Valkey socket cannot live there. "
                "Remove it, or set FARM_HOME to a shorter path."
            )
        return folder / "valkey.sock"


class HomeLock:
    """At most one `serve` per data folder. The kernel drops the lock with the process, however it ends."""

    def __init__(self, home: Home) -> None:
        self._path = home.run / "serve.lock"
        self._home = home
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock or raise CommandError naming the process that has it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode().strip() or "unknown"
            os.close(descriptor)
            raise CommandError(
                f"Another 'mlx-farm serve' (pid {owner}) is running on {self._home.path}. "
                "Stop it first, or give this one its own --home and --port."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
