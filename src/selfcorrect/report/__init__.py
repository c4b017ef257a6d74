"""A run folder as one page that explains itself: `write_report(run)` -> `run/report.html`.

The page needs no network and no other file. It only reads what the run wrote, finished or not.
"""

import os
from pathlib import Path

__all__ = ["write_report"]


def write_report(run: Path) -> Path:
    """Write report.html into the run folder and return its path.

    Raises DataError, a UserError, where the folder is no run or holds an evaluation that cannot be shown.
    """
    from selfcorrect.analysis import figures_of
    from selfcorrect.config.paths import at_home
    from selfcorrect.errors import DataError
    from selfcorrect.report.load import load_run
    from selfcorrect.report.page import render

    run = at_home(run, "run")
    page = render(load_run(run), figures_of(run)).encode(
        "utf-8", errors="replace"
    )  # lone surrogates in a name become "?"
    target = run / "report.html"
    scratch = run / f".report.{os.getpid()}.tmp"
    try:
        scratch.write_bytes(page)
        scratch.replace(target)  # a reader never sees half a page
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise DataError(f"{target}: cannot be written: {error.strerror}; free the disk or mend the folder") from None
    return target
