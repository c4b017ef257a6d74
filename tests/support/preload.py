"""What a run with an adapter imports, for the server that runs in tests are forked from."""

from selfcorrect.models.adapters import need_peft

need_peft()
