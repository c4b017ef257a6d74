"""What an ordinary user's process does in test_shared_corpus: judge the programs that standard input holds."""

import json
import re
import sys

from selfcorrect.grading.judge import Checks, CodeJudge, Reason


def main() -> None:
    """Programs as JSON rows in; a line for each wrong verdict out, then how many were judged."""
    corpus = json.load(sys.stdin)
    with CodeJudge(workers=2, time_limit=1.5, memory_mb=256) as judge:  # a bomb of less is sooner over
        assert judge.confinement.tier < 3
        assert not judge.confinement.other_user
        found = judge.grade([(source, Checks(**checks)) for _, _, source, checks in corpus])
    for (name, expected, _, _), verdict in zip(corpus, found, strict=True):
        reason = re.match(r"fail \((\w+)", expected)
        wrong = verdict.passed != (expected == "pass") and not expected.startswith("same")
        if wrong or verdict.reason is Reason.GRADER_FAILED or (reason and verdict.reason != reason[1]):
            print(name, expected, verdict)
    print(f"{len(corpus)} programs judged")
