"""Processes and their children, read from /proc."""

import contextlib
from pathlib import Path


def children(pid: int) -> set[int]:
    found = set()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.add(int(folder.name))
    return found


def descendants(pid: int) -> set[int]:
    found = children(pid)
    return found | {below for child in found for below in descendants(child)}


def resident_pages(pids: set[int]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it ended while we looked
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return total


def alive(pids: set[int]) -> set[int]:
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(pid)
    return found
