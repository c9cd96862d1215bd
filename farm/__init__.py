"""The command line (`mlx-farm …`) and the all-in-one supervisor; starts processes and speaks HTTP, computes nothing."""
