"""A secret in a file of its own: readable by its owner only, whole or not there, and the same for all who make it.

Read anew each time, so that a file that is put there, or replaced, is found.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from scheduler.errors import FarmError

Refusal = Callable[[str, str], FarmError]
"""Makes the error from where the secret is and why it cannot be used."""


class SecretFile:
    """`refusal` makes what is raised where the file cannot be read, or written, or is readable by others."""

    def __init__(self, path: Path, refusal: Refusal) -> None:
        self.path = path
        self._refusal = refusal

    @property
    def where(self) -> str:
        """For a message."""
        return str(self.path)

    def read(self) -> bytes | None:
        """The content without white space around it, or None where there is no file. Raises the refusal."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._refusal(self.where, f"cannot be read: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise self._refusal(self.where, f"can be read by others: chmod 600 {self.path}")
            return file.read().strip()

    def make(self, text: str) -> None:
        """A new file; where another process was faster, its content stays. Raises the refusal."""
        whole = self._written(text)
        try:
            with suppress(FileExistsError):
                os.link(whole, self.path)
            whole.unlink()
        except OSError as error:
            raise self._refusal(self.where, f"cannot be written: {error.strerror}") from error

    def replace(self, text: str) -> None:
        """Other content in one step. Raises the refusal."""
        whole = self._written(text)
        try:
            whole.replace(self.path)
        except OSError as error:
            raise self._refusal(self.where, f"cannot be written: {error.strerror}") from error

    def _written(self, text: str) -> Path:
        """A file of this user's beside it, on the disk before it gets the name."""
        whole = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{text}\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._refusal(self.where, f"cannot be written: {error.strerror}") from error
        return whole
