"""What a model can do: evaluation, metrics with intervals, alarms, recorded attempts. Imports no training code."""
