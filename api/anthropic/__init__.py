"""Anthropic's protocol: /v1/messages, counting its tokens, and its shapes of models and errors."""
