"""The demo model: a folder that mlx-lm loads, and in `training` the scripts that made it."""
