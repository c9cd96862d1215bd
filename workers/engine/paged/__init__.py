"""Continuous batching with a paged key-value cache: blocks, layout, attention, sampling rows, and the runner."""
