"""`python -m farm` is `mlx-farm`."""

from farm.main import main

main()
