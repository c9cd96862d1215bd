"""Accepts: HTTP in, server-sent events out. Protocols are translated here and nowhere else."""
