"""Pixels come from a process of its own: upright, RGB, of the size that the header promised, or not at all."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from scheduler.images import ImageRefused
from tests.pictures import picture, png_of_size, saved
from workers.decoding import Undecodable, decode, pixels


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_an_image_stands_upright(orientation: int | None) -> None:
    data = picture(1, 9, 5, orientation=orientation)
    with Image.open(io.BytesIO(data)) as stored:
        assert pixels(data) == ImageOps.exif_transpose(stored).convert("RGB").tobytes()


def test_every_kind_of_pixel_becomes_rgb() -> None:
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        image = Image.new(mode, (3, 2))
        [decoded] = decode([saved(image, "PNG")])
        assert (decoded.mode, decoded.size) == ("RGB", (3, 2))


def test_several_images_keep_their_order() -> None:
    files = [picture(seed, 10 + seed, 20, kind) for seed, kind in enumerate(("PNG", "JPEG", "WEBP"))]
    for data, image in zip(files, decode(files), strict=True):
        with Image.open(io.BytesIO(data)) as stored:
            assert np.array_equal(np.asarray(image), np.asarray(stored.convert("RGB")))
    assert decode([]) == []


def test_a_damaged_file_is_undecodable() -> None:
    whole = picture(1, 40, 40, "PNG")
    for data in (whole[: len(whole) // 2], png_of_size(40, 40), picture(2, kind="JPEG")[:400]):
        with pytest.raises(Undecodable, match="damaged"):
            decode([data])
    with pytest.raises(ImageRefused, match="no PNG"):
        decode([b"nothing"])


def test_a_text_that_unpacks_to_gigabytes_ends_only_the_decoder() -> None:
    bomb = zlib.compress(bytes(200_000_000), 9)
    chunk = len(bomb + b"note\0\0").to_bytes(4, "big") + b"zTXt" + b"note\0\0" + bomb
    crc = zlib.crc32(chunk[4:]).to_bytes(4, "big")
    data = picture(1, 4, 4)
    at = data.index(b"IDAT") - 4
    with pytest.raises(Undecodable):
        decode([data[:at] + chunk + crc + data[at:]])


def test_the_decoder_says_why_it_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "workers.decoding"], input=png_of_size(90, 90), capture_output=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"OSError" in done.stderr
