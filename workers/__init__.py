"""Compute: take jobs from the queue, run them through an engine, send back chunks."""
