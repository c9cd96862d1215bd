"""Prompts' blocks with known bytes, and a store to put them into; used in several processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from workers.engine.paged.block_file import SUFFIX, Arrays
from workers.engine.paged.blocks import chain_hash, root_hash
from workers.engine.paged.store import PrefixStore

FLUSH_S = 20.0
BLOCK_BYTES = 2 * 4 * 8 * 4


def chain(blocks: int, *, start: int = 0) -> list[bytes]:
    """The hashes of a prompt's blocks; prompts of another `start` share none."""
    hashes = [root_hash("test", str(start))]
    for number in range(blocks):
        hashes.append(chain_hash(hashes[-1], [number]))
    return hashes[1:]


def content(hashes: list[bytes]) -> Arrays:
    """Each block holds bytes made from its hash, so that any mix-up shows."""
    seeds = [int.from_bytes(block_hash[:4], "little") for block_hash in hashes]
    keys = [np.random.default_rng(seed).standard_normal((4, 8), np.float32) for seed in seeds]
    return {"0.keys": np.stack(keys), "0.values": -np.stack(keys)}


@contextmanager
def opened(folder: Path, **options: object) -> Iterator[PrefixStore]:
    values = {"max_bytes": 10**9, "max_age_s": 3600.0, "identity": b"model", "refresh_s": 0.0} | options
    store = PrefixStore(folder, **values)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        store.close(FLUSH_S)


def save(store: PrefixStore, hashes: list[bytes]) -> None:
    store.save(hashes, content(hashes))
    assert store.flush(FLUSH_S)


def assert_loads(store: PrefixStore, hashes: list[bytes], blocks: int) -> None:
    loaded = store.load(hashes)
    assert loaded.blocks == blocks
    if blocks == 0:
        assert loaded.arrays == {}
        return
    expected = content(hashes[:blocks])
    assert loaded.arrays.keys() == expected.keys()
    for name, array in loaded.arrays.items():
        np.testing.assert_array_equal(array, expected[name])


def stored_files(folder: Path) -> list[Path]:
    """Longest unused first."""
    return sorted(folder.glob(f"*/*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)


def damage(path: Path) -> None:
    """One bit of the last block's bytes."""
    damaged = bytearray(path.read_bytes())
    if damaged:  # another process may have torn it
        damaged[-1] ^= 1
    path.write_bytes(damaged)
