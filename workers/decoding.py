"""`python -m workers.decoding`: turns image files into pixels, in a process of its own with bounded memory and time.

Decoders are old code that reads strangers' bytes: what goes wrong in one of them ends this process, not the model's.
One file comes in on the standard input, its pixels leave on the standard output.
"""

from __future__ import annotations

import io
import resource
import subprocess
import sys
import warnings
from collections.abc import Sequence

from PIL import Image, UnidentifiedImageError

from scheduler.images import MAX_IMAGE_PIXELS, ImageHead, read_head

MEMORY_BYTES = 2**30
CPU_S = 10
WAIT_S = 60.0
_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_270,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_90,),
}
"""What puts an image upright, by its EXIF orientation."""


class Undecodable(Exception):
    """An image's pixels cannot be had; the message is a sentence for who has sent it."""


def decode(files: Sequence[bytes]) -> list[Image.Image]:
    """Upright RGB images, decoded by another process. Raises Undecodable, ImageRefused."""
    heads = [read_head(data) for data in files]
    images = []
    for head, data in zip(heads, files, strict=True):
        command = [sys.executable, "-P", "-m", "workers.decoding"]
        try:
            done = subprocess.run(command, input=data, capture_output=True, timeout=WAIT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise Undecodable("The image takes too long to decode.") from error
        width, height = head.shown_size
        if done.returncode != 0 or len(done.stdout) != 3 * width * height:
            raise Undecodable("The image cannot be decoded; it may be damaged.")
        images.append(Image.frombytes("RGB", (width, height), done.stdout))
    return images


def pixels(data: bytes) -> bytes:
    """Upright RGB pixels, row by row. Raises what Pillow raises, ValueError for another size than the header's."""
    head: ImageHead = read_head(data)
    Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(io.BytesIO(data), formats=(head.format.value,)) as stored:
            if stored.size != (head.width, head.height):
                raise ValueError("the image has another size than its header says")
            image = stored.convert("RGB")
    for turn in _TURNS.get(head.orientation, ()):
        image = image.transpose(turn)
    return image.tobytes()


def main() -> None:
    """One file on the standard input, its pixels on the standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    try:
        sys.stdout.buffer.write(pixels(sys.stdin.buffer.read()))
    except (OSError, ValueError, SyntaxError, MemoryError, UnidentifiedImageError, Warning) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
