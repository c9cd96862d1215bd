"""Several stores on one folder, in one process and in several: each loads what is right, or misses."""

import contextlib
import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest

from tests.workers.engine.paged.stored_blocks import assert_loads, chain, content, damage, opened, save, stored_files
from workers.engine.paged.block_file import SUFFIX

PROCESSES = 3
ROUNDS = 150


def harm(folder: Path, random: np.random.Generator) -> None:
    """Delete, damage or cut off any file, whoever is reading or replacing it now."""
    files = list(folder.glob(f"*/*{SUFFIX}"))
    if not files:
        return
    path = files[random.integers(0, len(files))]
    with contextlib.suppress(FileNotFoundError):
        match random.integers(0, 3):
            case 0:
                path.unlink()
            case 1:
                damage(path)
            case _:
                os.truncate(path, 700)


def use_shared(folder: Path, number: int) -> None:
    """What each process does: load and save overlapping prompts while the limit makes all of them evict."""
    random = np.random.default_rng(number)
    hits = 0
    with opened(folder, max_bytes=40_000) as store:
        for _ in range(ROUNDS):
            hashes = chain(int(random.integers(1, 60)), start=int(random.integers(0, 3)))
            found = store.load(hashes)
            hits += found.blocks
            for name, array in content(hashes[: found.blocks]).items() if found.blocks else ():
                np.testing.assert_array_equal(found.arrays[name], array)
            save(store, hashes[int(random.integers(0, len(hashes))) :])
            if random.integers(0, 10) == 0:
                harm(folder, random)
        assert store.is_on
    assert hits > 0


def test_processes_that_share_a_folder_load_only_what_is_right(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=use_shared, args=(tmp_path, number)) for number in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    assert not list(tmp_path.glob("*/*.tmp"))


def test_what_another_store_writes_and_evicts_is_seen(tmp_path: Path) -> None:
    hashes = chain(20)
    with opened(tmp_path) as store, opened(tmp_path) as other:
        save(other, hashes)
        assert store.find(hashes) == 20
        assert_loads(store, hashes, 20)
        first = stored_files(tmp_path)[0]
        first.unlink()
        assert store.find(hashes) == other.find(hashes) == 0
        assert store.find(hashes[16:]) == 4
        save(store, hashes)
        assert_loads(other, hashes, 20)


def test_a_file_that_another_process_replaced_by_a_shorter_one_is_read_as_it_is(tmp_path: Path) -> None:
    hashes = chain(10)
    with opened(tmp_path / "one") as store, opened(tmp_path / "two") as other:
        save(store, hashes)
        save(other, hashes[4:])
        [mine], [theirs] = stored_files(tmp_path / "one"), stored_files(tmp_path / "two")
        os.replace(theirs, mine)
        assert_loads(store, hashes[6:], 4)
        assert_loads(store, hashes, 0)
        assert store.find(hashes) == 0


def test_a_file_that_another_process_wrote_meanwhile_is_not_written_again(tmp_path: Path) -> None:
    hashes = chain(10)
    with opened(tmp_path, refresh_s=3600.0) as store, opened(tmp_path) as other:
        save(other, hashes)
        assert store.find(hashes) == 0
        save(store, hashes)
        assert store.stats.saved_bytes_total == store.stats.dropped_total == 0


@pytest.mark.parametrize(("changed_s", "found"), [(-3600.0, 0), (3600.0, 1)])
def test_the_folder_is_read_again_unless_its_time_of_change_proves_that_nothing_changed(
    tmp_path: Path, changed_s: float, found: int
) -> None:
    """Two changes in one tick of the file system's clock have the same time: only an old time proves anything."""
    same_tick_s = time.time() + changed_s
    with opened(tmp_path) as store, opened(tmp_path) as other:
        [folder] = tmp_path.iterdir()
        os.utime(folder, (same_tick_s, same_tick_s))
        assert store.find(chain(1)) == 0
        save(other, chain(1))
        os.utime(folder, (same_tick_s, same_tick_s))
        assert store.find(chain(1)) == found
