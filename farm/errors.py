"""What a command can end with besides success; the message is what the user reads, `exit_code` what a script sees.

CommandError          1
├── UsageRefused      2
└── Unreachable       3
"""

from __future__ import annotations


class CommandError(Exception):
    """The command failed."""

    exit_code = 1


class UsageRefused(CommandError):
    """The command was asked for something that makes no sense; nothing was done."""

    exit_code = 2


class Unreachable(CommandError):
    """No farm answers at the address."""

    exit_code = 3

    def __init__(self, base_url: str, reason: str) -> None:
        super().__init__(f"No farm answers at {base_url} ({reason}). Start one with 'mlx-farm serve', or set FARM_URL.")
