"""Files of blocks: what comes back is what was written, or nothing."""

import hashlib
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from workers.engine.paged import block_file
from workers.engine.paged.block_file import Arrays, BadFile

IDENTITY = "0123" * 8
HASHES = tuple(hashlib.blake2b(bytes([number]), digest_size=16).digest() for number in range(3))
NAME = block_file.file_name(HASHES)


def some_arrays(blocks: int = 3) -> Arrays:
    random = np.random.default_rng(5)
    return {
        "0.keys": random.standard_normal((blocks, 2, 4, 8)).astype(np.float32),
        "0.values": random.standard_normal((blocks, 2, 4, 6)).astype(np.float16),
        "1.bits": random.integers(0, 2**16, (blocks, 2, 4), dtype=np.uint16),
    }


def assert_same(arrays: Arrays, expected: Arrays) -> None:
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype
        assert array.shape == expected[name].shape
        assert array.tobytes() == expected[name].tobytes()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    block_file.write(tmp_path, IDENTITY, HASHES, some_arrays())
    return tmp_path / NAME


def test_a_file_gives_back_what_was_written(written: Path) -> None:
    hashes, arrays = block_file.read(written, IDENTITY)
    assert hashes == HASHES
    assert_same(arrays, some_arrays())
    assert block_file.read_hashes(written, IDENTITY) == (HASHES, written.stat().st_size)


@given(code=st.sampled_from(sorted(block_file.DTYPES)), blocks=st.integers(1, 16), rest=st.lists(st.integers(0, 5)))
@settings(max_examples=40, deadline=None)
def test_every_type_and_shape_comes_back_and_the_size_was_foreseen(
    tmp_path_factory: pytest.TempPathFactory, code: str, blocks: int, rest: list[int]
) -> None:
    shape = (blocks, *rest[:4])
    bits = np.random.default_rng(1).integers(0, 2, shape)
    arrays = {"ünïcode/名\n": bits.astype(block_file.DTYPES[code]), "other": np.zeros((blocks, 0), np.float32)}
    hashes = [hashlib.blake2b(bytes([number]), digest_size=16).digest() for number in range(blocks)]
    folder = tmp_path_factory.mktemp("files")
    file_bytes = block_file.write(folder, IDENTITY, hashes, arrays)
    path = folder / block_file.file_name(hashes)
    assert file_bytes == path.stat().st_size <= block_file.file_bytes_at_most(hashes, arrays)
    read_hashes, read_arrays = block_file.read(path, IDENTITY)
    assert read_hashes == tuple(hashes)
    assert_same(read_arrays, arrays)


def test_blocks_that_are_a_part_of_larger_arrays_are_written_alone(tmp_path: Path) -> None:
    large = some_arrays(blocks=9)
    strided = {name: array[::3] for name, array in large.items()}
    block_file.write(tmp_path, IDENTITY, HASHES, strided)
    _, arrays = block_file.read(tmp_path / NAME, IDENTITY)
    assert_same(arrays, strided)


def test_common_tools_can_look_into_a_file(written: Path) -> None:
    with safe_open(written, framework="np") as file:
        assert file.metadata()["hashes"].split() == [one.hex() for one in HASHES]
        assert_same({name: file.get_tensor(name) for name in file.keys()}, some_arrays())  # noqa: SIM118


def test_only_the_owner_can_read_a_file_and_nothing_else_is_left(written: Path) -> None:
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert os.listdir(written.parent) == [NAME]


@pytest.mark.parametrize("sixteenths", range(16))
def test_a_truncated_file_is_bad(written: Path, sixteenths: int) -> None:
    os.truncate(written, written.stat().st_size * sixteenths // 16)
    with pytest.raises(BadFile):
        block_file.read(written, IDENTITY)


def test_a_file_whose_end_never_reached_the_disk_is_bad(written: Path) -> None:
    file_bytes = written.stat().st_size
    os.truncate(written, file_bytes - 64)
    os.truncate(written, file_bytes)
    with pytest.raises(BadFile, match="checksum"):
        block_file.read(written, IDENTITY)


def test_no_flipped_bit_changes_what_is_read(written: Path) -> None:
    content = written.read_bytes()
    data_start = 8 + int.from_bytes(content[:8], "little")
    places = [*range(data_start * 8), *range(data_start * 8, len(content) * 8, 97)]
    unnoticed = 0
    for place in places:
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        written.write_bytes(flipped)
        try:
            hashes, arrays = block_file.read(written, IDENTITY)
        except BadFile:
            continue
        unnoticed += 1  # in the padding behind the header, or a hexadecimal digit's case
        assert hashes == HASHES
        assert_same(arrays, some_arrays())
    assert unnoticed < 150


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_bad_and_nothing_worse(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / NAME
    for bytes_in_file in (content, len(content).to_bytes(8, "little") + content):
        path.write_bytes(bytes_in_file)
        with pytest.raises(BadFile):
            block_file.read(path, IDENTITY)


METADATA = {"identity": IDENTITY, "hashes": " ".join(one.hex() for one in HASHES), "crc32": "0"}
FIELD = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}


@pytest.mark.parametrize(
    "header",
    [
        [],
        {},
        {"a": FIELD},
        {"__metadata__": METADATA},
        {"__metadata__": METADATA | {"hashes": ""}},
        {"__metadata__": METADATA | {"hashes": "zz"}},
        {"__metadata__": METADATA | {"crc32": None}},
        {"__metadata__": METADATA, "a": FIELD | {"dtype": "BF16"}},
        {"__metadata__": METADATA, "a": FIELD | {"shape": [2]}},
        {"__metadata__": METADATA, "a": FIELD | {"shape": [-3, -1]}},
        {"__metadata__": METADATA, "a": FIELD | {"shape": [3.0]}},
        {"__metadata__": METADATA, "a": FIELD | {"shape": [3, 2**80], "data_offsets": [0, 12 * 2**80]}},
        {"__metadata__": METADATA, "a": FIELD | {"shape": []}},
        {"__metadata__": METADATA, "a": FIELD | {"shape": [1, 3]}},
        {"__metadata__": METADATA, "a": FIELD | {"data_offsets": [-12, 0]}},
        {"__metadata__": METADATA, "a": FIELD | {"data_offsets": [0.0, 12.0]}},
        {"__metadata__": METADATA, "a": FIELD | {"data_offsets": [8, 20]}},
        {"__metadata__": METADATA, "a": FIELD | {"data_offsets": [0]}},
        {"__metadata__": METADATA, "a": FIELD},
    ],
)
def test_a_header_that_does_not_fit_is_bad(tmp_path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / NAME
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    with pytest.raises(BadFile):
        block_file.read(path, IDENTITY)


def test_a_header_nested_too_deep_is_bad(tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes((10**6).to_bytes(8, "little") + b"[" * 10**6)
    with pytest.raises(BadFile):
        block_file.read_hashes(path, IDENTITY)


def test_files_of_other_models_under_other_names_or_of_other_programs_are_bad(written: Path) -> None:
    with pytest.raises(BadFile, match="elsewhere"):
        block_file.read(written, "f" * 32)
    renamed = written.rename(written.with_name("0" * 32 + block_file.SUFFIX))
    with pytest.raises(BadFile, match="elsewhere"):
        block_file.read(renamed, IDENTITY)
    save_file(some_arrays(), renamed)
    with pytest.raises(BadFile, match="no header of blocks"):
        block_file.read(renamed, IDENTITY)


def test_a_folder_that_is_gone_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        block_file.write(tmp_path / "gone", IDENTITY, HASHES, some_arrays())
    with pytest.raises(FileNotFoundError):
        block_file.read(tmp_path / NAME, IDENTITY)
