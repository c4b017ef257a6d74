"""Where a task's rows come from: a file, a folder, or a data set of the hub, through `datasets`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from selfcorrect.config import HubConfig
from selfcorrect.errors import DataError, one_line
from selfcorrect.hub import away
from selfcorrect.tasks.files import Row, find_files, read_rows


def rows_of_folder(
    folder: str, splits: Mapping[str, Sequence[str]], needed: Sequence[str] = ()
) -> dict[str, list[Row]]:
    """Rows by split. splits: the stems under which a split's file may go. Raises DataError where one is missing."""
    found: dict[str, list[Row]] = {}
    path = Path(folder)
    for split, stems in splits.items():
        files = find_files(path, stems)
        if files:
            found[split] = [row for file in files for row in read_rows(file)]
        elif split in needed:
            raise DataError(
                f"task.data = {folder!r}: the folder holds no {stems[0]}.jsonl (nor .json, .parquet, or one with .gz)"
            )
    return found


def check_there(path: str, setting: str = "task.data") -> Path:
    """The path, which must exist. Raises DataError."""
    found = Path(path)
    if not found.exists():
        raise DataError(f"{setting} = {path!r}: no such file or folder")
    return found


def rows_of_hub(hub: HubConfig, split: str) -> list[Row]:
    """A split of a hub data set, all its named configurations after each other.

    Raises DataError where it cannot be had, with the reason and the way around it.
    """
    names = hub.name if isinstance(hub.name, tuple) else (hub.name,)
    why = "" if Path(hub.path).is_dir() else away()  # asked once for all of them, as the answer may take seconds
    return [row for name in names for row in _rows(hub, name, split, why)]


def _rows(hub: HubConfig, name: str | None, split: str, why: str) -> list[Row]:
    """why: the hub cannot be asked; empty where it can."""
    import datasets

    datasets.disable_progress_bars()
    label = hub.path + (f" ({name})" if name else "")
    try:
        with _cached_only() if why else nullcontext():
            loaded: Any = datasets.load_dataset(hub.path, name, split=split, revision=hub.revision)
    except Exception as error:  # noqa: BLE001 - the library, the network and the hub each raise kinds of their own
        cause = error.__cause__ or error
        reason = f"it is not in the cache, and {why}" if why else f"{type(cause).__name__}: {one_line(cause)}"
        raise DataError(
            f"data set {label}, split {split}: cannot be loaded: {reason}; to use files of your own, set task.data "
            "(task.evaluate_data for the set of task.evaluate_on)"
        ) from None
    return [Row(f"{label} {split} row {number}", dict(row)) for number, row in enumerate(loaded, 1)]


@contextmanager
def _cached_only() -> Iterator[None]:
    """Meanwhile `datasets` looks at nothing but its cache."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
