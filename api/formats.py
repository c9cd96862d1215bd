"""Prompt formats (template and tokenizer) of the models that this node renders for, kept while they are in use."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from scheduler.errors import NoTokenizer
from scheduler.models import ModelCard, ModelCatalog
from scheduler.prompts import PromptFormat

KEPT_FORMATS = 8
"""A large vocabulary's tokenizer takes some 50 MB."""

THREAD_CHARS = 20_000
"""Rendering and encoding more than this would hold up the other streams of this node for milliseconds."""


class PromptFormats:
    """Makes and keeps PromptFormats. Raises what ModelCatalog raises, and NoTokenizer for a provider's model."""

    def __init__(self, catalog: ModelCatalog) -> None:
        self._catalog = catalog
        self._kept: OrderedDict[ModelCard, PromptFormat] = OrderedDict()
        self._making = asyncio.Lock()

    async def get(self, card: ModelCard) -> PromptFormat:
        """The format of a model; making one takes up to a second, in a thread."""
        if card.provider:
            raise NoTokenizer(card.name)
        if card not in self._kept:
            async with self._making:
                if card not in self._kept:
                    text = await self._catalog.tokenizer_json(card)
                    self._kept[card] = await asyncio.to_thread(PromptFormat, card, text)
        self._kept.move_to_end(card)
        while len(self._kept) > KEPT_FORMATS:
            self._kept.popitem(last=False)
        return self._kept[card]
