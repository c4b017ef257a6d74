"""`python -m selfcorrect.bridges`: the folder to name to lm-eval as --include_path."""

from selfcorrect.bridges import LM_EVAL_TASKS

if __name__ == "__main__":
    print(LM_EVAL_TASKS)
