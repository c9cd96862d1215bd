"""Endpoints that are answered with numbers: embeddings (OpenAI's), rerank (Cohere's and Jina's), score (vLLM's)."""
