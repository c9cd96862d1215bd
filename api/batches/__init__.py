"""The batches process: lines become jobs in the low lane, results become files, whoever wants to know is told."""
