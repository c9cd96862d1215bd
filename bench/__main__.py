"""`python -m bench` (or `make bench`): every benchmark, one after the other, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = ("queue", "engine", "serving")


def main() -> int:
    """Run those named on the command line, or all; 1 when one fails."""
    names = sys.argv[1:] or BENCHMARKS
    codes = []
    for name in names:
        print(f"== python -m bench.{name}", flush=True)
        codes.append(subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
