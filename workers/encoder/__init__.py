"""Models that answer with numbers, through mlx-embeddings: vectors of texts, scores of pairs. Knows no jobs."""

from workers.encoder.engine import EncoderEngine
from workers.encoder.loading import load_encoder

__all__ = ["EncoderEngine", "load_encoder"]
