"""What tells one model's cached keys and values from another's, across processes and machines."""

import hashlib
from pathlib import Path

from workers.engine.paged.cache import PagedModel

SAMPLE_BYTES = 1 << 16
SAMPLES = 8  # per file, evenly spread


def model_identity(folder: Path, model: PagedModel) -> bytes:
    """Of the configuration, samples of the weights, and the form of a block. Raises OSError."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as weights:
            for sample in range(SAMPLES):
                weights.seek(sample * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(weights.read(SAMPLE_BYTES))
    for name, array in sorted(model.read_blocks([0]).items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
    return digest.digest()
