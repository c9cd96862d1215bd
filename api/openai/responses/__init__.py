"""OpenAI's Responses API: a conversation in items, an answer in items, each step of it an event with a number.

A response is a chat request in other words: `drafting` makes one, `rendering` tells the answer in items and events.
"""
