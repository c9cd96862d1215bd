"""Model cards live as long as somebody renews them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgpack
import pytest
from redis.asyncio import Redis

from scheduler.errors import QueueUnavailable, UnknownModel
from scheduler.models import CARD_TTL_S, ModelCard, ModelCatalog, Served, tokenizer_hash
from scheduler.process import cancel_all
from tests.conftest import RedisServer
from tests.scheduler.builders import make_card


async def test_a_published_card_is_seen_by_other_nodes(redis: Redis) -> None:
    card = make_card(tokenizer_sha256=tokenizer_hash("{}"))
    await ModelCatalog(redis).publish(card, "{}")
    reader = ModelCatalog(redis)
    assert await reader.cards() == [card]
    assert await reader.get(card.name) == card
    assert await reader.tokenizer_json(card) == "{}"


async def test_a_model_that_has_just_come_is_found_although_the_others_were_read_before(redis: Redis) -> None:
    reader = ModelCatalog(redis)
    with pytest.raises(UnknownModel):
        await reader.get("demo")
    card = make_card()
    await ModelCatalog(redis).publish(card, "{}")
    assert await reader.get(card.name) == card


async def test_cards_that_are_kept_fresh_need_no_question_when_they_are_wanted(
    own_redis_server: RedisServer, own_redis: Redis
) -> None:
    catalog, card = ModelCatalog(own_redis), make_card()
    await catalog.publish(card, "{}")
    keeping = asyncio.create_task(catalog.keep_fresh())
    try:
        assert await catalog.get(card.name) == card
        own_redis_server.kill()
        assert await catalog.get(card.name) == card
    finally:
        await cancel_all([keeping])


async def test_cards_and_tokenizers_have_a_time_to_live(redis: Redis) -> None:
    catalog, card = ModelCatalog(redis), make_card()
    await catalog.publish(card, "{}")
    for key in (f"{{farm}}:model:{card.name}", f"{{farm}}:tokenizer:{card.tokenizer_sha256}"):
        assert 0 < await redis.ttl(key) <= CARD_TTL_S
        await redis.expire(key, 5)
    assert await catalog.renew(card)
    assert await redis.ttl(f"{{farm}}:model:{card.name}") > 5


@pytest.mark.parametrize("key", ["{farm}:model:demo", "{farm}:tokenizer:abc"])
async def test_a_card_that_redis_forgot_must_be_published_again(redis: Redis, key: str) -> None:
    catalog, card = ModelCatalog(redis), make_card()
    await catalog.publish(card, "{}")
    await redis.delete(key)
    assert not await catalog.renew(card)


async def test_a_card_that_is_renewed_is_listed_even_if_its_name_was_removed(redis: Redis) -> None:
    catalog, card = ModelCatalog(redis), make_card()
    await catalog.publish(card, "{}")
    await redis.srem("{farm}:models", card.name)  # type: ignore[misc]
    await catalog.renew(card)
    assert await ModelCatalog(redis).cards() == [card]


async def test_a_withdrawn_card_is_gone_and_its_name_forgotten(redis: Redis) -> None:
    catalog = ModelCatalog(redis)
    await catalog.publish(make_card(), "{}")
    await catalog.withdraw("demo")
    assert await catalog.cards() == []
    assert await redis.smembers("{farm}:models") == set()  # type: ignore[misc]
    with pytest.raises(UnknownModel, match="GET /v1/models"):
        await catalog.get("demo")


async def test_an_unknown_model_is_answered_with_the_nearest_names(redis: Redis) -> None:
    catalog = ModelCatalog(redis)
    for name in ("qwen3-8b", "qwen3-4b", "llama"):
        await catalog.publish(replace(make_card(), name=name), "{}")
    with pytest.raises(UnknownModel, match=r"'qwen3-8' is not served here. Did you mean 'qwen3-8b'") as caught:
        await catalog.get("qwen3-8")
    assert caught.value.nearest == ["qwen3-8b", "qwen3-4b"]


async def test_an_adapter_is_found_by_its_name_with_its_model(redis: Redis) -> None:
    catalog = ModelCatalog(redis)
    base, other = make_card(adapters=("sql", "demo-2")), replace(make_card(), name="demo-2", adapters=("sql", "poems"))
    for card in (base, other):
        await catalog.publish(card, "{}")
    assert await catalog.cards() == [base, other]
    assert await catalog.find("demo") == Served(base, None)
    assert await catalog.find("poems") == Served(other, "poems")
    assert await catalog.find("sql") == Served(base, "sql")  # the first model's that has one of this name
    assert await catalog.find("demo-2") == Served(other, None)  # a model's name is stronger
    with pytest.raises(UnknownModel, match="Did you mean 'poems'"):
        await catalog.find("poem")
    with pytest.raises(UnknownModel, match="Did you mean 'demo-2'"):
        await catalog.get("poems")


async def test_a_tokenizer_that_has_expired_is_an_unknown_model(redis: Redis) -> None:
    with pytest.raises(UnknownModel):
        await ModelCatalog(redis).tokenizer_json(make_card())


async def test_without_redis_the_catalog_says_so(own_redis_server: RedisServer, own_redis: Redis) -> None:
    own_redis_server.kill()
    with pytest.raises(QueueUnavailable):
        await ModelCatalog(own_redis).cards()
    own_redis_server.start()


async def test_a_field_that_only_a_newer_node_knows_is_ignored(redis: Redis) -> None:
    """F48: a farm is upgraded node by node."""
    catalog, card = ModelCatalog(redis), make_card()
    await catalog.publish(card, "{}")
    newer = msgpack.packb(msgpack.unpackb(card.encode()) | {"speaks": ["whale"]})
    await redis.set(f"{{farm}}:model:{card.name}", newer)
    assert await ModelCatalog(redis).cards() == [card]


async def test_a_card_of_an_older_node_has_the_defaults_of_what_it_does_not_say(redis: Redis) -> None:
    card = make_card(adapters=("a",), obeys_grammars=True, tool_format="x")
    told = msgpack.unpackb(card.encode())
    older = {key: value for key, value in told.items() if key not in ("adapters", "obeys_grammars", "tool_format")}
    assert ModelCard.decode(msgpack.packb(older)) == make_card()
