"""selfcorrect: SCoRe, self-correction of language models by reinforcement learning (arXiv 2409.12917).

    import selfcorrect
    run = selfcorrect.train("recipes/demo.yaml", "seed=1")       # a recipe, or a mapping of the same shape
    evaluation = selfcorrect.evaluate(run / "final")             # accuracy@t1, accuracy@t2, flows, intervals
    rollout = selfcorrect.play("countdown-30-7-2-to-39", model=run / "final")

Nothing heavy is imported until one of these is called.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selfcorrect.api import (
        Observer,
        PlainObserver,
        analyse,
        check,
        compare,
        evaluate,
        export,
        grade,
        make_repair_set,
        plan,
        play,
        records,
        scale,
        traces,
        train,
        write_report,
    )
    from selfcorrect.report.difference import diff

__version__ = "0.1.0"
__all__ = [
    "Observer", "PlainObserver", "__version__", "analyse", "check", "compare", "diff", "evaluate", "export", "grade",
    "make_repair_set", "plan", "play", "records", "scale", "traces", "train", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "diff":  # reads what is kept, and needs no torch
        from selfcorrect.report.difference import diff

        return diff
    if name in __all__:
        from selfcorrect.waiting import wait_briefly

        wait_briefly()
        from selfcorrect import api

        return getattr(api, name)
    raise AttributeError(f"module 'selfcorrect' has no attribute {name!r}")


def __dir__() -> list[str]:
    """With the names that are loaded at their first use."""
    return sorted({*globals(), *__all__})
