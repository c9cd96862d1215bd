"""Providers for admins: added, changed, given other keys, disabled. Keys go in and never come out."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from api.authorization import actor_of
from api.bodies import JsonResponse, JsonRoute
from api.node import CurrentNode, Node
from scheduler.errors import QueueUnavailable
from scheduler.models import ModelCard
from scheduler.providers import (
    KeptProvider,
    Kind,
    LengthField,
    Provider,
    ProviderModel,
    ProviderName,
    check_address,
    read_provider,
)

router = APIRouter(prefix="/admin/providers", tags=["admin"], route_class=JsonRoute)

Key = Annotated[SecretStr, Field(strict=False, max_length=4096, description="Written, never shown. Empty: none.")]


class ProviderTerms(BaseModel):
    """What a provider is; left-out numbers have their defaults."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Annotated[Kind, Field(strict=False)]
    base_url: str = Field(max_length=2048, description="With the version: https://api.openai.com/v1")
    models: list[ProviderModel] = Field(min_length=1, max_length=200)
    timeout_s: float = Field(600.0, gt=0, le=86_400, description="Of a whole answer.")
    silence_s: float = Field(120.0, gt=0, le=86_400, description="For its next byte.")
    concurrency: int = Field(16, ge=1, le=1024, description="Requests at once, of one worker and one model.")
    length_field: Annotated[LengthField, Field(strict=False)] = Field(
        LengthField.COMPLETION, description="OpenAI's protocol: what the longest answer is called there."
    )


class NewProvider(ProviderTerms):
    """A provider with its key."""

    name: ProviderName
    key: Key = SecretStr("")


class NewProviderKey(BaseModel):
    """Another key."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key: Key


@router.get("")
async def list_providers(node: CurrentNode) -> Response:
    """All providers, disabled ones too, and which of their models a worker serves now."""
    cards = {card.name: card for card in await node.catalog.cards()}
    data = [provider_object(kept, cards) for kept in await node.providers.all()]
    return JsonResponse({"object": "list", "data": data})


@router.post("", status_code=201)
async def create_provider(new: NewProvider, node: CurrentNode, request: Request) -> Response:
    """Add a provider. Workers for providers serve its models within a second."""
    provider = _provider(node, new.name, new)
    kept = await node.providers.create(provider, new.key.get_secret_value(), actor_of(request))
    return JsonResponse(await _changed(node, kept), status_code=201)


@router.get("/{name}")
async def get_provider(name: str, node: CurrentNode) -> Response:
    """One provider, without its key."""
    return JsonResponse(await _shown(node, await node.providers.get(name)))


@router.post("/{name}")
async def change_provider(name: str, terms: ProviderTerms, node: CurrentNode, request: Request) -> Response:
    """Other terms, all of them; the key stays. What has begun goes on with those of before."""
    await node.providers.get(name)
    kept = await node.providers.change(_provider(node, name, terms), actor_of(request))
    return JsonResponse(await _changed(node, kept))


@router.post("/{name}/rotate")
async def rotate_key(name: str, new: NewProviderKey, node: CurrentNode, request: Request) -> Response:
    """Another key for the provider's next requests."""
    kept = await node.providers.rotate(name, new.key.get_secret_value(), actor_of(request))
    return JsonResponse(await _changed(node, kept))


@router.post("/{name}/disable")
async def disable_provider(name: str, node: CurrentNode, request: Request) -> Response:
    """Begin nothing there any more; what has begun goes on."""
    return JsonResponse(await _changed(node, await node.providers.enable(name, actor_of(request), enabled=False)))


@router.post("/{name}/enable")
async def enable_provider(name: str, node: CurrentNode, request: Request) -> Response:
    """Let it serve again."""
    return JsonResponse(await _changed(node, await node.providers.enable(name, actor_of(request), enabled=True)))


def provider_object(kept: KeptProvider, cards: dict[str, ModelCard]) -> dict[str, Any]:
    """A provider as admins see it; times are ms since 1970."""
    provider = kept.provider
    names = [provider.served_name(model) for model in provider.models]
    return {
        "object": "provider",
        **provider.model_dump(mode="json"),
        "enabled": kept.enabled,
        "has_key": kept.cipher is not None,
        "serves": {name: cards[name].state for name in names if name in cards},
        "created_ms": kept.created_ms,
        "changed_ms": kept.changed_ms,
        "key_changed_ms": kept.key_changed_ms,
    }


async def _changed(node: Node, kept: KeptProvider) -> dict[str, Any]:
    """Tell the workers at once; where that fails, the scheduler does within a second."""
    with suppress(QueueUnavailable):
        await node.provider_news.tell()
    return await _shown(node, kept)


async def _shown(node: Node, kept: KeptProvider) -> dict[str, Any]:
    return provider_object(kept, {card.name: card for card in await node.catalog.cards()})


def _provider(node: Node, name: str, terms: ProviderTerms) -> Provider:
    """Raises InvalidProvider."""
    said = terms.model_dump(mode="json", include=set(ProviderTerms.model_fields))
    provider = read_provider({"name": name, **said})
    check_address(provider, node.settings.trusted_provider_hosts)
    return provider
