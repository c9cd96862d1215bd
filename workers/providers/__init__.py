"""Answers from providers: cloud backends of OpenAI's or Anthropic's protocol, as a worker of the queue like any other.

`sse` reads what comes on the wire, `openai` and `anthropic` translate both ways (all three are pure), `upstream` asks,
`engine` is what the consumer takes for an engine, `serving` one model of a provider with its consumer and lease, and
`agent` all of those that the record names.
"""
