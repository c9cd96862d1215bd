"""Files: rows in SQL, contents in one folder under names that the farm makes, never under a client's.

A content is whole on the disk before its row is committed, and goes after its row has gone; what a crash leaves in
between is swept. API nodes and batch processes on several machines share the folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Executable, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from ulid import ULID

from scheduler.database import record_errors
from scheduler.errors import FileTooLarge, QuotaExceeded, UnknownFile
from scheduler.tables import FileRow

INTERNAL = "internal"
"""Purpose of files that only the farm itself reads: in no listing, found by no client."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

STRAY_S = 6 * 3600.0
"""A content without a row for this long belongs to nobody any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file's row; `expires_ms` None: kept until it is deleted."""

    id: str
    tenant: str
    purpose: str
    filename: str
    size_bytes: int
    sha256: str
    created_ms: int
    expires_ms: int | None = None


class IncomingFile:
    """A content being written; `seal` or `discard` ends it. Raises FileTooLarge beyond `limit_bytes`."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        incoming = folder / "incoming"
        incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = incoming / secrets.token_hex(16)
        self.size_bytes = 0
        self._limit_bytes = limit_bytes
        self._hash = hashlib.sha256()
        self._file = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    @property
    def sha256(self) -> str:
        """Of what was written so far, in hex."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append."""
        self.size_bytes += len(data)
        if self.size_bytes > self._limit_bytes:
            raise FileTooLarge(self._limit_bytes)
        self._hash.update(data)
        self._file.write(data)

    def flush(self) -> None:
        """Let others read what was written so far."""
        self._file.flush()

    def seal(self, target: Path) -> None:
        """Bring the content to the disk, under its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.path.rename(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        """Forget the content; after `seal` a no-op."""
        self._file.close()
        self.path.unlink(missing_ok=True)


class FileStore:
    """All queries raise RecordUnavailable when the database does not answer."""

    def __init__(self, engine: AsyncEngine, folder: Path) -> None:
        self._engine = engine
        self.folder = folder

    def path(self, file_id: str) -> Path:
        """Where a content is; of an id that a row has."""
        return self.folder / file_id

    def receive(self, limit_bytes: int) -> IncomingFile:
        """Begin to write a content."""
        return IncomingFile(self.folder, limit_bytes)

    def publish(self, file: StoredFile, incoming: IncomingFile) -> None:
        """Bring a content to the disk under its file's name. Blocks."""
        incoming.seal(self.path(file.id))

    async def add(self, file: StoredFile, quota_bytes: int) -> None:
        """Commit the row of a published content. Raises QuotaExceeded; the content is removed then."""
        try:
            async with record_errors(), self._engine.begin() as connection:
                used = (await connection.execute(_used(file.tenant))).scalar_one()
                if used + file.size_bytes > quota_bytes:
                    raise QuotaExceeded(int(used), quota_bytes)
                await add_file(connection, file)
        except QuotaExceeded:
            self.path(file.id).unlink(missing_ok=True)
            raise

    async def used_bytes(self, tenant: str) -> int:
        """What a tenant's files take."""
        return int((await self._all(_used(tenant)))[0][0])

    async def get(self, tenant: str, file_id: str) -> StoredFile:
        """A tenant's file. Raises UnknownFile."""
        if not is_id(file_id):
            raise UnknownFile(file_id)
        table = FileRow.__table__
        query = select(table).where(table.c.id == file_id, table.c.tenant == tenant, table.c.purpose != INTERNAL)
        for row in await self._all(query.where(_alive())):
            return StoredFile(**row._mapping)
        raise UnknownFile(file_id)

    async def page(
        self, tenant: str, *, purpose: str | None, after: str | None, limit: int, newest_first: bool
    ) -> list[StoredFile]:
        """A tenant's files in the order of their making; `after` is the last id of the page before."""
        table = FileRow.__table__
        query = select(table).where(table.c.tenant == tenant, table.c.purpose != INTERNAL, _alive()).limit(limit)
        if purpose is not None:
            query = query.where(table.c.purpose == purpose)
        if after is not None:
            query = query.where(table.c.id < after if newest_first else table.c.id > after)
        query = query.order_by(table.c.id.desc() if newest_first else table.c.id)
        return [StoredFile(**row._mapping) for row in await self._all(query)]

    async def delete(self, file_ids: Sequence[str]) -> None:
        """Remove rows, then contents. Idempotent."""
        async with record_errors(), self._engine.begin() as connection:
            await connection.execute(delete(FileRow).where(FileRow.id.in_(file_ids)))
        for file_id in file_ids:
            self.path(file_id).unlink(missing_ok=True)

    async def internal(self, file_ids: Sequence[str]) -> list[str]:
        """Those of them that the farm made for itself."""
        query = select(FileRow.id).where(FileRow.id.in_(file_ids), FileRow.purpose == INTERNAL)
        return [str(row.id) for row in await self._all(query)]

    async def expired(self, limit: int = 500) -> list[str]:
        """Files past their time."""
        query = select(FileRow.id).where(FileRow.expires_ms <= _now_ms()).limit(limit)
        return [str(row.id) for row in await self._all(query)]

    async def sweep(self) -> int:
        """Remove contents that no row names and nobody writes any more; return how many."""
        before_s = time.time() - STRAY_S
        old = [path for path in self._contents() if _modified_s(path) < before_s]
        if not old:
            return 0
        known = {row.id for row in await self._all(select(FileRow.id))}
        strays = [path for path in old if path.name not in known]
        for path in strays:
            path.unlink(missing_ok=True)
        return len(strays)

    def _contents(self) -> list[Path]:
        return [path for path in (*self.folder.glob("*"), *self.folder.glob("incoming/*")) if path.is_file()]

    async def _all(self, query: Executable) -> Sequence[Any]:
        async with record_errors(), self._engine.connect() as connection:
            rows: Sequence[Any] = (await connection.execute(query)).all()
            return rows


async def add_file(connection: AsyncConnection, file: StoredFile) -> None:
    """Insert a file's row in a transaction of the caller's."""
    await connection.execute(insert(FileRow).values({name: getattr(file, name) for name in StoredFile.__slots__}))


def is_id(text: str) -> bool:
    """Could this be an id of ours? What could not need not be looked for (PostgreSQL refuses some texts)."""
    return _ID.fullmatch(text) is not None


def new_file_id() -> str:
    """Sortable by time, 80 random bits."""
    return f"file-{ULID()}"


def _used(tenant: str) -> Any:
    return select(func.coalesce(func.sum(FileRow.size_bytes), 0)).where(FileRow.tenant == tenant)


def _alive() -> Any:
    return FileRow.expires_ms.is_(None) | (FileRow.expires_ms > _now_ms())


def _modified_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
