"""Batches: many requests as one thing, with a deadline. What a batch is, its states, and its rows in SQL."""
