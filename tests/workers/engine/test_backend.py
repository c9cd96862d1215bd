"""Which back end is installed and which BLAS is used; in processes of their own, since both happen at import."""

import subprocess
import sys
from importlib import metadata

import pytest

from workers.engine import BLAS, Backend, installed_backend, load_blas


def test_the_back_end_is_one_whose_distribution_is_installed() -> None:
    names = {dist.metadata["Name"] for dist in metadata.distributions()}
    backend = installed_backend()
    assert backend is Backend.CPU or any(name.startswith(f"mlx-{backend}") for name in names)


def test_asking_again_gives_the_same_answer() -> None:
    assert load_blas() == BLAS


@pytest.mark.skipif(installed_backend() is not Backend.CPU, reason="only the CPU back end uses a BLAS")
def test_a_process_says_which_blas_it_uses() -> None:
    script = "import workers.engine; print(workers.engine.BLAS)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(("OpenBLAS", "reference BLAS", "Accelerate"))
