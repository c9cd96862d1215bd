"""Which models the farm serves: model cards that node agents publish in Redis and API nodes read.

`{farm}:models` is a set of names, `{farm}:model:<name>` a card with a time to live, `{farm}:tokenizer:<sha256>` the
tokenizer JSON (shared by models that have the same one); all in one hash slot.
"""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import NamedTuple

import msgpack
from redis.asyncio import Redis

from scheduler.errors import QueueUnavailable, UnknownModel
from scheduler.image_tokens import ImageRule
from scheduler.outages import redis_errors
from scheduler.wire import known_fields

CARD_TTL_S = 60
"""A card that its node agent does not renew for this long is gone."""

FRESH_S = 1.0
"""A reader answers from memory for this long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What an API node must know of a model to render, count and bound a prompt without its files.

    `adapters` are names that can be asked for like a model's.
    What `scores_prompts` can tell the log-probabilities of a prompt's tokens.
    `tool_format` is the name of mlx-lm's parser for the model's tool calls. `task`: generate, embed or rerank; a model
    that embeds has `dimensions`, and `short_dimensions` to which its vectors may be cut (() for any, None for none).
    A model that sees has a rule for `images`. Of a provider's model `provider` is the protocol (task: chat), and there
    is no tokenizer; `max_output_tokens` is asked for where a request leaves it open.
    """

    name: str
    created_s: int
    context_tokens: int
    vocab_tokens: int
    tokenizer_sha256: str
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    eos_token_ids: tuple[int, ...]
    think_start: str | None
    think_end: str | None
    has_tool_calling: bool
    tool_call_start: str | None
    tool_call_end: str | None
    engine: str
    parameters: int
    weight_bytes: int
    state: str = "loaded"
    adapters: tuple[str, ...] = ()
    obeys_grammars: bool = False
    scores_prompts: bool = False
    tool_format: str | None = None
    task: str = "generate"
    dimensions: int | None = None
    short_dimensions: tuple[int, ...] | None = None
    images: ImageRule | None = None
    provider: str = ""
    max_output_tokens: int = 0

    def encode(self) -> bytes:
        """To msgpack."""
        return bytes(msgpack.packb(asdict(self)))

    @staticmethod
    def decode(data: bytes) -> ModelCard:
        """From msgpack. Unknown fields of newer writers are ignored."""
        card = known_fields(ModelCard, msgpack.unpackb(data, use_list=False))
        if card.get("images") is not None:
            card["images"] = ImageRule.of(card["images"])
        return ModelCard(**card)


class Served(NamedTuple):
    """Who serves a name: a model, with one of its adapters where the name is that one's."""

    card: ModelCard
    adapter: str | None = None


class ModelCatalog:
    """Publish, renew, list and look up model cards. All methods raise QueueUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._tokenizers: dict[str, str] = {}
        self._cards: tuple[float, list[ModelCard]] | None = None
        self._refusal: tuple[float, QueueUnavailable] | None = None
        self._asking = asyncio.Lock()

    async def publish(self, card: ModelCard, tokenizer_json: str) -> None:
        """Make a card visible for CARD_TTL_S; repeat before that to keep it."""
        async with redis_errors(), self._redis.pipeline(transaction=True) as pipe:
            packed = zlib.compress(tokenizer_json.encode())
            pipe.set(f"{{farm}}:tokenizer:{card.tokenizer_sha256}", packed, ex=CARD_TTL_S)
            pipe.set(f"{{farm}}:model:{card.name}", card.encode(), ex=CARD_TTL_S)
            pipe.sadd("{farm}:models", card.name)
            await pipe.execute()

    async def renew(self, card: ModelCard) -> bool:
        """Keep a published card for another CARD_TTL_S; False when Redis has forgotten it (publish again)."""
        async with redis_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.expire(f"{{farm}}:tokenizer:{card.tokenizer_sha256}", CARD_TTL_S)
            pipe.expire(f"{{farm}}:model:{card.name}", CARD_TTL_S)
            pipe.sadd("{farm}:models", card.name)  # a node that saw the card expired may have removed the name since
            tokenizer, model, _ = await pipe.execute()
            return bool(tokenizer and model)

    async def withdraw(self, name: str) -> None:
        """Remove a card: its last worker has left on purpose."""
        async with redis_errors():
            await self._redis.delete(f"{{farm}}:model:{name}")

    async def cards(self) -> list[ModelCard]:
        """All current cards, by name."""
        return await self._cards_since(time.monotonic())

    async def _cards_since(self, moment_s: float) -> list[ModelCard]:
        """What was read after a moment: of many callers at once one asks Redis, the others take its answer.

        That it did not answer is an answer too: nobody waits for the same silence again.
        """
        asked_s = time.monotonic()
        async with self._asking:
            if self._cards is not None and self._cards[0] >= moment_s:
                return self._cards[1]
            if self._refusal is not None and self._refusal[0] >= asked_s:
                raise self._refusal[1]
            try:
                self._cards = (time.monotonic(), await self._read())
            except QueueUnavailable as error:
                self._refusal = (time.monotonic(), error)
                raise
            return self._cards[1]

    async def _read(self) -> list[ModelCard]:
        async with redis_errors():
            names = sorted(name.decode() for name in await self._members())
            raw = await self._redis.mget([f"{{farm}}:model:{name}" for name in names]) if names else []
            gone = [name for name, data in zip(names, raw, strict=True) if data is None]
            if gone:
                await self._forget(gone)
        return [ModelCard.decode(data) for data in raw if data is not None]

    async def keep_fresh(self) -> None:
        """Ask Redis before anybody has to wait for it, for ever."""
        while True:
            with suppress(QueueUnavailable):  # then those who need a card ask, and are told
                await self._cards_since(time.monotonic())
            await asyncio.sleep(FRESH_S / 2)

    async def get(self, name: str) -> ModelCard:
        """A model's card, up to FRESH_S old. Raises UnknownModel, with the nearest names, when nobody serves it."""
        served = await self.find(name)
        if served.adapter is not None:
            raise UnknownModel(name, [served.card.name])
        return served.card

    async def find(self, name: str) -> Served:
        """Who serves a name that may be an adapter's; as `get` otherwise.

        A model goes before an adapter of the same name; of two models' adapters, that of the first model by name.
        """
        served = _by_name(await self._cards_since(time.monotonic() - FRESH_S))
        if name not in served:  # it may have come since
            served = _by_name(await self._cards_since(time.monotonic()))
        if name not in served:
            raise UnknownModel(name, difflib.get_close_matches(name, served, n=3, cutoff=0.4))
        return served[name]

    async def tokenizer_json(self, card: ModelCard) -> str:
        """The tokenizer file of a model; kept in memory by its hash. Raises UnknownModel when it has expired."""
        if card.tokenizer_sha256 not in self._tokenizers:
            async with redis_errors():
                data = await self._redis.get(f"{{farm}}:tokenizer:{card.tokenizer_sha256}")
            if data is None:
                raise UnknownModel(card.name, [])
            self._tokenizers[card.tokenizer_sha256] = zlib.decompress(data).decode()
        return self._tokenizers[card.tokenizer_sha256]

    async def _members(self) -> set[bytes]:
        members = self._redis.smembers("{farm}:models")
        return set(await members)  # type: ignore[misc]

    async def _forget(self, names: list[str]) -> None:
        await self._redis.srem("{farm}:models", *names)  # type: ignore[misc]


def _by_name(cards: Sequence[ModelCard]) -> dict[str, Served]:
    adapters = {adapter: Served(card, adapter) for card in reversed(cards) for adapter in card.adapters}
    return adapters | {card.name: Served(card) for card in cards}


def tokenizer_hash(tokenizer_json: str) -> str:
    """The name under which a tokenizer is stored."""
    return hashlib.sha256(tokenizer_json.encode()).hexdigest()
