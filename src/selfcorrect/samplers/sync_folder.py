"""The folder through which versions of the weights go to an engine: it goes with its process, however that ends."""

import fcntl
import shutil
import socket
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path

PREFIX = "selfcorrect-sync-"
_LOCK = ".lock"
_YOUNG = 60.0  # seconds in which a folder may not be locked yet


class SyncFolder:
    """A new one, under `above` or among the system's temporary ones, whose name no other has had.

    Those that killed processes of this host left there are removed: each may hold a whole model. Of other hosts'
    nothing is known: file systems that hosts share may keep locks to each.
    """

    def __init__(self, above: Path | None) -> None:
        if above:
            above.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=above))
        self._held = (self.path / _LOCK).open("w", encoding="utf-8")
        print(socket.gethostname(), file=self._held, flush=True)
        with suppress(OSError):  # a file system without locks: nothing is taken for left behind there
            fcntl.flock(self._held, fcntl.LOCK_EX)  # another process may have it for the moment of `_is_left`
        self.remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)
        for other in self.path.parent.glob(f"{PREFIX}*"):
            if other != self.path and _is_left(other):
                shutil.rmtree(other, ignore_errors=True)

    @property
    def word(self) -> str:
        """What its name has of its own."""
        return self.path.name.removeprefix(PREFIX)


def _is_left(folder: Path) -> bool:
    with suppress(OSError), (folder / _LOCK).open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file.read().strip() == socket.gethostname() and time.time() - (folder / _LOCK).stat().st_mtime > _YOUNG
    return False
