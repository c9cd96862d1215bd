"""One file of consecutive blocks on disk: written whole or not at all, and read only if it is what its name says.

The format is safetensors (8 bytes header length, JSON header, arrays), so that a file can be looked into with common
tools. Each array has the blocks on its first axis. The metadata name the model's identity, the blocks' hashes and a
CRC-32 over these, the arrays' names, types and shapes, and all their bytes. The name is the hash of the last block.
Files are written with the library and read by hand: the library holds the interpreter's lock while it reads, which
would stop the other threads, and copies once more.
"""

import json
import math
import os
import re
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

MAX_BLOCKS: Final = 16  # per file: files of one block are read at half the speed, but a large one is read whole
SUFFIX: Final = ".safetensors"
TEMPORARY_SUFFIX: Final = ".tmp"
NAME: Final = re.compile(r"[0-9a-f]{32}\.safetensors")
DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),  # bfloat16 too, which numpy does not know: the reader's pools say what the bits are
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
CODES: Final = {dtype: code for code, dtype in DTYPES.items()}
Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]


class BadFile(Exception):
    """The file is torn, damaged, of another model, or no file of blocks."""


@dataclass(frozen=True, slots=True)
class _Place:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int  # in the file
    end: int


@dataclass(frozen=True, slots=True)
class _Header:
    identity: str
    hashes: tuple[bytes, ...]
    crc: int
    arrays: dict[str, _Place]


def file_name(hashes: Sequence[bytes]) -> str:
    """The name of the file that holds these blocks, in this order."""
    return hashes[-1].hex() + SUFFIX


def file_bytes_at_most(hashes: Sequence[bytes], arrays: Arrays) -> int:
    """An upper bound of the size of the file of these blocks."""
    header_bytes = 512 + sum(3 * len(block_hash) for block_hash in hashes)
    return header_bytes + sum(array.nbytes + 6 * len(name) + 192 for name, array in arrays.items())


def write(folder: Path, identity: str, hashes: Sequence[bytes], arrays: Arrays) -> int:
    """Write the blocks' file into `folder` and return its size; only its owner can read it.

    It appears under its name when it is complete. It is not synced: a crash may tear it, the reader notices.
    Raises OSError; nothing is left behind then.
    """
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    layout = {name: (CODES[array.dtype], array.shape) for name, array in tensors.items()}
    crc = _crc(identity, hashes, layout, tensors)
    metadata = {"identity": identity, "hashes": " ".join(one.hex() for one in hashes), "crc32": f"{crc:08x}"}
    descriptor, temporary = tempfile.mkstemp(suffix=TEMPORARY_SUFFIX, dir=folder)  # mode 0600
    os.close(descriptor)
    try:
        save_file(tensors, temporary, metadata)
        size = os.stat(temporary).st_size
        os.rename(temporary, folder / file_name(hashes))
    except SafetensorError as error:  # what the library makes of a full disk
        raise OSError(str(error)) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return size


def read_hashes(path: Path, identity: str) -> tuple[tuple[bytes, ...], int]:
    """Which blocks the file holds, and its size. Their bytes are not looked at. Raises BadFile or OSError."""
    with path.open("rb") as file:
        header, file_bytes = _read_header(file, path.name, identity)
    return header.hashes, file_bytes


def read(path: Path, identity: str) -> tuple[tuple[bytes, ...], Arrays]:
    """The blocks' hashes and arrays (first axis: block), proved by the checksum. Raises BadFile or OSError."""
    with path.open("rb") as file:
        header, file_bytes = _read_header(file, path.name, identity)
        content = np.empty(file_bytes, np.uint8)
        file.seek(0)
        if file.readinto(content.data) != file_bytes:
            raise BadFile(f"{path.name} became shorter")
    arrays = {
        name: content[array.begin : array.end].view(array.dtype).reshape(array.shape)
        for name, array in header.arrays.items()
    }
    layout = {name: (CODES[array.dtype], array.shape) for name, array in header.arrays.items()}
    if _crc(identity, header.hashes, layout, arrays) != header.crc:
        raise BadFile(f"the checksum of {path.name} is wrong")
    return header.hashes, arrays


def _crc(
    identity: str, hashes: Sequence[bytes], layout: Mapping[str, tuple[str, tuple[int, ...]]], arrays: Arrays
) -> int:
    names = sorted(layout)
    described = json.dumps([identity, [one.hex() for one in hashes], [[name, *layout[name]] for name in names]])
    crc = zlib.crc32(described.encode())
    for name in names:
        crc = zlib.crc32(arrays[name].data, crc)
    return crc


def _read_header(file: BufferedReader, name: str, identity: str) -> tuple[_Header, int]:
    """The checked header and the file's size: what it says fits the name, the identity and the size."""
    file_bytes = os.fstat(file.fileno()).st_size
    header_bytes = int.from_bytes(file.read(8), "little")
    data_start = 8 + header_bytes
    if data_start > file_bytes:
        raise BadFile(f"{name} is too short")
    header = _parse(file.read(header_bytes), data_start)
    if header.identity != identity or not header.hashes or file_name(header.hashes) != name:
        raise BadFile(f"{name} belongs elsewhere")
    for array in header.arrays.values():
        counted = all(type(count) is int and count >= 0 for count in (*array.shape, array.begin, array.end))
        if not counted or not data_start <= array.begin <= array.end <= file_bytes:
            raise BadFile(f"{name} has an array outside of it")
        if math.prod(array.shape) * array.dtype.itemsize != array.end - array.begin:
            raise BadFile(f"{name} has an array that does not fit its shape")
        if array.shape[:1] != (len(header.hashes),):
            raise BadFile(f"{name} has an array of another number of blocks")
    return header, file_bytes


def _parse(text: bytes, data_start: int) -> _Header:
    try:
        fields = json.loads(text)
        metadata = fields.pop("__metadata__")
        arrays = {}
        for name, field in fields.items():
            begin, end = field["data_offsets"]
            arrays[name] = _Place(DTYPES[field["dtype"]], tuple(field["shape"]), data_start + begin, data_start + end)
        hashes = tuple(bytes.fromhex(one) for one in metadata["hashes"].split())
        return _Header(metadata["identity"], hashes, int(metadata["crc32"], 16), arrays)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadFile(f"no header of blocks: {error!r}") from error
