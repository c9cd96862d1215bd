"""What the record keeps encrypted: keys of providers. The secret that opens them is outside the database.

`FARM_SECRET_KEY` (Fernet keys between commas, the newest first), or the file `FARM_HOME/secret-key` with one a line,
which the first encrypted value makes. API nodes and provider workers need the same. Fernet is AES-128-CBC with
HMAC-SHA256 (https://github.com/fernet/spec); the newest key encrypts, all of them decrypt.
"""

from __future__ import annotations

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from scheduler.errors import VaultUnusable
from scheduler.secret_file import SecretFile
from scheduler.settings import FarmSettings


class Vault:
    """Encrypts and decrypts; the secret is read anew each time, so that a rotation needs no restart."""

    def __init__(self, settings: FarmSettings) -> None:
        self._given = settings.secret_key.get_secret_value() if settings.secret_key else ""
        self._file = SecretFile(settings.home_path / "secret-key", VaultUnusable)

    @property
    def where(self) -> str:
        """Where the secret is, for messages."""
        return "FARM_SECRET_KEY" if self._given else self._file.where

    @property
    def is_there(self) -> bool:
        """Is there a secret? Raises VaultUnusable where it cannot be read."""
        return bool(self._keys())

    def encrypt(self, text: str, bound_to: str) -> bytes:
        """Text that only `decrypt` with the same `bound_to` gives back: a row's cipher is nothing in another row.

        Makes the secret where there is none. Raises VaultUnusable.
        """
        keys = self._keys()
        if not keys:
            self._file.make(Fernet.generate_key().decode())
            keys = self._keys()
        return self._fernet(keys).encrypt(f"{bound_to}\0{text}".encode())

    def decrypt(self, cipher: bytes, bound_to: str) -> str:
        """Raises VaultUnusable where no key of the secret opens it, or it was made for something else."""
        try:
            owner, _, text = self._fernet(self._keys()).decrypt(cipher).decode().partition("\0")
        except InvalidToken as error:
            raise VaultUnusable(self.where, f"does not open what is kept of {bound_to!r}") from error
        if owner != bound_to:
            raise VaultUnusable(self.where, f"opens for {bound_to!r} what was encrypted for another")
        return text

    def key_of(self, cipher: bytes | None, bound_to: str) -> str:
        """The same for what may be nothing: then the text is empty. Raises VaultUnusable."""
        return "" if cipher is None else self.decrypt(cipher, bound_to)

    def begin_rotation(self) -> None:
        """A new key in front of those of the file; the old ones still decrypt. Raises VaultUnusable."""
        if self._given:
            raise VaultUnusable(self.where, "is in the environment: put a new key in front of it there, and ask again")
        keys = self._keys()
        if keys:
            self._file.replace("\n".join([Fernet.generate_key().decode(), *keys]))

    def end_rotation(self) -> None:
        """Forget all keys of the file but the newest: nothing is encrypted with them any more. Raises VaultUnusable."""
        if keys := self._keys():
            self._file.replace(keys[0])

    def _keys(self) -> list[str]:
        if self._given:
            return [key.strip() for key in self._given.split(",") if key.strip()]
        return (self._file.read() or b"").decode().split()

    def _fernet(self, keys: list[str]) -> MultiFernet:
        if not keys:
            raise VaultUnusable(self.where, "is missing; give this node the one that keys of providers were kept with")
        try:
            return MultiFernet([Fernet(key) for key in keys])
        except ValueError as error:
            raise VaultUnusable(self.where, "holds no Fernet keys (32 bytes in base64, one a line)") from error
