"""The farm's pepper: a secret outside the database without which no key in it can be checked.

`FARM_KEY_PEPPER`, or the file `FARM_HOME/pepper`, which the first key makes. Nodes with a FARM_HOME of their own need
the same one.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from scheduler.errors import PepperUnusable
from scheduler.settings import FarmSettings

LEAST_BYTES = 32


class Pepper:
    """Where the pepper is; read anew each time, so that a file that is put there is found."""

    def __init__(self, settings: FarmSettings) -> None:
        self._given = settings.key_pepper.get_secret_value() if settings.key_pepper else ""
        self._file = settings.home_path / "pepper"

    @property
    def where(self) -> str:
        """Its file."""
        return str(self._file)

    def read(self) -> bytes | None:
        """The pepper, or None where there is none. Raises PepperUnusable."""
        if self._given:
            return _checked(self._given.encode(), "FARM_KEY_PEPPER")
        try:
            descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PepperUnusable(self.where, f"cannot be read: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise PepperUnusable(self.where, f"can be read by others: chmod 600 {self._file}")
            return _checked(file.read().strip(), self.where)

    def read_or_make(self) -> bytes:
        """The pepper; a new file where there is none. Raises PepperUnusable."""
        if (found := self.read()) is not None:
            return found
        whole = self._file.with_name(f"pepper.{secrets.token_hex(4)}")
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_private(whole, secrets.token_hex(LEAST_BYTES) + "\n")
            with suppress(FileExistsError):  # another process was faster: its pepper is the pepper
                os.link(whole, self._file)
            whole.unlink()
        except OSError as error:
            raise PepperUnusable(self.where, f"cannot be written: {error.strerror}") from error
        made = self.read()
        if made is None:
            raise PepperUnusable(self.where, "went away while it was made")
        return made


def _checked(pepper: bytes, where: str) -> bytes:
    if len(pepper) < LEAST_BYTES:
        raise PepperUnusable(where, f"is shorter than {LEAST_BYTES} characters; make one: openssl rand -hex 32")
    return pepper


def _write_private(path: Path, text: str) -> None:
    """A new file of this user's; on the disk before it gets its name."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
