"""What an image file says of itself in its first bytes: format, size, orientation. Pure; no pixel is decoded here.

Only still PNG, JPEG and WebP files of bounded size are taken, so that what decodes them later has bounded work.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

MAX_IMAGE_BYTES = 20 * 2**20
MAX_IMAGE_PIXELS = 40_000_000
MAX_SCANS = 100
"""Of a progressive JPEG, each of which decodes the whole picture again; encoders make about ten."""


class ImageRefused(Exception):
    """A file that is no image, or none that is taken; the message is a sentence for who has sent it."""


class ImageFormat(StrEnum):
    """By the names that Pillow has for them."""

    PNG = "PNG"
    JPEG = "JPEG"
    WEBP = "WEBP"


@dataclass(frozen=True, slots=True)
class ImageHead:
    """`width` and `height` as stored, in pixels. `orientation` is EXIF's: 1 for none, 5 to 8 lie on their side."""

    format: ImageFormat
    width: int
    height: int
    orientation: int = 1

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) once the image stands upright."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_head(data: bytes) -> ImageHead:
    """Raises ImageRefused for another format, for more than one frame, or for too many bytes or pixels."""
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageRefused(f"The image has {len(data)} bytes; at most {MAX_IMAGE_BYTES} are taken.")
    try:
        head = _head(data)
    except (struct.error, IndexError) as error:
        raise ImageRefused("The image ends before its header does.") from error
    if not (head.width and head.height):
        raise ImageRefused("The image has no pixels.")
    if head.width * head.height > MAX_IMAGE_PIXELS:
        size = f"{head.width} x {head.height}"
        raise ImageRefused(f"The image has {size} pixels; at most {MAX_IMAGE_PIXELS // 10**6} million are taken.")
    return head


def _head(data: bytes) -> ImageHead:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    raise ImageRefused("It is no PNG, JPEG or WebP image.")


def _png(data: bytes) -> ImageHead:
    """https://www.w3.org/TR/png-3/, sections 5 and 11."""
    if data[12:16] != b"IHDR":
        raise ImageRefused("The PNG image does not begin with its header.")
    width, height = struct.unpack_from(">II", data, 16)
    orientation = 1
    for kind, start, end in _png_chunks(data):
        if kind == b"acTL":
            raise ImageRefused("The PNG image is animated; send one of its frames.")
        if kind == b"eXIf":
            orientation = _orientation(data[start:end])
    return ImageHead(ImageFormat.PNG, width, height, orientation)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, begin of content, its end) of each chunk before the pixels."""
    at = 8
    while at + 8 <= len(data) and data[at + 4 : at + 8] != b"IDAT":
        (length,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8], at + 8, at + 8 + length
        at += 12 + length


def _jpeg(data: bytes) -> ImageHead:
    """ITU-T T.81, annex B: segments up to the first scan."""
    if len(re.findall(b"\xff\xda", data)) > MAX_SCANS:
        raise ImageRefused(f"The JPEG image has more than {MAX_SCANS} scans.")
    orientation, at = 1, 2
    while True:
        while data[at + 1] == 0xFF:
            at += 1
        marker = data[at + 1]
        if data[at] != 0xFF or marker in (0xD9, 0xDA):
            raise ImageRefused("The JPEG image does not say its size.")
        (length,) = struct.unpack_from(">H", data, at + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return ImageHead(ImageFormat.JPEG, width, height, orientation)
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _orientation(data[at + 10 : at + 2 + length])
        at += 2 + length


def _webp(data: bytes) -> ImageHead:
    """https://www.rfc-editor.org/rfc/rfc9649.html, section 2."""
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return ImageHead(ImageFormat.WEBP, width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return ImageHead(ImageFormat.WEBP, (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind != b"VP8X":
        raise ImageRefused("The WebP image does not say its size.")
    if data[20] & 0x02:
        raise ImageRefused("The WebP image is animated; send one of its frames.")
    width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    return ImageHead(ImageFormat.WEBP, width, height, _webp_orientation(data))


def _webp_orientation(data: bytes) -> int:
    at = 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        if data[at : at + 4] == b"EXIF":
            return _orientation(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2
    return 1


def _orientation(exif: bytes) -> int:
    """The tag 0x0112 of a TIFF structure's first directory; 1 where it is not there or makes no sense."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, first)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, first + 2 + 12 * entry)
            if (tag, kind) == (0x0112, 3):
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
