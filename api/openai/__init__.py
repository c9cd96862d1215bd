"""OpenAI's chat completions, completions and models (the spec of openai-openapi, plus vLLM's extra fields)."""
