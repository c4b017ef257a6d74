"""The code judge: verdicts on untrusted programs that cannot be forged (docs/grading.md).

CodeJudge (trainer) -> supervisor -> zygote -> the program's process, confined
                                  -> judge's process, which runs the tests and asks the program
"""

from selfcorrect.grading.judge.pool import CodeJudge
from selfcorrect.grading.judge.verdict import Checks, Limits, Reason, Verdict

__all__ = ["Checks", "CodeJudge", "Limits", "Reason", "Verdict"]
