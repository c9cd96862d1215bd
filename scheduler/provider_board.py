"""Providers as provider workers know them: a copy of the record in Redis, so that no worker needs SQL.

`{farm}:providers` is a JSON object; the keys in it are as encrypted as those in the record.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import orjson
from redis.asyncio import Redis

from scheduler.outages import redis_errors
from scheduler.providers import KeptProvider, read_provider

KEY = "{farm}:providers"


class ProviderBoard:
    """All methods raise QueueUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def publish(self, providers: Sequence[KeptProvider]) -> None:
        """All of them, disabled ones too, in place of what was there."""
        said = {"version": newest_of(providers), "providers": [_said(kept) for kept in providers]}
        async with redis_errors():
            await self._redis.set(KEY, orjson.dumps(said))

    async def read(self) -> tuple[int, list[KeptProvider]]:
        """The version of the newest change, and all providers; 0 and none where nothing was published."""
        async with redis_errors():
            data = await self._redis.get(KEY)
        if data is None:
            return 0, []
        said = orjson.loads(data)
        return said["version"], [_kept(each) for each in said["providers"]]


def newest_of(providers: Sequence[KeptProvider]) -> int:
    """The version of the last change; 0 before the first."""
    return max((kept.version for kept in providers), default=0)


def _said(kept: KeptProvider) -> dict[str, Any]:
    cipher = None if kept.cipher is None else base64.b64encode(kept.cipher).decode()
    times = {name: getattr(kept, name) for name in ("created_ms", "changed_ms", "key_changed_ms")}
    about = {"version": kept.version, "enabled": kept.enabled, "cipher": cipher}
    return {"provider": kept.provider.model_dump(mode="json"), **about, **times}


def _kept(said: dict[str, Any]) -> KeptProvider:
    cipher = said.pop("cipher")
    provider = read_provider(said.pop("provider"))
    return KeptProvider(provider=provider, cipher=None if cipher is None else base64.b64decode(cipher), **said)
