"""Stored blocks, with real files and threads: what is loaded is right or missing, whatever the disk does."""

import logging
import multiprocessing
import os
import resource
import stat
import time
from pathlib import Path

import numpy as np
import pytest

from tests.workers.engine.paged.stored_blocks import (
    BLOCK_BYTES,
    FLUSH_S,
    assert_loads,
    chain,
    content,
    damage,
    opened,
    save,
    stored_files,
)
from workers.engine.paged.block_file import MAX_BLOCKS
from workers.engine.paged.store import PrefixStore, StoreStats


def test_saved_blocks_are_loaded_here_and_after_a_restart(tmp_path: Path) -> None:
    hashes = chain(40)
    with opened(tmp_path / "new" / "folder") as store:
        save(store, hashes)
        assert store.find(hashes) == 40
        assert_loads(store, hashes, 40)
        assert store.stats.files == 3
    with opened(tmp_path / "new" / "folder") as store:
        assert store.find([*hashes[:20], *chain(5, start=1)]) == 20
        assert_loads(store, hashes, 40)


@pytest.mark.parametrize(("first", "end"), [(0, 1), (0, 16), (3, 7), (15, 17), (16, 40), (39, 40), (5, 5)])
def test_any_consecutive_part_is_loaded(tmp_path: Path, first: int, end: int) -> None:
    hashes = chain(40)
    with opened(tmp_path) as store:
        save(store, hashes)
        assert_loads(store, hashes[first:end], end - first)


def test_a_prompt_that_goes_on_differently_within_a_file_gets_the_common_blocks(tmp_path: Path) -> None:
    hashes = chain(40)
    with opened(tmp_path) as store:
        save(store, hashes)
        assert_loads(store, [*hashes[:20], *chain(20, start=1)], 20)


def test_only_the_blocks_before_the_first_missing_one_are_loaded(tmp_path: Path) -> None:
    hashes = chain(40)
    with opened(tmp_path) as store:
        save(store, hashes[:10])
        save(store, hashes[12:])
        assert store.find(hashes) == 10
        assert store.missing(hashes) == [10, 11]
        assert_loads(store, hashes, 10)
        stats = store.stats
        assert (stats.hits_total, stats.misses_total) == (10, 30)
        assert stats.loaded_bytes_total == 10 * BLOCK_BYTES
        save(store, hashes)
        assert_loads(store, hashes, 40)
        assert store.stats.files == 4


def test_what_is_stored_or_queued_is_not_written_again(tmp_path: Path) -> None:
    hashes = chain(20)
    with opened(tmp_path) as store:
        store.save(hashes, content(hashes))
        store.save(hashes, content(hashes))
        assert store.missing(hashes) == []
        assert store.flush(FLUSH_S)
        store.save(hashes, content(hashes))
        assert store.flush(FLUSH_S)
        assert store.stats.saved_bytes_total == store.stats.bytes
        assert store.stats.files == 2
        assert store.stats.dropped_total == 0


def test_arrays_that_files_cannot_hold_are_refused_at_once(tmp_path: Path) -> None:
    hashes = chain(2)
    with opened(tmp_path) as store:
        with pytest.raises(ValueError, match="2 blocks"):
            store.save(hashes, content(hashes[:1]))
        with pytest.raises(ValueError, match="complex64"):
            store.save(hashes, {"0.keys": np.zeros((2, 3), np.complex64)})
        assert store.stats == StoreStats()


def test_another_identity_sees_nothing_and_its_files_count_for_the_size(tmp_path: Path) -> None:
    hashes = chain(16)
    with opened(tmp_path) as store, opened(tmp_path, identity=b"other") as other:
        save(store, hashes)
        assert other.find(hashes) == 0
        assert_loads(other, hashes, 0)
        assert other.missing(hashes) == list(range(16))
        [path] = stored_files(tmp_path)
        file_bytes = path.stat().st_size
    with opened(tmp_path, identity=b"other", max_bytes=file_bytes * 3 // 2) as other:
        save(other, chain(16, start=1))
        assert not path.exists()
        assert_loads(other, chain(16, start=1), 16)


def test_a_file_copied_from_another_identity_is_deleted(tmp_path: Path) -> None:
    hashes = chain(4)
    with opened(tmp_path) as store:
        save(store, hashes)
    [path] = stored_files(tmp_path)
    with opened(tmp_path, identity=b"other") as other:
        [folder] = [folder for folder in tmp_path.iterdir() if folder != path.parent]
        copy = folder / path.name
        copy.write_bytes(path.read_bytes())
        assert other.find(hashes) == 0
        assert not copy.exists()
    assert path.exists()


@pytest.mark.parametrize("harm", ["damaged", "torn", "empty", "gone", "a folder"])
def test_a_bad_file_ends_what_is_loaded_and_is_deleted(tmp_path: Path, harm: str) -> None:
    hashes = chain(48)
    with opened(tmp_path) as store:
        save(store, hashes)
        bad = stored_files(tmp_path)[1]
        if harm == "damaged":
            damage(bad)
        elif harm in ("torn", "empty"):
            os.truncate(bad, 1000 if harm == "torn" else 0)
        else:
            bad.unlink()
        if harm == "a folder":
            bad.mkdir()
        assert_loads(store, hashes, 16)
        assert store.find(hashes) == 16
        assert harm == "a folder" or not bad.exists()
        assert store.is_on
    if harm != "a folder":
        with opened(tmp_path) as store:
            save(store, hashes)
            assert_loads(store, hashes, 48)


@pytest.mark.parametrize("sixteenths", range(16))
def test_a_file_torn_by_a_crash_is_a_miss_after_the_restart(tmp_path: Path, sixteenths: int) -> None:
    hashes = chain(16)
    with opened(tmp_path) as store:
        save(store, hashes)
    [path] = stored_files(tmp_path)
    os.truncate(path, path.stat().st_size * sixteenths // 16)
    with opened(tmp_path) as store:
        assert_loads(store, hashes, 0)
        assert not path.exists()
        save(store, hashes)
        assert_loads(store, hashes, 16)


def test_files_that_are_not_its_own_are_left_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        save(store, chain(1))
    [path] = stored_files(tmp_path)
    foreign = [tmp_path / "model.safetensors", path.parent / "notes.txt", tmp_path / "other" / path.name]
    for one in foreign:
        one.parent.mkdir(exist_ok=True)
        one.write_bytes(b"precious")
        os.utime(one, (0, 0))
    leftover, recent = path.parent / "tmpabc.tmp", path.parent / "tmpdef.tmp"
    leftover.touch()
    recent.touch()
    os.utime(leftover, (0, 0))
    with opened(tmp_path, max_bytes=1, max_age_s=1.0) as store:
        assert store.find(chain(1)) in (0, 1)  # the writer thread may have been faster
    assert [one.read_bytes() for one in foreign] == [b"precious"] * 3
    assert not path.exists()
    assert not leftover.exists()
    assert recent.exists()


def test_prompts_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with opened(folder) as store:
        save(store, chain(1))
    [path] = stored_files(folder)
    assert [stat.S_IMODE(one.stat().st_mode) for one in (folder, path.parent, path)] == [0o700, 0o700, 0o600]


def test_the_size_limit_holds_and_the_least_recently_used_go_first(tmp_path: Path) -> None:
    prompts = [chain(16, start=start) for start in range(12)]
    with opened(tmp_path) as store:
        save(store, prompts[0])
        file_bytes = store.stats.bytes
    max_bytes = 6 * file_bytes
    with opened(tmp_path, max_bytes=max_bytes) as store:
        for prompt in prompts:
            assert_loads(store, prompts[0], 16)
            save(store, prompt)
            assert sum(path.stat().st_size for path in stored_files(tmp_path)) <= max_bytes
            assert_loads(store, prompt, 16)
        found = [store.find(prompt) for prompt in prompts]
        assert found[0] == found[-1] == 16
        assert found[1:] == sorted(found[1:])
        assert 3 <= store.stats.files <= 6
        assert store.stats.files == len(stored_files(tmp_path))
        assert store.stats.dropped_total == 0


def test_a_file_is_not_evicted_before_one_that_continues_it(tmp_path: Path) -> None:
    hashes = chain(5 * MAX_BLOCKS)
    with opened(tmp_path) as store:
        save(store, hashes)
        file_bytes = store.stats.bytes // 5
    with opened(tmp_path) as store:
        assert store.find(hashes) == len(hashes)
    with opened(tmp_path, max_bytes=int(3.5 * file_bytes)) as store:
        save(store, chain(1, start=1))
        assert store.find(hashes) == 3 * MAX_BLOCKS


def test_a_file_larger_than_the_limit_is_dropped_and_evicts_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, max_bytes=3000) as store:
        save(store, chain(1))
        save(store, chain(16, start=1))
        assert store.stats.dropped_total == 16
        assert store.find(chain(1)) == 1
        assert store.is_on


def test_files_unused_for_too_long_are_deleted(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        save(store, chain(1))
        save(store, chain(1, start=1))
    old, _ = stored_files(tmp_path)
    long_ago_s = time.time() - 100
    os.utime(old, (long_ago_s, long_ago_s))
    with opened(tmp_path, max_age_s=50.0) as store:
        assert store.flush(FLUSH_S)
        assert not old.exists()
        assert store.find(chain(1)) == 0
        assert store.find(chain(1, start=1)) == 1


def test_a_full_queue_drops_blocks_and_counts_them(tmp_path: Path) -> None:
    hashes = chain(50)
    with opened(tmp_path, queue_bytes=2 * MAX_BLOCKS * BLOCK_BYTES) as store:
        store.save(hashes, content(hashes))  # put into the queue in one go
        assert store.flush(FLUSH_S)
        assert store.stats.dropped_total == 18
        assert_loads(store, hashes, 32)
        assert store.missing(hashes) == list(range(32, 50))
    with opened(tmp_path, queue_bytes=0) as store:
        assert store.missing(hashes) == []


def test_closing_writes_what_is_queued_for_a_bounded_time(tmp_path: Path) -> None:
    hashes = chain(64)
    store = PrefixStore(tmp_path, max_bytes=10**9, max_age_s=60.0, identity=b"model")
    store.save(hashes, content(hashes))
    store.close(FLUSH_S)
    store.close(FLUSH_S)
    assert not store.is_on
    assert store.find(hashes) == 0
    assert store.load(hashes).blocks == 0
    assert store.missing(hashes) == []
    store.save(hashes, content(hashes))
    assert store.flush(FLUSH_S)
    with opened(tmp_path) as reopened:
        assert_loads(reopened, hashes, 64)

    hurried = PrefixStore(tmp_path / "second", max_bytes=10**9, max_age_s=60.0, identity=b"model")
    hurried.save(hashes, content(hashes))
    hurried.close(0.0)
    hurried.close(FLUSH_S)  # the writer may have had one file in hand
    written = len(stored_files(tmp_path / "second")) * MAX_BLOCKS
    assert written + hurried.stats.dropped_total == 64


def test_a_folder_that_cannot_be_created_switches_the_store_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING), opened(tmp_path / "file") as store:
        assert not store.is_on
        assert store.find(chain(1)) == 0
        store.save(chain(1), content(chain(1)))
        assert_loads(store, chain(1), 0)
    assert len(caplog.records) == 1


def test_a_folder_that_vanishes_is_created_again(tmp_path: Path) -> None:
    with opened(tmp_path / "folder") as store:
        save(store, chain(2))
        [path] = stored_files(tmp_path / "folder")
        path.unlink()
        path.parent.rmdir()
        path.parent.parent.rmdir()
        assert store.find(chain(2)) == 0
        save(store, chain(2))
        assert_loads(store, chain(2), 2)


def test_a_file_in_the_folders_place_switches_the_store_off_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), opened(tmp_path / "folder", refresh_s=3600.0) as store:
        save(store, chain(20))
        (tmp_path / "folder").rename(tmp_path / "moved")
        (tmp_path / "folder").touch()
        more = chain(20, start=1)
        for _ in range(3):
            store.save(more, content(more))
            assert store.flush(FLUSH_S)
        assert not store.is_on
        assert store.stats.dropped_total == 20
        assert_loads(store, chain(20), 0)
    assert len(caplog.records) == 1
    assert str(tmp_path / "folder") in caplog.text


def write_to_a_full_disk(folder: Path) -> None:
    """In its own process: no file may become larger than 1000 bytes, which the system reports like a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with opened(folder) as store:
        hashes = chain(32)
        store.save(hashes, content(hashes))
        assert store.flush(FLUSH_S)
        assert not store.is_on
        assert store.stats.dropped_total == 32
        assert_loads(store, hashes, 0)
    assert not list(folder.glob("*/*"))


def test_a_full_disk_switches_the_store_off_and_leaves_nothing(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=write_to_a_full_disk, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
