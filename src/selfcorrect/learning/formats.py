"""Traces in the formats of other trainers.

`conversation`: one JSON list of {"conversation": [{"system", "input", "output"}, ...]}, as XTuner names them; its
`output_with_loss` says which outputs are trained on. `messages`: JSON Lines of {"messages": [{"role", "content"}, ...]}.
"""

FORMATS = ("conversation", "messages")


def convert(source, target, form): ...
