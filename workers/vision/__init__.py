"""Models that see, through mlx-vlm: text from texts and images. Knows no jobs.

`workers.engine` is imported first: it loads a fast BLAS where MLX needs one, which has to happen before MLX is there.
"""

import workers.engine  # noqa: F401 - see above
from workers.vision.loading import load_seeing
from workers.vision.runner import DECODED_AHEAD

__all__ = ["DECODED_AHEAD", "load_seeing"]
