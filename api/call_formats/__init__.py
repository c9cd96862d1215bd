"""How models write tool calls: a reader for each of mlx-lm's `tool_parsers`, by that module's name; pure."""
