"""What is said of an image without decoding it: what Pillow says of it, and nothing that would be dangerous passes."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from scheduler.images import MAX_IMAGE_BYTES, ImageFormat, ImageRefused, read_head
from tests.pictures import picture, png_of_size, saved

KINDS = [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("WEBP", {"lossless": True})]
sizes = st.integers(1, 70)


@given(sizes, sizes, st.sampled_from(KINDS), st.none() | st.integers(1, 8))
def test_a_head_says_what_pillow_says(
    width: int, height: int, kind: tuple[str, dict[str, bool]], orientation: int | None
) -> None:
    data = picture(1, width, height, kind[0], orientation=orientation, **kind[1])
    head = read_head(data)
    with Image.open(io.BytesIO(data)) as image:
        assert (head.format, head.width, head.height) == (ImageFormat(kind[0]), *image.size)
        assert head.shown_size == ImageOps.exif_transpose(image).size
    assert head.orientation == (orientation or 1)


@given(st.sampled_from(KINDS), st.data())
def test_a_damaged_file_is_refused_or_has_a_head(kind: tuple[str, dict[str, bool]], draw: st.DataObject) -> None:
    data = bytearray(picture(2, 9, 7, kind[0], orientation=6, **kind[1]))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    del data[draw.draw(st.integers(0, len(data))) :]
    try:
        head = read_head(bytes(data))
    except ImageRefused:
        return
    assert head.width > 0 < head.height


@given(st.binary(max_size=64), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF0000WEBPVP8X"]))
def test_no_bytes_break_the_reading_of_a_head(rest: bytes, start: bytes) -> None:
    with contextlib.suppress(ImageRefused):
        read_head(start + rest)


def frames(kind: str, count: int) -> bytes:
    """An animation."""
    first, *others = (Image.new("RGB", (4, 4), (shade, 0, 0)) for shade in range(0, 20 * count, 20))
    return saved(first, kind, save_all=True, append_images=others)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no PNG, JPEG or WebP"),
        (saved(Image.new("RGB", (2, 2)), "GIF"), "no PNG, JPEG or WebP"),
        (saved(Image.new("RGB", (2, 2)), "TIFF"), "no PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no PNG, JPEG or WebP"),
        (frames("PNG", 3), "animated"),
        (frames("WEBP", 3), "animated"),
        (png_of_size(65_500, 65_500), "65500 x 65500"),
        (png_of_size(0, 5), "no pixels"),
        (picture(1) + bytes(MAX_IMAGE_BYTES), "bytes"),
        (picture(1, kind="JPEG") + 101 * b"\xff\xda", "scans"),
        (picture(1, kind="JPEG")[:30], "ends before"),
    ],
)
def test_what_is_not_taken_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageRefused, match=reason):
        read_head(data)
