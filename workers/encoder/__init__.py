"""Models that answer with numbers, through mlx-embeddings: vectors of texts, scores of pairs. Knows no jobs.

`workers.engine` is imported first: it loads a fast BLAS where MLX needs one, which has to happen before MLX is there.
"""

import workers.engine  # noqa: F401 - see above
from workers.encoder.engine import EncoderEngine
from workers.encoder.loading import load_encoder

__all__ = ["EncoderEngine", "load_encoder"]
