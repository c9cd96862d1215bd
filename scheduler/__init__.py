"""The life of a job: its events, its states, its queue, its route and its record.

`api` and `workers` both import this package and never each other.
"""
