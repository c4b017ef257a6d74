"""Nothing waits for a disk: what that loses, only a power cut would show, and no test cuts the power."""

import os


def _at_once(descriptor: object) -> None:
    """Stands in for os.fsync."""


os.fsync = _at_once  # type: ignore[assignment]
