"""The farm's pepper: a secret outside the database without which no key in it can be checked.

`FARM_KEY_PEPPER`, or the file `FARM_HOME/pepper`, which the first key makes. Nodes with a FARM_HOME of their own need
the same one.
"""

from __future__ import annotations

import secrets

from scheduler.errors import PepperUnusable
from scheduler.secret_file import SecretFile
from scheduler.settings import FarmSettings

LEAST_BYTES = 32


class Pepper:
    """Where the pepper is."""

    def __init__(self, settings: FarmSettings) -> None:
        self._given = settings.key_pepper.get_secret_value() if settings.key_pepper else ""
        self._file = SecretFile(settings.home_path / "pepper", PepperUnusable)

    @property
    def where(self) -> str:
        """Its file."""
        return self._file.where

    def read(self) -> bytes | None:
        """The pepper, or None where there is none. Raises PepperUnusable."""
        if self._given:
            return _checked(self._given.encode(), "FARM_KEY_PEPPER")
        found = self._file.read()
        return None if found is None else _checked(found, self.where)

    def read_or_make(self) -> bytes:
        """The pepper; a new file where there is none. Raises PepperUnusable."""
        if (found := self.read()) is not None:
            return found
        self._file.make(secrets.token_hex(LEAST_BYTES))
        made = self.read()
        if made is None:
            raise PepperUnusable(self.where, "went away while it was made")
        return made


def _checked(pepper: bytes, where: str) -> bytes:
    if len(pepper) < LEAST_BYTES:
        raise PepperUnusable(where, f"is shorter than {LEAST_BYTES} characters; make one: openssl rand -hex 32")
    return pepper
