"""Which MLX back end is installed, and a fast BLAS for the one that needs it. To be imported before `mlx.core`.

MLX's CPU wheel for Linux brings the reference BLAS, 25 times slower than OpenBLAS; symbols of a library that was loaded
globally before win over it. Bfloat16, float16 and quantized products do not use BLAS at all.
"""

import ctypes
import functools
import site
import sys
from collections.abc import Iterator
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Final


class Backend(StrEnum):
    METAL = "metal"
    CUDA = "cuda"
    CPU = "cpu"


@functools.cache
def installed_backend() -> Backend:
    """The back end by the installed distributions, not by the operating system; imports nothing."""
    names = {str(dist.metadata["Name"]).lower().replace("_", "-") for dist in metadata.distributions()}
    if "mlx-metal" in names:
        return Backend.METAL
    if any(name.startswith("mlx-cuda") for name in names):
        return Backend.CUDA
    return Backend.CPU


def _openblas_candidates() -> Iterator[str]:
    """Library names for the loader, then files that opencv wheels bundle (with unprefixed symbols, unlike numpy's)."""
    yield from ("libopenblas.so.0", "libopenblas.so")
    for folder in (*site.getsitepackages(), site.getusersitepackages(), *sys.path):
        for wheel in sorted(Path(folder).glob("opencv*.libs")):
            yield from (str(file) for file in sorted(wheel.glob("libopenblas*.so*")))


def _load(name: str) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(name, mode=ctypes.RTLD_LOCAL)
        if not hasattr(library, "cblas_sgemm"):
            return None
        return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return None


def _version(library: ctypes.CDLL) -> str:
    if not hasattr(library, "openblas_get_config"):
        return "OpenBLAS"
    library.openblas_get_config.restype = ctypes.c_char_p
    words = library.openblas_get_config().decode().split()
    return " ".join(words[:2])


@functools.cache
def load_blas() -> str:
    """Make a fast BLAS available to MLX where its back end uses one; returns what is used, for the log.

    Loads a shared library into the process (once; later calls only repeat the answer). Without effect on an MLX that
    is already imported.
    """
    backend = installed_backend()
    if backend is not Backend.CPU:
        return f"none needed ({backend})"
    if sys.platform == "darwin":
        return "Accelerate"
    for name in _openblas_candidates():
        library = _load(name)
        if library is not None:
            return f"{_version(library)} ({Path(name).name})"
    return "reference BLAS (slow); install libopenblas0-pthread"


BLAS: Final = load_blas()
