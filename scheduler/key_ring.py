"""The keys as one process knows them: in memory, so that checking one asks nobody. api/key_watch.py fills it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Final

from scheduler.errors import InvalidKey, RecordUnavailable
from scheduler.keys import ApiKey, KeyState, KeyTerms, Role, key_id_of, mac_of, new_key_id, pepper_id_of

_STRANGER: Final = ApiKey(
    id=new_key_id(),
    version=0,
    terms=KeyTerms(name="nobody", tenant="nobody", role=Role.CLIENT),
    pepper_id="",
    mac=secrets.token_bytes(32),
    created_ms=0,
    revoked_ms=0,
)
"""An unknown id is checked against this key, which fits nothing: that takes as long as a known one's."""


class KeyRing:
    """Every key that has ever been made, with its last change; `version` is the newest change known here.

    `strangers` are ids of keys that were made with another pepper than this node has.
    """

    def __init__(self) -> None:
        self._keys: dict[str, ApiKey] = {}
        self._pepper = secrets.token_bytes(32)
        self._pepper_id = ""
        self._is_read = self._has_pepper = False
        self.version = 0
        self.strangers: list[str] = []

    def learn(self, changed: Sequence[ApiKey], pepper: bytes | None) -> None:
        """Take what has changed since `version`. Without a pepper no key fits."""
        pepper_id = self._pepper_id
        if pepper is not None:
            self._pepper, self._pepper_id = pepper, pepper_id_of(pepper)
        for key in changed:
            self._keys[key.id] = key
            self.version = max(self.version, key.version)
        if changed or pepper_id != self._pepper_id:
            self.strangers = [key.id for key in self._keys.values() if key.pepper_id != self._pepper_id]
        self._is_read = True

    def suspect(self, *, has_pepper: bool) -> None:
        """The record does not answer. A pepper says that there are keys: nobody gets in until they have been read."""
        self._has_pepper = has_pepper

    @property
    def is_required(self) -> bool:
        """Are there keys? Once there was one, nobody gets in without: revoking the last does not open the farm."""
        return bool(self._keys) or (self._has_pepper and not self._is_read)

    def find(self, key_id: str) -> ApiKey:
        """A key, whatever its state. Raises RecordUnavailable while it has not been read."""
        self._require_read()
        if key_id not in self._keys:
            raise RecordUnavailable(f"the key {key_id} has not been read yet")
        return self._keys[key_id]

    def check(self, text: str | None, now_ms: int | None = None) -> ApiKey:
        """The active key of this text. Raises InvalidKey; RecordUnavailable while the keys are not read."""
        key_id = key_id_of(text)
        if text is None or key_id is None:
            raise InvalidKey
        self._require_read()
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        key = self._keys.get(key_id, _STRANGER)
        if not key.fits(mac_of(self._pepper, text), now_ms):
            raise InvalidKey
        state = key.state(now_ms)
        if state is not KeyState.ACTIVE:
            raise InvalidKey(f"The API key {key_id} is {state}. Ask an admin of this farm for another.")
        return key

    def _require_read(self) -> None:
        if not self._is_read:
            raise RecordUnavailable("the keys have not been read yet")
