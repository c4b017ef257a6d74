"""The two-attempt protocol in inspect_ai and lm-evaluation-harness, and the logs of both, read. docs/bridges.md.

Both packages are extras. Nothing of them is imported before it is asked for: inspect_tasks.py and lm_eval_tasks.py are
what those programs load, protocol.py is what the two share, logs.py reads what they wrote.
"""

from pathlib import Path

LM_EVAL_TASKS = Path(__file__).parent / "lm_eval_yaml"  # for lm-eval's --include_path
