"""Why a model cannot be brought here, or be found. Each message says what to do; `exit_code` is what a script sees.

GalleryError              1
├── BadModelName          2
├── HubUnreachable        3
├── NotInTheHub, NotAllowed, UnfitModel, DiskFull, TornFile, PullUnderWay, NotHere
└── PullStopped         130   as a shell says it of an interrupted command
"""

from __future__ import annotations


class GalleryError(Exception):
    """Root of them all."""

    exit_code = 1


class BadModelName(GalleryError):
    """It is not the name of a repository."""

    exit_code = 2

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} is no model of the hub: write OWNER/NAME or OWNER/NAME@REVISION.")


class HubUnreachable(GalleryError):
    """The hub does not answer, or must not be asked."""

    exit_code = 3

    def __init__(self, endpoint: str, reason: str) -> None:
        super().__init__(
            f"The hub at {endpoint} is not reachable ({reason}). What is here already: mlx-farm ls --local."
        )


class NotInTheHub(GalleryError):
    """No such repository, or no such revision of it."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The hub has no model {name!r}, or does not show it: mlx-farm search finds names.")


class NotAllowed(GalleryError):
    """The hub gives it only to some."""

    def __init__(self, name: str, endpoint: str) -> None:
        super().__init__(
            f"The hub does not give {name!r} to everybody: accept its terms at {endpoint}/{name}, "
            "and set HF_TOKEN to a token that may read it."
        )


class UnfitModel(GalleryError):
    """It could be downloaded, and would not run."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} was not downloaded: {reason}.")


class DiskFull(GalleryError):
    """What is to come would not fit on the disk."""

    def __init__(self, folder: str, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(
            f"{folder} has {free_bytes >> 20} MiB free, and {needed_bytes >> 20} MiB are to come. Give models up with "
            "mlx-farm rm, or set HF_HUB_CACHE to a larger disk."
        )


class TornFile(GalleryError):
    """A file is not what the hub says that it is."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} is torn: {what}. It was removed; pull again to get it whole.")


class PullUnderWay(GalleryError):
    """Another process is at the same file."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is being downloaded by another process already.")


class PullStopped(GalleryError):
    """Somebody wanted it to stop; what has come is kept."""

    exit_code = 130

    def __init__(self, name: str) -> None:
        super().__init__(f"Stopped. What has come is kept: mlx-farm pull {name} goes on from there.")


class NotHere(GalleryError):
    """No such model on this disk."""

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no {name!r} on this machine; mlx-farm ls --local lists what is.")
