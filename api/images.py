"""Images that a request shows: read from its data URLs, or fetched where the operator allows it, and checked by header.

A fetched image is kept with the job as a sent one is, so that nothing is fetched again when the job is resumed.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import httpcore2

from api.errors import InvalidParameter, Unsupported
from scheduler.image_tokens import ImageRule
from scheduler.images import MAX_IMAGE_BYTES, ImageRefused, read_head
from scheduler.models import ModelCard
from scheduler.outbound import ForbiddenAddress, PublicOnly, check_url

MAX_IMAGES = 64
MAX_BYTES = 64 * 2**20
"""Of all images of one request."""

FETCH_S = 10.0
FETCHES = 4
"""At once, of one request."""

THREAD_URL_CHARS = 200_000
"""Decoding more than this would hold up the other streams of this node."""

_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.ASCII)
_SHOWN_URL_CHARS = 60


class ShownImage(NamedTuple):
    """A file, and how large it is once it stands upright, in pixels."""

    data: bytes
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Shown:
    """The images of one request, each as (path, URL), and by their URLs those that have been read."""

    named: Sequence[tuple[str, str]] = ()
    read: dict[str, ShownImage] = field(default_factory=dict)

    def renamed(self, own_path: Callable[[str], str]) -> Shown:
        """The same images under the paths that the caller wrote."""
        return Shown([(own_path(path), url) for path, url in self.named], self.read)


class ImageSource:
    """Reads the images of requests; `trusted` are `host:port` that need be neither https nor public."""

    def __init__(self, *, remote: bool, trusted: frozenset[str]) -> None:
        self._remote = remote
        self._trusted = trusted

    async def load(self, shown: Shown, card: ModelCard) -> None:
        """Read what has not been read. Raises ApiError by path, also where the model does not see."""
        if not shown.named:
            return
        first = shown.named[0][0]
        if card.images is None:
            raise Unsupported(first, f"The model {card.name!r} reads text only; ask one that sees (docs/vision.md).")
        if len(shown.named) > MAX_IMAGES:
            raise InvalidParameter(first, f"A request shows at most {MAX_IMAGES} images, this one {len(shown.named)}.")
        places = {url: path for path, url in reversed(shown.named) if url not in shown.read}
        turns = asyncio.Semaphore(FETCHES)
        tasks = [asyncio.create_task(self._image(path, url, card.images, turns)) for url, path in places.items()]
        try:
            for url, task in zip(places, tasks, strict=True):
                shown.read[url] = await task
                if sum(len(image.data) for image in shown.read.values()) > MAX_BYTES:
                    raise InvalidParameter(places[url], f"The images of a request have at most {MAX_BYTES} bytes.")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _image(self, path: str, url: str, rule: ImageRule, turns: asyncio.Semaphore) -> ShownImage:
        if url[:5].lower() == "data:":
            large = len(url) > THREAD_URL_CHARS
            data = await asyncio.to_thread(_data_of, url, path) if large else _data_of(url, path)
        else:
            async with turns:
                data = await self._fetched(path, url)
        try:
            size = read_head(data).shown_size
            rule.tokens_of(*size)
            return ShownImage(data, *size)
        except ImageRefused as error:
            raise InvalidParameter(path, str(error), code="invalid_image") from error

    async def _fetched(self, path: str, url: str) -> bytes:
        if not self._remote:
            hint = "Images are not fetched here (FARM_REMOTE_IMAGES): send the image itself, as data:image/png;base64,…"
            raise Unsupported(path, hint)
        try:
            check_url(url, self._trusted)
            async with asyncio.timeout(FETCH_S):
                return await self._get(url)
        except ForbiddenAddress as error:  # which address a name has here is nobody's business
            message = f"{url[:_SHOWN_URL_CHARS]} is not fetched: only https:// on port 443, of public addresses."
            raise InvalidParameter(path, message, code="invalid_image_url") from error
        except ImageRefused as error:
            raise InvalidParameter(path, str(error), code="invalid_image_url") from error
        except (OSError, httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException) as error:
            reason = str(error) or type(error).__name__
            message = f"{url[:_SHOWN_URL_CHARS]} could not be fetched: {reason}."
            raise InvalidParameter(path, message, code="invalid_image_url") from error

    async def _get(self, url: str) -> bytes:
        """Raises ImageRefused for an answer that is no image of bounded size; redirects are not followed."""
        backend = PublicOnly(self._trusted)
        async with httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(), network_backend=backend, keepalive_expiry=0
        ) as pool:
            headers = [("accept", "image/png, image/jpeg, image/webp"), ("user-agent", "mlx-farm")]
            async with pool.stream("GET", url, headers=headers) as response:
                if response.status != 200:
                    raise ImageRefused(f"The server answered HTTP {response.status}; redirects are not followed.")
                kind = next((value for name, value in response.headers if name.lower() == b"content-type"), b"")
                if not kind.lower().startswith(b"image/"):
                    raise ImageRefused(f"The server sent {kind.decode('latin-1')[:_SHOWN_URL_CHARS]!r}, no image.")
                data = bytearray()
                async for part in response.aiter_stream():
                    data += part
                    if len(data) > MAX_IMAGE_BYTES:
                        raise ImageRefused(f"The image has more than {MAX_IMAGE_BYTES} bytes.")
                return bytes(data)


def _data_of(url: str, path: str) -> bytes:
    """https://www.rfc-editor.org/rfc/rfc2397.html, with base64."""
    head = _DATA_URL.match(url)
    if head is None:
        raise InvalidParameter(path, "An image is data:image/png;base64,… (or jpeg, webp).", code="invalid_image_url")
    if (len(url) - head.end()) * 3 // 4 > MAX_IMAGE_BYTES + 3:
        raise InvalidParameter(path, f"The image has more than {MAX_IMAGE_BYTES} bytes.", code="invalid_image")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidParameter(path, f"The image is no base64: {error}.", code="invalid_image") from error
